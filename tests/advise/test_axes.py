"""Rows, targets and batch sizes as axes: planted answers come back, and hand numbers."""

import re
from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on
from synthetic_study import Truth, synthetic_study, with_trials

from rankscope.advise.axes import _crossings
from rankscope.config.arm import TARGET_GROUPS
from rankscope.records import TrialRecords

ROWS = (64, 256, 1024)
RATES = tuple(n * 1e-5 for n in ROWS)
"""Of a simulated study: one for each number of rows."""


def with_rows(trial: TrialRecords) -> TrialRecords:
    rows = round(trial.spec.lr * 1e5)
    spec = trial.spec.model_copy(update={"rows": rows, "lr": 1e-3})
    return replace(trial, spec=spec, train=trial.train.model_copy(update={"rows": rows}))


def with_targets(trial: TrialRecords) -> TrialRecords:
    name = "attention" if trial.spec.lr < 1e-3 else "all-linear"
    return replace(
        trial, spec=trial.spec.model_copy(update={"lr": 1e-3, "targets": TARGET_GROUPS[name]})
    )


def axis_texts(truth: Truth, change) -> list[str]:
    study = with_trials(synthetic_study(truth), change)
    return [reason.text for reason in advice_on(study).reasons if reason.kind == "axis"]


def exponents(law: str) -> tuple[float, ...]:
    """Of the rank and of the rows."""
    return tuple(map(float, re.search(r"exponents (\S+) \[.*\] and (\S+) \[", law).groups()))


def rows_truth(gain) -> Truth:
    """gain: of a rank (None: full) and a number of rows."""
    return Truth(
        ranks=(2, 32), lrs=RATES, full_lrs=(), num_items=3000, seed_spread=0.002,
        accuracy=lambda rank, lr: 0.3 + gain(rank, round(lr * 1e5)),
        forgetting=lambda rank, lr: 0.0,
    )  # fmt: skip


def test_a_larger_rank_pays_from_the_planted_number_of_rows_on() -> None:
    """r=32 leads by 10 points at 1,024 rows and by none before: the lead passes the margin of two
    points after a fifth of the two octaves from 256 on, at about 340 rows."""
    truth = rows_truth(lambda rank, rows: 0.3 + (0.1 if rank == 32 and rows == 1024 else 0.0))
    pays, _ = axis_texts(truth, with_rows)
    said = r"r=32 pays over r=2 from about (\d+) rows on \(95 % interval (.*) to .*; \D*(\d+) % at"
    start, low, at_most = re.match(said, pays).groups()
    assert int(start) == pytest.approx(340, rel=0.25)
    assert 256 <= int(low.removeprefix("about ")) < int(start)
    assert int(at_most) > 95


def test_a_lead_that_ends_is_said_to_end() -> None:
    leads = {(32, 64): 0.1, (32, 1024): 0.008}
    truth = rows_truth(lambda rank, rows: 0.3 + leads.get((rank, rows), 0.0))
    pays, _ = axis_texts(truth, with_rows)
    assert pays.startswith("r=32 pays over r=2 at 64 rows (over 99 %), hardly at 1024 (")


def test_a_power_law_of_rank_and_rows_comes_back() -> None:
    """gain = 0.05 r^0.1 n^0.3: twice 1,024 rows add 2^0.3 - 1 = 23 % of 0.57 x 0.05 x 8."""
    truth = rows_truth(lambda rank, rows: 0.05 * rank**0.1 * rows**0.3)
    *_, law = axis_texts(truth, with_rows)
    assert exponents(law) == pytest.approx((0.1, 0.3), abs=0.05)
    added = re.match(r"Twice the rows \(2048\) would add about ([\d.]+) points to r=32 ", law)[1]
    assert float(added) == pytest.approx(56.6 * 0.231, rel=0.3)


def test_where_nothing_may_be_gained_no_law_is_fitted() -> None:
    truth = replace(rows_truth(lambda rank, rows: 0.0), num_items=100)
    *_, law = axis_texts(truth, with_rows)
    assert law.startswith("What twice the rows would add is unknown")


def test_target_modules_are_compared_each_at_its_best_arm() -> None:
    truth = Truth(
        ranks=(8,), lrs=(5e-4, 1e-3), full_lrs=(), num_items=2000,
        accuracy=lambda rank, lr: 0.5 if lr < 1e-3 else 0.6,
    )  # fmt: skip
    (targets,) = axis_texts(truth, with_targets)
    assert targets.startswith("By targets, each at its best settings")
    assert re.search(r"all-linear \([^;]*; over 99 %\); attention \([^;]*; under 1 %\)\.$", targets)


def test_crossings_by_hand() -> None:
    gaps = np.array([[-1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [1.0, -1.0, 3.0], [1.0, 1.0, -1.0]])
    assert _crossings(gaps, [6.0, 8.0, 10.0]).tolist() == [7.0, 6.0, 8.5, np.inf]


def test_one_rank_alone_has_no_power_of_the_rank() -> None:
    truth = replace(rows_truth(lambda rank, rows: 0.05 * rows**0.3), ranks=(32,))
    (law,) = axis_texts(truth, with_rows)
    assert exponents(law) == (0, pytest.approx(0.3, abs=0.05))


def test_an_end_beyond_the_rows_tried_is_said_to_be_beyond() -> None:
    """A lead of the margin itself at the most rows: about half of the draws never pass it."""
    lead = {(32, 1024): 0.022}
    truth = rows_truth(lambda rank, rows: 0.3 + lead.get((rank, rows), 0.0))
    pays, _ = axis_texts(replace(truth, num_items=800), with_rows)
    assert "nan" not in pays
    assert "more than 1024" in pays or pays.startswith("r=32 hardly pays")


def test_a_fixed_alpha_is_no_axis_of_its_own() -> None:
    def fixed(trial: TrialRecords) -> TrialRecords:
        return replace(trial, spec=trial.spec.model_copy(update={"alpha": 16.0}))

    assert axis_texts(Truth(ranks=(4, 8, 16), full_lrs=()), fixed) == []
