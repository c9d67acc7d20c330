"""Each cell of the architectures in docs/your-model-and-data.md, against transformers and PEFT."""

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, WINDOWED, alone, stock
from evaluation_worlds import adapter as random_adapter, tokenizer
from peft import PeftModel
from tiny_models import VOCABULARY, assert_close, base_of
from torch import Tensor
from toy_training import (
    MLP,
    full_trial,
    losses,
    peft_twin,
    plain_losses,
    toy_rows,
    training_tolerance,
    trial,
)
from transformers import AutoModelForCausalLM

from rankscope.config.study import TrainConfig
from rankscope.errors import UserError
from rankscope.models.adapters.folder import save_adapter
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.init_context import new_adapter
from rankscope.models.load import check_stored_weights
from rankscope.models.methods import get_method
from rankscope.records import TrialSpec
from rankscope.train.loop import GroupResult, train_group

PAGE = Path(__file__).parents[2] / "docs" / "your-model-and-data.md"
STEPS = 3
NEAR = 2e-5
PROTOCOL = TrainConfig(max_steps=STEPS, batch_size=2, gradient_accumulation=3)
ROWS = toy_rows(30)
"""Rows of 3 to 24 tokens; windows are of 5."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {
    "Phi-3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "GPT-2": ("c_attn", "c_proj", "c_fc"),
    "Mixtral": ATTENTION,
}
"""Every linear layer of a decoder layer; the seven of Llama if not given."""


def table() -> dict[str, dict[str, str]]:
    """By architecture and column, the cells of the page's table of architectures."""
    lines = PAGE.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| architecture "))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[start : lines.index("", start)]
    ]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def base_logits(base: Base, name: str | None = None) -> Tensor:
    """Logits of all tokens of four rows, concatenated in one pass."""
    rows = [Row(ids, range(len(ids)), name) for ids in token_rows()]
    with torch.inference_mode():
        return base.logits(RowBatch.of(rows, base.device))


def stock_logits(model: Any) -> Tensor:
    return torch.cat([alone(model.eval(), ids) for ids in token_rows()])


def token_rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (9, 2, 17, 12)
    ]


def targets_of(architecture: str) -> tuple[str, ...]:
    return TARGETS.get(architecture, (*ATTENTION, *MLP))


def trials_of(architecture: str) -> list[TrialSpec]:
    targets = targets_of(architecture)
    return [
        trial("low", rank=2, lr=1e-3, targets=targets),
        trial("high", rank=8, lr=3e-3, seed=1, targets=targets),
    ]


def base_with(architecture: str) -> Base:
    return base_of(stock(architecture), tokenizer())


@cache
def trained(architecture: str, is_full: bool) -> GroupResult:
    trials = [full_trial()] if is_full else trials_of(architecture)
    return train_group(base_with(architecture), trials, ROWS, PROTOCOL)


# --- one check per column ---


def check_rows(architecture: str, folder: Path) -> None:
    assert_close(base_logits(base_with(architecture)), stock_logits(stock(architecture)), NEAR)


def check_lora(architecture: str, folder: Path) -> None:
    """Two adapters trained together, against PEFT one by one."""
    tolerance = training_tolerance(STEPS)
    for state in trained(architecture, is_full=False).states:
        spec, model = state.spec, stock(architecture)
        start = new_adapter(base_with(architecture).model, spec)
        tuned, pairs = peft_twin(model, spec, start)
        rates = {p: spec.lr for pair in pairs.values() for p in pair}
        slow = plain_losses(spec, tuned, rates, ROWS, PROTOCOL)
        assert losses(state) == pytest.approx(slow, rel=tolerance)
        assert state.adapter is not None
        assert len(pairs) == 2 * len(spec.targets)
        for name, expected in pairs.items():
            for found, value in zip(state.adapter.module_parameters(name), expected, strict=True):
                assert_close(found.detach(), value.detach(), 10 * tolerance)


def check_full(architecture: str, folder: Path) -> None:
    result, spec = trained(architecture, is_full=True), full_trial()
    model = stock(architecture).train()
    slow = plain_losses(spec, model, dict.fromkeys(model.parameters(), spec.lr), ROWS, PROTOCOL)
    found = dict(result.tuned.model.named_parameters())
    tolerance = training_tolerance(STEPS)
    assert losses(result.states[0]) == pytest.approx(slow, rel=tolerance)
    for name, parameter in model.named_parameters():
        assert_close(found[name].detach(), parameter.detach(), 10 * tolerance)


def check_export(architecture: str, folder: Path) -> None:
    """Of a fully fine-tuned model; and of a random adapter, if there can be one."""
    result = trained(architecture, is_full=True)
    get_method("full").save(result.tuned, result.tuned.record, folder / "full")
    check_stored_weights(folder / "full")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "full")
    assert loaded.config.tie_word_embeddings == stock(architecture).config.tie_word_embeddings
    assert_close(base_logits(result.tuned), stock_logits(loaded), NEAR)
    if table()[architecture]["LoRA"] == "no":
        return
    engine = base_with(architecture)
    member = random_adapter(engine, 4, seed=0, targets=targets_of(architecture))
    engine.multi_lora.attach(member)
    save_adapter(member, engine.record, folder / "adapter")
    tuned = PeftModel.from_pretrained(stock(architecture), str(folder / "adapter"))
    assert_close(base_logits(engine, member.name), stock_logits(tuned), NEAR)


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "ragged rows": check_rows,
    "LoRA": check_lora,
    "full fine-tuning": check_full,
    "export": check_export,
}
REFUSALS = {
    ("GPT-2", "LoRA"): "'c_attn': found no linear layer of this model",
    ("GPT-2", "heads"): "c_attn', one matrix for queries, keys and values",
    ("Phi-3", "heads"): "qkv_proj', one matrix for queries, keys and values",
}


def test_the_table_lists_what_is_tried() -> None:
    cells = table()
    assert tuple(cells) == ARCHITECTURES
    assert {column for row in cells.values() for column in row} >= {*CHECKS, "window"}
    assert {name for name, row in cells.items() if row["window"] == "yes"} == {*WINDOWED}
    refused = {(name, c) for name, row in cells.items() for c in row if row[c] == "no"}
    assert {cell for cell in refused if cell[1] != "window"} == set(REFUSALS)


def check_cell(architecture: str, column: str, check: Callable[[], None]) -> None:
    """The page says "no" where the check is refused as in ``REFUSALS``, and only there."""
    if table()[architecture][column] != "no":
        assert table()[architecture][column] in ("yes", "attention")
        check()
        return
    with pytest.raises(UserError, match=re.escape(REFUSALS[architecture, column])):
        check()


@pytest.mark.parametrize("column", CHECKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_cell(architecture: str, column: str, tmp_path: Path) -> None:
    check_cell(architecture, column, partial(CHECKS[column], architecture, tmp_path))
    cell = table()[architecture][column]
    for target in MLP if cell == "attention" else ():
        with pytest.raises(UserError, match=f"{target!r}: found no linear layer.*: k_proj, "):
            new_adapter(base_with(architecture).model, trial(targets=(target,)))
