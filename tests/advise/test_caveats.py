"""Limits of the evidence, on studies that have them."""

from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on, advise, texts
from synthetic_study import Truth, synthetic_study, with_scores, with_tasks, with_trials

from rankscope.advise.recommend import recommend
from rankscope.advise.statistics.estimates import paired_estimate
from rankscope.advise.statistics.power import detectable
from rankscope.records import BASE, LossPoint, StudyRecords, TaskAdvice, TrialRecords


def test_signs_and_limits_of_the_data() -> None:
    caveats = texts(advise(Truth(contamination=10, retention=())), "caveat")
    assert all(
        x in caveats for x in ("10 by exact match", "one learning rate", "no retention task")
    )


def test_contamination_of_different_kinds_are_added_up() -> None:
    study = synthetic_study(Truth(num_items=1000))

    def leaking(exact: int, ngram: int) -> TaskAdvice:
        return advice_on(
            with_tasks(study, med={"contamination": {"exact": exact, "ngram13": ngram}})
        )

    # One in a hundred of 1000 rows is 10.
    assert leaking(9, 0).better_than_base.confidence == "firm"
    assert leaking(9, 9).better_than_base.confidence == "tentative"


def test_what_could_be_seen_is_said_of_the_arm_it_is_compared_with() -> None:
    """Full fine-tuning is measured by the best LoRA arm, not by the first of the grid."""
    steep = Truth(accuracy=lambda rank, lr: {None: 0.9, 2: 0.4, 8: 0.5, 32: 0.7}[rank])
    study = synthetic_study(steep)
    advice = recommend(study).advice[0]
    assert advice.decision == "use_full"
    seen = next(c for c in advice.checks if "detectable" in c.values)
    assert "full fine-tuning (lr 0.0005) and LoRA r=32" in seen.text

    def rows(method: str) -> np.ndarray:
        return np.stack(
            [
                study.items[t.spec.trial_id, "med", "test"].scores
                for t in study.trials
                if f"-{method}-" in t.spec.trial_id
            ]
        )

    gap = paired_estimate(rows("full"), rows("32"))
    assert seen.values["detectable"] == detectable(gap)


def test_a_score_of_the_base_that_is_not_finite_is_left_out() -> None:
    study = synthetic_study(
        Truth(base_accuracy=0.98, base_other=0.25, forgetting=lambda rank, lr: 0.0)
    )
    advice = advice_on(
        with_scores(
            study,
            lambda key, scores: (
                np.where(np.arange(400) < 3, np.nan, scores) if key[0] == BASE else scores
            ),
        )
    )
    kept = study.items[BASE, "med", "test"].scores[3:].mean()
    saturated = next(r for r in advice.reasons if "left to gain" in r.text)
    assert saturated.values["base"] == kept
    assert "above chance on general" in texts(advice, "caveat")


def test_arms_that_a_limit_takes_out_are_named() -> None:
    truth = Truth(
        forgetting=lambda rank, lr: 0.3 if rank is None else 0.0,
        objective={"max_forgetting": 0.1},
    )
    advice = advice_on(synthetic_study(truth))
    assert advice.decision == "use"
    caveat_text = texts(advice, "caveat")
    assert "1 arm of 4 forgot more than the 10.0 points allowed" in caveat_text
    assert "full fine-tuning (lr 0.0005)" in caveat_text


def with_rates(study: StudyRecords, rates: dict[int, tuple[float, ...]]) -> StudyRecords:
    """Of every rank only the trials at the rates given."""
    kept = [t for t in study.trials if t.spec.rank is None or t.spec.lr in rates[t.spec.rank]]
    return replace(study, trials=tuple(kept))


def test_ranks_at_rates_of_their_own_are_said_to_be_confounded() -> None:
    study = synthetic_study(Truth(ranks=(2, 8), lrs=(3e-3, 1e-3, 1e-4)))
    both = (1e-3, 1e-4)
    by_case = {
        name: texts(advice_on(with_rates(study, {2: small, 8: large})), "caveat")
        for name, small, large in (
            ("apart", (1e-3,), (1e-4,)),
            ("one", (1e-3,), (1e-3,)),
            ("part", both, (1e-4,)),
            ("shifted", (3e-3, 1e-3), both),
            ("whole", both, both),
        )
    }
    assert "(r=2 at 0.001; r=8 at 0.0001)" in by_case["apart"]
    assert "Both ranks were trained at one learning rate (0.001)" in by_case["one"]
    assert "(r=2 at 0.0001, 0.001; r=8 at 0.0001)" in by_case["part"]
    assert "(r=2 at 0.001, 0.003; r=8 at 0.0001, 0.001)" in by_case["shifted"]
    assert "between learning rates" not in by_case["whole"]


def test_a_retention_task_without_a_right_answer_cannot_show_forgetting() -> None:
    """All arms at 0 of 30 written answers: no fall is no evidence."""
    truth = Truth(
        ranks=(8,), chance=None, base_other=0.0, forgetting=lambda rank, lr: 0.0, num_items=30
    )
    advice = advise(replace(truth, seed_spread=0.0))
    (check,) = (c for c in advice.checks if c.name == "retention")
    assert check.status == "weak"
    assert "0.0 % on 30 items; guessing gives 0.0 %" in check.text
    said = " ".join((advice.verdict, advice.explanation, *(r.text for r in advice.reasons)))
    assert "no forgetting" not in said
    unclear = advise(replace(truth, base_other=0.8, forgetting=lambda rank, lr: 0.02))
    (check,) = (c for c in unclear.checks if c.name == "retention")
    assert check.value.startswith("forgetting unclear (change of \N{MINUS SIGN}")
    assert "retention may change by \N{MINUS SIGN}" in advice.explanation


def with_losses(study: StudyRecords, *losses: float) -> StudyRecords:
    """Every trial trained for as many steps, with these losses."""

    def trained(trial: TrialRecords) -> TrialRecords:
        points = tuple(
            LossPoint(step=i + 1, loss=loss, lr=1e-3, grad_norm=1.0)
            for i, loss in enumerate(losses)
        )
        train = trial.train.model_copy(update={"losses": points, "steps": len(losses)})
        return replace(trial, train=train)

    return with_trials(study, trained)


@pytest.mark.parametrize(
    ("losses", "found", "why"),
    [
        ((3.5, 3.2, 2.9, 2.6, 2.3, 2.0), "6 steps, and the loss still falls", ""),
        (
            (2.0, 2.1, 1.9, 2.0, 2.0),
            "only 5 steps",  # fewer than a trend needs
            "too few to see whether its loss has leveled off",
        ),
    ],
)
def test_few_steps_decide_nothing(losses: tuple[float, ...], found: str, why: str) -> None:
    study = synthetic_study(Truth(ranks=(8,), full_lrs=()))
    advice = advice_on(with_losses(study, *losses))
    assert (advice.decision, advice.confidence) == ("not_decided", "none")
    assert advice.verdict == f"Cannot tell yet: {found}."
    assert why in advice.explanation
    (check,) = (c for c in advice.checks if c.name == "loss")
    assert check.status == "bad"
    assert advice.next_steps[0].text.startswith("Train at least 20 steps")
    level = advice_on(with_losses(study, *[2.0, 2.1, 1.9] * 2))
    assert (level.decision, level.confidence) == ("use", "firm")


def test_a_loss_that_falls_after_enough_steps_is_named_and_weakens_no_claim() -> None:
    study = synthetic_study(Truth(ranks=(8,), full_lrs=()))

    def loss_check(*losses: float) -> tuple[str, str, str]:
        advice = advice_on(with_losses(study, *losses))
        (check,) = (c for c in advice.checks if c.name == "loss")
        return advice.confidence, check.status, check.value

    assert loss_check(*(4.0 * 0.95**i for i in range(40))) == ("firm", "weak", "still falling")
    # A loss near zero falls by half of itself, and by nothing of what it was.
    near_zero = (4.0 * 0.7**i for i in range(40))
    assert loss_check(*near_zero) == ("firm", "fine", "has settled")


@pytest.mark.parametrize(
    ("truth", "confidence"),
    [
        (Truth(), "firm"),
        (Truth(retention=()), "firm"),
        (Truth(base_other=0.25, forgetting=lambda rank, lr: 0.0), "firm"),
        (Truth(failed={(2, 1e-3, seed): "diverged" for seed in range(3)}), "firm"),
        (Truth(failed={(8, 1e-3, 0): "diverged"}), "tentative"),
        (Truth(seeds=(0, 1)), "tentative"),
        (Truth(contamination=10), "tentative"),
    ],
)
def test_a_cross_is_what_keeps_the_confidence_from_being_high(
    truth: Truth, confidence: str
) -> None:
    """An answer of high confidence has none, whatever else weakens it."""
    advice = advise(replace(truth, ranks=(2, 8), full_lrs=()))
    crosses = {check.name for check in advice.checks if check.status == "bad"}
    assert (advice.confidence, bool(crosses)) == (confidence, confidence == "tentative")
