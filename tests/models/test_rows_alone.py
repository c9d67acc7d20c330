"""Families of docs/your-model-and-data.md, a pass for each row, against transformers and PEFT."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, SHAPE, stock as packed
from evaluation_worlds import tokenizer
from families import FAMILIES, config_of, stock
from tiny_models import assert_close
from torch import Tensor
from toy_training import losses, peft_twin, plain_losses, toy_rows, training_tolerance, trial

from rankscope.config.study import ModelConfig, TrainConfig
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import GenerationLimits, generate
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.models.attention import varlen
from rankscope.models.attention.varlen import attention_of
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.init_context import new_adapter
from rankscope.models.load import check_rows_apart, frozen_base, model_record
from rankscope.models.output_layer import output_layer_apart
from rankscope.train.loop import train_group
from rankscope.train.memory import MemoryModel, RowCounts

PAGE = Path(__file__).parents[2] / "docs" / "your-model-and-data.md"
CPU = torch.device("cpu")
QUESTIONS = [([5, 9, 31, 7, 250], [[3], [77, 12], [77, 12, 9]]), ([8], [[4], [6]])]


def loaded(architecture: str) -> Base:
    model = stock(architecture, attention_of(config_of(architecture)))
    record = model_record(ModelConfig(path="tiny"), CPU, torch.float32, model, tokenizer(), "")
    return frozen_base(model, tokenizer(), record, Path("tiny"))


def whole(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def table() -> dict[str, str]:
    """By architecture, what a pass holds, as the page says."""
    rows = re.findall(r"^\| (one row|many rows) \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {family: holds for holds, families in rows for family in families.split(", ")}


def test_the_page_lists_what_is_tried() -> None:
    assert tuple(table()) == tuple(FAMILIES)


@pytest.mark.filterwarnings("ignore:.*is falling back to its reference")
@pytest.mark.parametrize("architecture", FAMILIES)
def test_scores_and_training_are_those_of_transformers_and_peft(architecture: str) -> None:
    base, model = loaded(architecture), stock(architecture)
    assert base.packs == (table()[architecture] == "many rows")
    memory = MemoryModel(config_of(architecture), torch.float32, CPU)
    assert memory.packs == base.packs

    rows = [list(row.input_ids) for row in toy_rows(3)] + [[9]]
    batch = RowBatch.of([Row(ids, range(len(ids))) for ids in rows], CPU)
    with torch.no_grad():
        found = base.logits(batch)
        with output_layer_apart(base.model) as head:
            states = base.logits(batch)
    assert_close(states if head is None else head(states), found)
    assert_close(found, torch.cat([whole(model, ids) for ids in rows]), 2e-6)

    questions = [Question(*of) for of in QUESTIONS]
    with torch.inference_mode():
        scored = continuation_logprobs(base, questions, [None], 4096)[None].values
    for (prompt, options), ours in zip(QUESTIONS, scored, strict=True):
        for option, value in zip(options, ours, strict=True):
            logprobs = whole(model, prompt + option)[len(prompt) - 1 : -1].log_softmax(-1)
            assert value == pytest.approx(
                sum(float(p[t]) for p, t in zip(logprobs, option, strict=True)), rel=1e-5
            )

    limits = GenerationLimits(4, 64, 4096, frozenset())
    with torch.inference_mode():
        answers = generate(base, rows, [None], limits)[None]
    for ids, answer in zip(rows, answers, strict=True):
        expected = list(ids)
        for _ in range(4):
            expected.append(int(whole(model, expected)[-1].argmax()))
        assert answer.ids == expected[len(ids) :]

    check_training(architecture, base)
    counts = RowCounts.of(toy_rows(12))
    assert memory.of_group([targeted(architecture)], counts, TrainConfig()).pass_bytes > 0


def targeted(architecture: str, name: str = "low", **settings: Any) -> Any:
    own = FAMILIES[architecture][2] or ("q_proj", "o_proj")
    return trial(name, targets=own, **settings)


def check_training(architecture: str, base: Base) -> None:
    """Two adapters trained together, against PEFT one by one."""
    protocol, rows = TrainConfig(max_steps=2, batch_size=3, gradient_accumulation=1), toy_rows(12)
    trials = [targeted(architecture), targeted(architecture, "high", rank=8, lr=1e-3, seed=1)]
    starts = [new_adapter(base.model, spec) for spec in trials]
    tolerance = training_tolerance(2)
    for state, start in zip(train_group(base, trials, rows, protocol).states, starts, strict=True):
        spec: Any = state.spec
        tuned, pairs = peft_twin(stock(architecture), spec, start)
        rates = {p: spec.lr for pair in pairs.values() for p in pair}
        assert losses(state) == pytest.approx(
            plain_losses(spec, tuned, rates, rows, protocol), rel=tolerance
        )
        assert state.adapter is not None
        for name, expected in pairs.items():
            for ours, theirs in zip(state.adapter.module_parameters(name), expected, strict=True):
                assert_close(ours, theirs, 20 * tolerance)


@pytest.mark.parametrize("rope", [None, "dynamic", "llama3", "yarn"])
def test_rows_of_attention_alone_share_passes(rope: str | None) -> None:
    """Some rotary embeddings ask how long a row is, which shapes alone do not say."""
    if rope is None:
        assert {attention_of(packed(name).config) for name in ARCHITECTURES} == {varlen.NAME}
        return
    scaling = {"rope_type": rope, "factor": 4.0, "rope_theta": 1e4}
    scaling |= {"original_max_position_embeddings": 64, "low_freq_factor": 1, "high_freq_factor": 4}
    config = transformers.LlamaConfig(**SHAPE, rope_parameters=scaling)
    assert attention_of(config) == varlen.NAME


def test_a_state_that_outlives_a_pass_is_refused() -> None:
    base = loaded("LFM2")
    layer: Any = base.model.get_input_embeddings()
    last = torch.zeros(1)

    def leak(module: Any, args: Any, out: Tensor) -> Tensor:
        mixed = out + last
        last.copy_(out.mean())
        return mixed

    layer.register_forward_hook(leak)
    with pytest.raises(UserError, match="when another row precedes it"):
        check_rows_apart(base)


def test_recomputed_layers_and_starts_from_data_go_row_by_row() -> None:
    trials = [
        targeted("LFM2", "dropout", dropout=0.2),
        targeted("LFM2", "dora", method="dora"),
        targeted("LFM2", "eva", method="eva", rank=8),
    ]
    plain, again = (
        train_group(
            loaded("LFM2"),
            trials,
            toy_rows(9),
            TrainConfig(max_steps=2, batch_size=3, gradient_checkpointing=recomputes),
        )
        for recomputes in (False, True)
    )
    for one, other in zip(plain.states, again.states, strict=True):
        assert losses(one) == losses(other)
        assert one.adapter is not None
        assert len(one.adapter.a) == 3
        for ours, theirs in zip(one.parameters, other.parameters, strict=True):
            assert_close(ours, theirs, 1e-6)
