"""The choice of an arm on the validation split."""

import dataclasses

import numpy as np
import pytest
from advice import advise, texts
from synthetic_study import Truth, synthetic_study, with_scores

from rankscope.advise.arms import summarize_arms
from rankscope.advise.recommend import recommend
from rankscope.advise.select import ArmChoice, choose, choose_for
from rankscope.records import BASE, EvalKey, StudyRecords


def test_the_learning_rate_is_chosen_for_each_rank() -> None:
    best = {4: 2e-3, 32: 5e-4}

    def accuracy(rank: int | None, lr: float) -> float:
        return 0.3 if rank is None else (0.9 if rank == 32 else 0.7) - 0.3 * (lr != best[rank])

    advice = advise(Truth(ranks=(4, 32), lrs=(5e-4, 1e-3, 2e-3), accuracy=accuracy, full_lrs=()))
    assert (advice.chosen.rank, advice.chosen.lr) == (32, 5e-4)
    assert "lowest of the 3 tried" in texts(advice, "caveat")
    assert "one learning rate" not in texts(advice, "caveat")


def test_forgetting_is_traded_by_the_objective() -> None:
    truth = Truth(
        ranks=(2, 32),
        accuracy=lambda rank, lr: 0.9 if rank is None or rank == 32 else 0.7,
        forgetting=lambda rank, lr: 0.6 if rank is None or rank == 32 else 0.0,
    )
    assert (advise(truth).chosen or pytest.fail("no arm")).rank == 2
    careless = dataclasses.replace(truth, objective={"retention": 0.0})
    assert (advise(careless).chosen or pytest.fail("no arm")).rank == 32
    limited = dataclasses.replace(careless, objective={"retention": 0.0, "max_forgetting": 0.1})
    assert (advise(limited).chosen or pytest.fail("no arm")).rank == 2


def test_a_smaller_rank_left_out_for_being_below_the_base_is_not_denied() -> None:
    """r = 2 may come within the margin of r = 8, yet below zero utility it is not as good."""
    truth = Truth(
        ranks=(2, 8),
        full_lrs=(),
        accuracy=lambda rank, lr: 0.605,
        forgetting=lambda rank, lr: 0.0,
        base_accuracy=0.6,
    )
    seen = 0
    for seed in range(20):
        study = synthetic_study(truth, seed)
        advice = recommend(study).advice[0]
        base = study.items[BASE, "med", "validation"].scores.mean()
        small, large = (
            (a.validation_score or 0) - base - (a.validation_forgetting or 0) for a in advice.arms
        )
        if small <= 0 < large and large - small < 0.02:
            seen += 1
            assert "no smaller rank with a net gain above zero" in texts(advice, "choice")
    assert seen > 0


def test_where_the_best_rank_is_the_smallest_no_smaller_one_is_spoken_of() -> None:
    falling = Truth(accuracy=lambda rank, lr: 0.9 if rank == 2 else 0.6)
    assert "; no smaller rank was tried." in texts(advise(falling), "choice")
    rising = advise(Truth(accuracy=lambda rank, lr: 0.9 if rank == 32 else 0.6))
    assert "; no smaller rank with a net gain above zero comes within" in texts(rising, "choice")
    assert "; no LoRA arm was tried." in texts(advise(Truth(ranks=())), "choice")


def test_cost_breaks_what_scores_do_not() -> None:
    truth = Truth(ranks=(2, 32), accuracy=lambda r, lr: 0.9 if r != 2 else 0.85, retention=())
    assert (advise(truth).chosen or pytest.fail("no arm")).rank == 32
    dear = dataclasses.replace(truth, objective={"cost": 0.2})
    assert (advise(dear).chosen or pytest.fail("no arm")).rank == 2


def test_diverging_seeds_count_against_their_arm() -> None:
    """r = 32 is best where it lives, but two of its three seeds diverge."""
    truth = Truth(
        ranks=(8, 32),
        full_lrs=(),
        accuracy=lambda rank, lr: 0.9 if rank == 32 else 0.8,
        failed={(32, 1e-3, 0): "diverged", (32, 1e-3, 1): "diverged"},
    )
    advice = advise(truth)
    assert advice.chosen.rank == 8
    assert "2 of 6 trials failed" in texts(advice, "caveat")
    assert {a.rank: a.failed for a in advice.arms} == {8: 0, 32: 2}


def test_a_rate_that_only_diverged_was_tried() -> None:
    truth = Truth(
        ranks=(8,),
        lrs=(1e-4, 3e-4, 1e-3),
        full_lrs=(),
        accuracy=lambda rank, lr: 0.8 if lr == 3e-4 else 0.6,
        failed={(8, 1e-3, seed): "diverged" for seed in (0, 1, 2)},
    )
    advice = advise(truth)
    assert (advice.chosen or pytest.fail("no arm")).lr == 3e-4
    (check,) = (c for c in advice.checks if c.name == "learning_rate")
    assert (check.status, check.value) == ("fine", "3 learning rates tried")
    assert not [step for step in advice.next_steps if step.kind == "learning_rate"]


def test_choosing_does_not_look_at_the_test_split() -> None:
    study = synthetic_study(Truth(num_items=200))
    turned, ruined = (
        with_scores(
            study,
            lambda key, scores, rank=rank, to=to: (
                to(scores) if key[2] == "test" and rank in key[0] else scores
            ),
        )
        for rank, to in (("-32-", np.flip), ("-2-", np.zeros_like))
    )

    def chosen(of: StudyRecords) -> ArmChoice:
        (arms,) = summarize_arms(of).values()
        base = float(of.items[BASE, "med", "validation"].scores.mean())
        return choose(arms, base, of.config.objective)

    before = chosen(study)
    for altered in (turned, ruined):
        after = chosen(altered)
        assert [(c.arm.summary.label, c.utility) for c in after.candidates] == [
            (c.arm.summary.label, c.utility) for c in before.candidates
        ]
        for name in ("chosen", "best", "best_lora", "best_full"):
            one, other = getattr(before, name), getattr(after, name)
            assert one.arm.summary.label == other.arm.summary.label


TRUTH = Truth(ranks=(2, 8, 32), num_items=120, tasks=("med", "law"), retention=("general", "more"))


def test_an_arm_is_chosen_by_its_gain_on_items_that_the_base_has_too() -> None:
    """Scores that are not finite, of the arm where the base is wrong, and of the base elsewhere."""
    study = synthetic_study(dataclasses.replace(TRUTH, ranks=(8,), full_lrs=(), tasks=("med",)))
    right = study.items[BASE, "med", "validation"].scores == 1
    first = int(np.flatnonzero(right)[0])

    def unknown(key: EvalKey, scores: np.ndarray) -> np.ndarray:
        if key[1:] != ("med", "validation"):
            return scores
        known = np.arange(len(right)) != first if key[0] == BASE else right
        return np.where(known, scores, np.nan)

    altered = with_scores(study, unknown)
    kept = right & (np.arange(len(right)) != first)
    tuned = [
        study.items[t.spec.trial_id, "med", "validation"].scores[kept].mean() for t in study.trials
    ]
    (arm,) = summarize_arms(altered)["med"]
    assert arm.summary.validation_gain == pytest.approx(np.mean(tuned) - 1)
    chosen = choose_for(altered, "med", (arm,)).best
    forgotten = arm.summary.validation_forgetting
    assert chosen.utility == pytest.approx(np.mean(tuned) - 1 - forgotten)
