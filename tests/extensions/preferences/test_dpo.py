"""Preference optimization: equal to TRL's trainer, to plain PyTorch, and to itself in another group
or after a stop."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from finished_studies import pocket
from tiny_models import assert_close
from toy_training import full_trial, losses, trial
from trl import DPOConfig, DPOTrainer

from rankscope.data.encode import EncodedRow
from rankscope.data.items import Item
from rankscope.extensions.preferences.rows import reference_margins
from rankscope.models.base import Base
from rankscope.records import TrialSpec
from rankscope.train.loop import GroupResult, train_group

from ..pocket_objectives import (
    COMMON,
    ENCODER,
    STEPS,
    TOKENIZER,
    WORDS,
    base,
    continued,
    equal_alone,
    peft_of,
    protocol,
    relative,
)

pytestmark = pytest.mark.filterwarnings(
    # TRL turns it on by default, and off for its reference.
    "ignore:`gradient_checkpointing.*` is deprecated:FutureWarning"
)
PAIRS = [
    Item(prompt=f"The {a} one is", completion=b, choices=(b, f"not {b} at all"), answer=0)
    for a, b in itertools.pairwise(WORDS)
][:4]
BETA = 0.3


def pairs(model: Base) -> list[EncodedRow]:
    rows = [row for item in PAIRS if (row := ENCODER.pair(item, "completion"))]
    margins = reference_margins(model, rows, 64)
    return [
        EncodedRow(row.input_ids, row.is_label, row.truncated, row.rejected, margin)
        for row, margin in zip(rows, margins, strict=True)
    ]


def trained(trials: list[TrialSpec], **options: Any) -> GroupResult:
    model = base()
    return train_group(model, trials, pairs(model), protocol({"dpo": {"beta": BETA}}), **options)


def test_dpo_equals_trl(tmp_path: Path) -> None:
    spec = trial()
    group = trained([trial("other", rank=2), spec])
    model, expected = peft_of(spec)
    rows = [
        {"prompt": item.prompt, "chosen": f" {item.choices[0]}", "rejected": f" {item.choices[1]}"}
        for item in PAIRS
    ]
    args = DPOConfig(str(tmp_path), beta=BETA, **COMMON)
    trainer = DPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
    )
    ours = [row for row in pairs(base()) for row in row.parts]
    theirs = [
        [*row["prompt_ids"], *row[name]]
        for row in trainer.train_dataset
        for name in ("chosen_ids", "rejected_ids")
    ]
    assert [list(row.input_ids) for row in ours] == theirs
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses(group.states[1])[0] == pytest.approx(math.log(2), rel=relative(1))
    assert losses(group.states[1]) == pytest.approx(found, rel=relative())
    adapter = group.states[1].adapter
    assert adapter is not None
    for name, (a, b) in expected.items():
        assert_close(adapter.a[name], a, relative())
        assert_close(adapter.b[name], b, relative())


def test_dpo_of_a_full_model_equals_plain_pytorch() -> None:
    state = trained([full_trial()]).states[0]
    model, frozen = pocket(), pocket()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def logprob(of: Any, row: EncodedRow) -> torch.Tensor:
        ids = torch.tensor([row.input_ids])
        every = of(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return every[torch.tensor(row.is_label[1:])].sum()

    slow = []
    for step in range(STEPS):
        loss = torch.tensor(0.0)
        for row in pairs(base()):
            assert row.rejected is not None
            margin = logprob(model, row) - logprob(model, row.rejected)
            with torch.no_grad():
                reference = logprob(frozen, row) - logprob(frozen, row.rejected)
            loss = loss - torch.nn.functional.logsigmoid(BETA * (margin - reference)) / len(PAIRS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = state.spec.lr * (1 - step / STEPS)
        optimizer.step()
        optimizer.zero_grad()
        slow.append(float(loss.detach()))
    assert losses(state) == pytest.approx(slow, rel=relative())


def test_group_equals_each_adapter_alone() -> None:
    equal_alone(trained)


def test_stopped_group_continues_to_equal_bits(tmp_path: Path) -> None:
    continued(trained, tmp_path)
