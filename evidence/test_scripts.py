"""Small scripts: short exam rows, seeds that a claim needs, spans of updates."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from pocket_study import small_study

from power import data_needed, detectable
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.records import Estimate
from short_exam_rows import write_short_rows
from update_overlap import leading, overlap, table


def test_long_questions_and_law_are_left_out_and_copies_stay_together(tmp_path: Path) -> None:
    rows = [{"question": f"q{n // 2}", "choices": ["a", "b"], "subject": "sums"} for n in range(40)]
    rows += [{**rows[0], "question": "x" * 500}, {**rows[0], "subject": "jurisprudence"}]
    (tmp_path / "data" / "mmlu").mkdir(parents=True)
    (tmp_path / "data" / "mmlu" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_short_rows(tmp_path / "data", tmp_path / "out")
    files = sorted((tmp_path / "out" / "mmlu").iterdir())
    assert [file.name for file in files] == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    splits = [
        [json.loads(line)["question"] for line in file.read_text().splitlines()] for file in files
    ]
    assert sorted(question for split in splits for question in split) == sorted(
        row["question"] for row in rows[:40]
    )
    assert not any(set(a) & set(b) for a in splits for b in splits if a is not b)


Z = 1.959964 + 0.841621  # quantiles .975 and .8 of the normal distribution
T = 4.302653 + 1.060660  # of Student's t with two degrees of freedom


def estimate(item_error: float | None, seed_error: float | None, seeds: int = 3) -> Estimate:
    known = {"value": 0.03, "low": None, "high": None, "n": 100, "seeds": seeds}
    return Estimate(**known, item_error=item_error, seed_error=seed_error)


def test_few_seeds_are_paid_for_by_students_quantiles() -> None:
    both = detectable(estimate(0.02, 0.01))
    assert both == pytest.approx(((Z * 0.02) ** 2 + (T * 0.01) ** 2) ** 0.5, rel=1e-5)
    assert detectable(estimate(None, None)) is None
    assert detectable(estimate(0.0, None, seeds=1)) is None


def test_what_is_asked_for_is_enough_and_not_more() -> None:
    """With the items, or the seeds, that are asked for, the effect is just seen."""
    now = estimate(0.02, 0.004)

    def seen(items: int) -> float:
        return detectable(estimate(0.02 * (100 / items) ** 0.5, 0.004)) or 0.0

    found = data_needed(now, 0.045)
    assert found.seeds is None  # the items there are would not show it with any seeds
    assert seen(found.items) <= 0.045 < seen(found.items - 1)
    assert data_needed(now, 0.06).seeds == 3
    assert data_needed(estimate(0.005, 0.03), 0.04).items is None  # seeds that differ too much
    items, seeds = data_needed(estimate(0.02, 0.02), 0.02).both
    assert (items > 100, seeds > 3) == (True, True)
    assert set(astuple(data_needed(estimate(0.5, 5.0), 0.001))) == {None}


def test_spans_of_updates_overlap_by_what_they_share() -> None:
    q, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.manual_seed(0)))
    p, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))
    sizes = torch.arange(9, 0, -1, dtype=torch.float64)
    dense = LowRankUpdate.from_dense(q[:, :9] * sizes @ p.mT)
    left, right = leading(dense, k=3)
    assert overlap(left, q[:, :3]) == pytest.approx(1)
    assert overlap(right, p[:, 1:4]) == pytest.approx(2 / 3)
    assert overlap(left, q[:, 3:]) == pytest.approx(0, abs=1e-12)
    # Of rank 2, both of whose directions are among the three: one span holds the other.
    low = LowRankUpdate(p[:, :2].mT, q[:, :2] * sizes[:2])
    assert leading(low, k=3)[0].shape == (12, 2)
    assert overlap(leading(low, k=3)[0], left) == pytest.approx(1)


def test_overlaps_of_a_study_lie_between_chance_and_one(tmp_path: Path) -> None:
    arms = [
        {"method": "lora", "rank": 8, "lr": 2e-3},
        {"method": "full", "lr": 5e-4},
    ]
    small_study(tmp_path, arms=arms, seeds=[0, 1]).run(tmp_path / "out")
    lora, full = table(tmp_path / "out")
    assert (lora["seeds"], full["seeds"], full["with_full"]) == (2, 2, None)
    assert 0 < lora["unrelated"] < lora["with_full"] < 1
    # Seeds of full fine-tuning begin at the same weights; those of LoRA at other factors A.
    assert lora["between_seeds"] < full["between_seeds"] < 1
