"""Mitigations at an equal score: interpolation by hand, and studies whose truth is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rankscope.advise.mitigation import (
    compare_mitigations,
    forgetting_at,
    over_seeds,
    with_holm,
)
from rankscope.records import (
    BASE,
    EvalKey,
    EvalRecord,
    ItemScores,
    MitigationComparison,
    StudyRecords,
    TrialRecords,
    Variant,
)
from synthetic_study import Truth, synthetic_study

ITEMS = 1000


@pytest.mark.parametrize(
    ("gain", "forgotten"),
    [(0.0, 0.0), (0.1, 0.01), (0.2, 0.02), (0.3, 0.06), (0.4, 0.1), (0.41, 0.1), (-0.01, 0.0)],
)
def test_forgetting_between_two_strengths_is_interpolated(gain: float, forgotten: float) -> None:
    """From (.2, .02) to (.4, .1): at .3 it is .06; beyond either end what it is there."""
    found = forgetting_at([(0.0, 0.0), (0.2, 0.02), (0.4, 0.1)], gain)
    assert found == pytest.approx(forgotten)


def test_of_several_passages_the_least_forgetting_counts() -> None:
    """The gain rises to .4 and falls to .2 again, where much more is forgotten."""
    curve = [(0.0, 0.0), (0.4, 0.1), (0.2, 0.5)]
    assert forgetting_at(curve, 0.3) == pytest.approx(0.075)
    assert forgetting_at(curve, 0.4) == pytest.approx(0.1)
    assert forgetting_at([(0.2, 0.3), (0.2, 0.1)], 0.2) == pytest.approx(0.1)


def test_over_seeds_is_students_t() -> None:
    """1, 2, 3: mean 2, error 1/sqrt(3); t(.975; 2) = 4.3027."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.seeds) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    # t = 2 sqrt(3) = 3.4641 with two degrees of freedom: p = 1 - t / sqrt(2 + t^2) = .0742.
    assert found.p == pytest.approx(1 - 12**0.5 / 14**0.5, rel=1e-9)
    single = over_seeds([1.0])
    assert (single.value, single.low, single.high, single.p) == (1.0, None, None, None)


def exact(right: float) -> ItemScores:
    """Items of which exactly that share is right."""
    scores = (np.arange(ITEMS) < round(right * ITEMS)).astype(float)
    ids = tuple(f"i{i}" for i in range(ITEMS))
    return ItemScores(ids, scores, np.full(ITEMS, np.nan), (None,) * ITEMS)


def study_of(
    models: dict[str, tuple[float, float]], specs: dict[str, dict[str, Any]]
) -> StudyRecords:
    """Trials ``specs`` (id -> changes of the spec), models (id -> in-domain score, retention)."""
    blank = synthetic_study(Truth(ranks=(2,), full_lrs=(), seeds=(0,), cross=()))
    items: dict[EvalKey, ItemScores] = {}
    evals: dict[EvalKey, EvalRecord] = {}
    splits = ("selection", "report")
    for model, values in models.items():
        for task, value in zip(("med", "general"), values, strict=True):
            for split in splits:
                items[model, task, split] = exact(value)  # type: ignore[index]
                evals[model, task, split] = EvalRecord(  # type: ignore[index]
                    trial_id=model,
                    task=task,
                    split=split,
                    metric="acc",
                    score=value,  # type: ignore[arg-type]
                    standard_error=None,
                    n=ITEMS,
                    metrics={"acc": value},
                    seconds=0.0,
                    num_tokens=0,
                )
    first = blank.trials[0]
    trials = tuple(
        TrialRecords(first.spec.model_copy(update={"trial_id": trial_id, **changes}), "done")
        for trial_id, changes in specs.items()
    )
    return replace(blank, trials=trials, items=items, evals=evals)


A, B = "a" * 16, "b" * 16
HALF = Variant("scale", 0.5)


def test_a_mitigation_is_compared_with_the_plain_arm_at_its_own_gain() -> None:
    """Plain: gain .4, falls .2; at half: .3, .06. With replay: .35, .08. At .35 plain falls .13."""
    study = study_of(
        {
            BASE: (0.3, 0.8),
            A: (0.7, 0.6),
            HALF.of(A): (0.6, 0.74),
            B: (0.65, 0.72),
            HALF.of(B): (0.5, 0.78),
        },
        {A: {}, B: {"replay": "general", "replay_share": 0.1, "replay_sha256": "0"}},
    )
    (found,) = compare_mitigations(study)
    plain = next(c for c in found.curves if "replay" not in c.label)
    assert [(p.strength, p.gain, p.forgetting) for p in plain.points] == [
        (0.0, 0.0, 0.0),
        (0.5, pytest.approx(0.3), pytest.approx(0.06)),
        (1.0, pytest.approx(0.4), pytest.approx(0.2)),
    ]
    assert plain.chosen_strength == 0.5  # .3 - .06 is more than .4 - .2
    (comparison,) = found.comparisons
    assert comparison.plain == plain.label
    assert comparison.baseline == pytest.approx(0.13)
    assert comparison.difference.value == pytest.approx(0.08 - 0.13)
    assert (comparison.difference.low, comparison.beyond) == (None, 0)


def test_what_learned_more_than_the_plain_arm_keeps_its_seeds_and_grants_the_rest() -> None:
    """Plain learns .2 at most and falls .1 then; the other learns .3 and falls .04: better by .06,
    and would be by more if the plain arm had to learn the rest."""
    models = {BASE: (0.3, 0.8), A: (0.5, 0.7), HALF.of(A): (0.4, 0.75), B: (0.6, 0.76)}
    (found,) = compare_mitigations(study_of(models, {A: {}, B: {"kl_to_base": 0.1}}))
    (comparison,) = found.comparisons
    assert comparison.baseline == pytest.approx(0.1)
    assert comparison.difference.value == pytest.approx(-0.06)
    assert (comparison.beyond, comparison.difference.p_holm) == (1, None)


def test_differences_of_chance_are_not_shown_however_many_are_compared() -> None:
    """Twelve mitigations that do nothing, three seeds each: the family errs in at most 5 %."""
    rng = np.random.default_rng(0)
    studies = 400
    wrong = 0
    for _ in range(studies):
        blank = MitigationComparison(
            label="", plain="", gain=0, forgetting=0, baseline=0,
            difference=over_seeds([0.0]), beyond=0,
        )  # fmt: skip
        family = [
            blank.model_copy(update={"difference": over_seeds(rng.normal(size=3).tolist())})
            for _ in range(12)
        ]
        wrong += any((c.difference.p_holm or 1.0) < 0.05 for c in with_holm(family))
    # 20 expected; three standard deviations of the count are 13.
    assert 7 <= wrong <= 33


def test_scaling_by_layer_is_compared_with_scaling_as_a_whole() -> None:
    by_layer = Variant("layers", 0.5)
    models = {
        BASE: (0.3, 0.8),
        A: (0.7, 0.6),
        HALF.of(A): (0.5, 0.7),
        by_layer.of(A): (0.6, 0.68),
    }
    (found,) = compare_mitigations(study_of(models, {A: {}}))
    (comparison,) = found.comparisons
    assert comparison.label.endswith("layers=0.5")
    # At .3 gain, between (.2, .1) and (.4, .2), the whole forgets .15; by layer .12.
    assert comparison.difference.value == pytest.approx(-0.03)


def test_studies_without_scales_retention_or_finished_trials_have_nothing_to_compare() -> None:
    assert compare_mitigations(synthetic_study(Truth())) == ()
    models = {BASE: (0.3, 0.8), A: (0.7, 0.6), HALF.of(A): (0.5, 0.7)}
    study = study_of(models, {A: {}})
    assert len(compare_mitigations(study)) == 1
    assert compare_mitigations(replace(study, tasks=study.tasks[:1])) == ()
    unfinished = tuple(replace(t, status="failed") for t in study.trials)
    assert compare_mitigations(replace(study, trials=unfinished)) == ()
