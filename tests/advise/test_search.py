"""Laws of a search: its first design, what it trains next, and what its probability counts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study, with_trials

from rankscope.advise.arms import summarize_arms
from rankscope.advise.decide import decide
from rankscope.advise.net_gains import NetGains
from rankscope.advise.results import task_results
from rankscope.advise.search import NextRound, _first_design as first_design, finalists, next_round
from rankscope.records import StudyRecords, TrialRecords, TrialSpec
from search import WORLDS, Drawn, judge, play_random, play_search

TRUTH = Truth(
    ranks=(4, 8, 16, 32, 64), lrs=(1e-4, 3e-4, 1e-3), full_lrs=(1e-5, 3e-5, 1e-4), cross=(),
    accuracy=lambda rank, lr: 0.6 if rank is None else 0.5 + 0.02 * np.log2(rank),
    forgetting=lambda rank, lr: 0.0,
)  # fmt: skip


def begun(study: StudyRecords, labels: Sequence[str], twice: str = "") -> StudyRecords:
    """A search in which the first seed of these arms was trained, and the second of one."""

    def seen(trial: TrialRecords) -> TrialRecords:
        spec = trial.spec
        is_begun = spec.arm_label in labels and spec.seed <= (spec.arm_label == twice)
        return trial if is_begun else TrialRecords(spec, "planned")

    config = study.config.model_copy(update={"strategy": "search"})
    return with_trials(replace(study, config=config), seen)


def waiting(study: StudyRecords) -> list[TrialSpec]:
    return [trial.spec for trial in study.trials if trial.status == "planned"]


def asked(study: StudyRecords, beyond: Sequence[TrialSpec] = (), **options: float) -> NextRound:
    return next_round(study, "med", waiting(study), beyond, **options)


def labels(trials: Sequence[TrialSpec]) -> list[str]:
    return [trial.arm_label for trial in trials]


CROSS = [
    *("r=16 lr=0.0003", "full lr=3e-05", "r=64 lr=0.0003", "r=4 lr=0.0003"),
    *("r=16 lr=0.001", "r=16 lr=0.0001"),
]


def test_the_first_design_is_a_cross_of_first_seeds_and_the_middle_of_every_other_kind() -> None:
    trials = [trial.spec for trial in synthetic_study(TRUTH).trials]
    design = first_design(trials)
    assert labels(design) == CROSS
    assert {trial.seed for trial in design} == {0}
    assert labels(first_design(trials[:1])) == [trials[0].arm_label]


def test_a_round_is_a_function_of_records_and_its_arms_are_different() -> None:
    study = begun(synthetic_study(TRUTH), CROSS)
    first = asked(study)
    assert first == asked(study)
    assert len(set(labels(first.trials))) == len(first.trials) == 3
    assert 0 <= first.after < first.regret
    assert first.leader in CROSS
    known = {t.spec.trial_id for t in study.trials if t.status == "planned"}
    assert {trial.trial_id for trial in first.trials} <= known


def test_a_search_ends_when_it_is_sure_or_no_trial_is_worth_it() -> None:
    """And when two seeds speak for the answer. At last full fine-tuning is ahead of all by far."""
    study = synthetic_study(TRUTH)
    assert asked(begun(study, CROSS)).trials
    (second,) = asked(begun(study, CROSS), until=0.01).trials
    label = second.arm_label
    answer = decide(task_results(s := begun(study, CROSS), "med", summarize_arms(s)["med"]))
    assert (label, second.seed) == (answer.chosen and answer.chosen.label, 1)
    assert asked(begun(study, CROSS, twice=label), until=0.01).trials == ()
    truth = replace(TRUTH, full_lrs=(3e-5,), accuracy=lambda r, lr: 0.95 if r is None else 0.4)
    study = synthetic_study(truth)
    every = [trial.spec.arm_label for trial in study.trials]
    assert labels(asked(begun(study, every), until=1.1).trials) == ["full lr=3e-05"]
    assert asked(begun(study, every, twice="full lr=3e-05"), until=1.1).trials == ()


def test_probability_counts_arms_that_were_never_trained() -> None:
    study = begun(synthetic_study(TRUTH), CROSS)
    arms = summarize_arms(study)["med"]
    alone = decide(task_results(study, "med", arms, [])).p_within_margin
    counted = decide(task_results(study, "med", arms)).p_within_margin
    assert alone is not None
    assert counted is not None
    assert counted < alone - 0.05


def test_what_is_said_of_trained_arms_beside_an_untried_one_by_hand() -> None:
    """Two arms and one that nobody trained, in four draws."""
    draws = np.array([[0.10, 0.00, 0.00], [0.10, 0.20, 0.0], [0.1, 0.0, 0.3], [-0.1, -0.2, -0.3]])
    zeros = np.zeros((3, 3))
    net = NetGains(draws, draws, np.zeros(3), zeros, margin=0.02, num_untried=1)
    assert net.best == pytest.approx([0.1, 0.2, 0.3, 0.0])
    assert net.regret == pytest.approx([0.6 / 4, 0.4 / 4, 0.6 / 4])
    assert net.p_within_margin.tolist() == [0.25, 0.25, 0.25]
    assert net.p_best.tolist() == [0.25, 0.25, 0.25]  # In the third draw nobody's
    assert net.of([1, 2]).num_untried == 1
    assert net.of([0, 1]).num_untried == 0


def test_rates_as_high_as_one_that_failed_are_left_out() -> None:
    """By what their alpha makes of them. Where all failed, the next ones are lower."""
    failed = {(r, 1e-3, 0): "diverged" for r in TRUTH.ranks}
    study = begun(synthetic_study(replace(TRUTH, failed=failed)), [*CROSS, "r=16 lr=0.001"])
    chosen = [asked(study, until=0.9999999, num_trials=9)]
    assert all(t.lr < 1e-3 for of in chosen for t in of.trials if (t.rank or 0) > 16)
    only = begun(synthetic_study(replace(TRUTH, failed=failed)), ["r=16 lr=0.001"])
    lower = asked(only).trials
    assert lower
    assert all(t.is_full or t.lr * (t.alpha or 1) ** 0.75 < 1e-3 * 32**0.75 for t in lower)


def test_a_rate_beyond_the_list_is_trained_only_where_the_best_stands_at_the_end() -> None:
    """The truth rises with the rate, or has its top at the middle one, on few items, where
    that rate may be better still."""
    for accuracy, wanted in (
        (lambda rank, lr: 0.7 + 0.1 * np.log10(lr / 3e-4), True),
        (lambda rank, lr: 0.7 - 0.03 * abs(np.log10(lr / 3e-4)), False),
    ):
        truth = replace(TRUTH, ranks=(8,), full_lrs=(), num_items=100, accuracy=accuracy)
        study = synthetic_study(truth)
        higher = [
            trial.spec.model_copy(update={"lr": 2e-3, "trial_id": f"more-{trial.spec.seed}"})
            for trial in study.trials
            if trial.spec.lr == 1e-3
        ]
        every = [trial.spec.arm_label for trial in study.trials]
        found = next_round(begun(study, every), "med", [], higher)
        assert (labels(found.trials) == ["r=8 lr=0.002"]) == wanted


def test_finalists_are_two_ranks_and_full_fine_tuning() -> None:
    found = finalists(begun(synthetic_study(TRUTH), CROSS), "med")
    assert len({arm.summary.rank for arm in found if arm.summary.rank}) >= 2
    assert any(arm.summary.is_full for arm in found)


def test_a_search_loses_less_than_as_many_random_trials() -> None:
    """Four studies."""
    lost = []
    for seed in range(4):
        drawn = Drawn(WORLDS["random"], seed)
        budget = round(0.235 * len(drawn.listed))
        sides = play_search(drawn, budget), play_random(drawn, budget, seed)
        lost.append([judge(drawn, side)["lost"] for side in sides])
        assert sides[0].trainings <= budget
    ours, theirs = np.array(lost).mean(axis=0)
    assert 0 <= ours < theirs


def test_a_search_of_a_narrow_list_trains_beyond_its_end() -> None:
    drawn = Drawn(WORLDS["narrow list of rates"], 1)
    found = play_search(drawn, 12, drawn.beyond).records
    assert drawn.beyond & {t.spec.trial_id for t in found.trials if t.status == "done"}
    assert not drawn.beyond <= {t.spec.trial_id for t in found.trials}
