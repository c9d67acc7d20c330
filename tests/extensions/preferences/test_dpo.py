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
from toy_training import full_trial, losses, toy_rows, trial
from trl import DPOConfig, DPOTrainer

from rankscope.data.encode import EncodedRow
from rankscope.data.items import Item
from rankscope.extensions.preferences.rows import reference_margins
from rankscope.models.base import Base
from rankscope.records import TrialSpec
from rankscope.train.loop import GroupResult, train_group

from ...test_benchmarks import LinesOf
from ...train.test_waits import Device, assert_waits_once
from .. import pocket_objectives as toy

PAIRS = [
    Item(prompt=f"The {a} one is", completion=b, choices=(b, f"not {b} at all"), answer=0)
    for a, b in itertools.pairwise(toy.WORDS)
][:4]
BETA = 0.3


def pairs(model: Base) -> list[EncodedRow]:
    rows = [row for item in PAIRS if (row := toy.ENCODER.pair(item, "completion"))]
    margins = reference_margins(model, rows, 64)
    return [
        EncodedRow(row.input_ids, row.is_label, row.truncated, row.rejected, margin)
        for row, margin in zip(rows, margins, strict=True)
    ]


def trained(trials: list[TrialSpec], **options: Any) -> GroupResult:
    model, settings = toy.base(), toy.protocol({"dpo": {"beta": BETA}})
    return train_group(model, trials, pairs(model), settings, **options)


def test_dpo_equals_trl(tmp_path: Path) -> None:
    spec = trial()
    group = trained([trial("other", rank=2), spec])
    model, expected = toy.peft_of(spec)
    rows = [
        {"prompt": item.prompt, "chosen": f" {item.choices[0]}", "rejected": f" {item.choices[1]}"}
        for item in PAIRS
    ]
    args = DPOConfig(str(tmp_path), beta=BETA, **toy.COMMON)
    trainer = DPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=toy.TOKENIZER
    )
    ours = [row for row in pairs(toy.base()) for row in row.parts]
    theirs = [
        [*row["prompt_ids"], *row[name]]
        for row in trainer.train_dataset
        for name in ("chosen_ids", "rejected_ids")
    ]
    assert [list(row.input_ids) for row in ours] == theirs
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses(group.states[1])[0] == pytest.approx(math.log(2), rel=toy.relative(1))
    assert losses(group.states[1]) == pytest.approx(found, rel=toy.relative())
    adapter = group.states[1].adapter
    assert adapter is not None
    for name, (a, b) in expected.items():
        assert_close(adapter.a[name], a, toy.relative())
        assert_close(adapter.b[name], b, toy.relative())


def test_dpo_of_a_full_model_equals_plain_pytorch() -> None:
    state = trained([full_trial()]).states[0]
    model, frozen = pocket(), pocket()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def logprob(of: Any, row: EncodedRow) -> torch.Tensor:
        ids = torch.tensor([row.input_ids])
        every = of(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return every[torch.tensor(row.is_label[1:])].sum()

    slow = []
    for step in range(toy.STEPS):
        loss = torch.tensor(0.0)
        for row in pairs(toy.base()):
            assert row.rejected is not None
            margin = logprob(model, row) - logprob(model, row.rejected)
            with torch.no_grad():
                reference = logprob(frozen, row) - logprob(frozen, row.rejected)
            loss = loss - torch.nn.functional.logsigmoid(BETA * (margin - reference)) / len(PAIRS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = state.spec.lr * (1 - step / toy.STEPS)
        optimizer.step()
        optimizer.zero_grad()
        slow.append(float(loss.detach()))
    assert losses(state) == pytest.approx(slow, rel=toy.relative())


def test_group_equals_each_adapter_alone() -> None:
    toy.equal_alone(trained)


def test_a_step_of_pairs_waits_once(device: Device) -> None:
    """Each toy row is preferred to an answer of three tokens."""
    rows = []
    for row in toy_rows():
        prompt = row.prompt_ids
        other = EncodedRow((*prompt, 3, 4, 5), (False,) * len(prompt) + (True,) * 3, False)
        rows.append(EncodedRow(row.input_ids, row.is_label, False, other, 0.5))
    assert_waits_once(device, [trial()], rows, objective="dpo")


@pytest.mark.usefixtures("minutes")
def test_the_race_in_small_prints_its_line(lines_of: LinesOf) -> None:
    (line,) = lines_of("train_dpo", "--pocket", "--pairs", "1")
    assert (line["benchmark"], line["ratio"] > 0) == ("train_dpo", True)
    assert line["ratio_reference_before"] > 0


def test_stopped_group_continues_to_equal_bits(tmp_path: Path) -> None:
    toy.continued(trained, tmp_path)
