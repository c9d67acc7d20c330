"""Mitigations at an equal score: interpolation by hand, and studies whose truth is known."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study

from rankscope.extensions.variants.results import (
    MitigationComparison,
    compare_mitigations,
    crossing_at,
    scaling_curves,
)
from rankscope.records import (
    BASE,
    Estimate,
    EvalRecord,
    ItemScores,
    StudyRecords,
    TrialRecords,
    Variant,
)

ITEMS = 1000
SPLITS, TASKS = ("validation", "test"), ("med", "general")
A, B = "a" * 16, "b" * 16
HALF = {trial: Variant(trial, "scale", 0.5) for trial in (A, B)}
Models = dict[Any, tuple[float, float]]
Specs = dict[str, dict[str, Any]]


RISING = [("", 0, 0), ("", 0.2, 0.02), ("", 0.4, 0.1)]
FALLING = [("", 0, 0), ("", 0.4, 0.1), ("", 0.2, 0.5)]
GAINS = {-0.01: 0, 0: 0, 0.1: 0.01, 0.2: 0.02, 0.3: 0.06, 0.4: 0.1, 0.41: 0.1}


def test_forgetting_between_two_strengths_is_interpolated() -> None:
    """From (.2, .02) to (.4, .1): at .3 it is .06; beyond either end what it is there. Where the
    gain falls to .2 again and much more is forgotten, the least counts."""
    found = {gain: crossing_at(RISING, gain).forgetting for gain in GAINS}
    assert found == pytest.approx(GAINS)
    assert crossing_at(FALLING, 0.3).forgetting == pytest.approx(0.075)
    assert crossing_at([("", 0.2, 0.3), ("", 0.2, 0.1)], 0.2).forgetting == pytest.approx(0.1)


def exact(right: float) -> np.ndarray:
    """Items of which exactly that share is right."""
    return (np.arange(ITEMS) < round(right * ITEMS)).astype(float)


def study_of(
    models: Models,
    specs: Specs,
    scores: Callable[[str, float], np.ndarray] = lambda place, value: exact(value),
) -> StudyRecords:
    """Trials ``specs`` (id -> changes of the spec), models (id -> in-domain score, retention)."""
    blank = synthetic_study(Truth(ranks=(2,), full_lrs=(), seeds=(0,), cross=()))
    items, evals = {}, dict[Any, EvalRecord]()
    for (column, task), split, model in product(enumerate(TASKS), SPLITS, models):
        value = models[model][column]
        found, key = scores(task + split, value), (model, task, split)
        ids = tuple(f"i{i}" for i in range(len(found)))
        items[key] = ItemScores(ids, found, np.full(len(ids), np.nan), (None,) * len(ids))
        update = {"trial_id": model, "score": value}
        evals[key] = blank.evals[BASE, task, split].model_copy(update=update)
    spec = blank.trials[0].spec
    trials = tuple(
        TrialRecords(spec.model_copy(update={"trial_id": trial_id, **changes}), "done")
        for trial_id, changes in specs.items()
    )
    return replace(blank, trials=trials, items=items, evals=evals)


BASE_AND_PLAIN: Models = {BASE: (0.3, 0.8), A: (0.7, 0.6), HALF[A]: (0.6, 0.74)}


def comparison(models: Models, specs: Specs) -> MitigationComparison:
    (of_one,) = compare_mitigations(study_of(models, specs), "med")
    return of_one


def test_a_mitigation_is_compared_with_the_plain_arm_at_its_own_gain() -> None:
    """Plain: gain .4, falls .2; at half: .3, .06. With replay: .35, .08. At .35 plain falls .13."""
    replayed = {**BASE_AND_PLAIN, B: (0.65, 0.72), HALF[B]: (0.5, 0.78)}
    specs: Specs = {A: {}, B: {"replay": "general", "replay_share": 0.1, "replay_sha256": "0"}}
    found = comparison(replayed, specs)
    assert (found.baseline, found.difference.value) == pytest.approx((0.13, 0.08 - 0.13))
    assert (found.difference.low, found.beyond) == (None, 0)
    plain = scaling_curves(study_of(replayed, specs), "med")[found.plain]
    points = [(p.strength, p.gain, p.forgetting) for p in plain]
    assert np.array(points) == pytest.approx(np.array([(0, 0, 0), (0.5, 0.3, 0.06), (1, 0.4, 0.2)]))
    # On the validation split .3 - .06 is more than .4 - .2.
    assert max(plain, key=lambda p: p.net).strength == 0.5
    # More learned than plain ever does: its forgetting at its largest gain counts.
    more = comparison({**BASE_AND_PLAIN, B: (0.8, 0.76)}, {A: {}, B: {"kl_to_base": 0.1}})
    assert (more.baseline, more.difference.value) == pytest.approx((0.2, 0.04 - 0.2))
    assert (more.beyond, more.difference.low) == (1, None)


def drawn_study(
    rng: np.random.Generator, items: int, arms: int, better: float = 0.0
) -> StudyRecords:
    """Three seeds of arms that forget less than the scaled plain arm by ``better``.

    Plain: gains 0, .2, .4 at forgetting 0, .06, .2. Mitigated: gain .3, forgetting .13 - better.
    An item is right where its difficulty, which all models share, is below a model's accuracy, or
    a draw of its own one time in four.
    """
    truth, specs = {BASE: (0.3, 0.8)}, dict[str, dict[str, Any]]()
    for seed in range(3):
        plain = f"{seed:016x}"
        truth |= {plain: (0.7, 0.6), Variant(plain, "scale", 0.5): (0.5, 0.74)}
        specs[plain] = {"seed": seed}
        for arm in range(arms):
            name = f"{arm + 1:08x}{seed:08x}"
            truth[name] = (0.6, 0.67 + better)
            specs[name] = {"seed": seed, "kl_to_base": 0.1 * (arm + 1)}
    shared = {task + split: rng.uniform(size=items) for task, split in product(TASKS, SPLITS)}

    def scores(place: str, value: float) -> np.ndarray:
        own = rng.uniform(size=items)
        return (np.where(rng.uniform(size=items) < 0.25, own, shared[place]) < value).astype(float)

    return study_of(truth, specs, scores)


def differences(study: StudyRecords) -> list[Estimate]:
    return [c.difference for c in compare_mitigations(study, "med")]


def test_intervals_hold_where_nothing_helps_and_exclude_zero_where_something_does() -> None:
    """Twelve mitigations that do nothing, few items, so that seeds often agree; then one of 6
    points on 400 items."""
    rng = np.random.default_rng(0)
    families = [differences(drawn_study(rng, 12, 12)) for _ in range(12)]
    alike = [d for family in families for d in family]
    assert np.mean([d.low <= 0 <= d.high for d in alike]) >= 0.93
    found = [differences(drawn_study(rng, 400, 1, better=0.06))[0] for _ in range(10)]
    assert np.mean([d.value for d in found]) == pytest.approx(-0.06, abs=0.015)
    assert sum(d.is_below(0) for d in found) >= 7


def test_without_scales_retention_finished_trials_or_weighed_scores_nothing_is_compared() -> None:
    study = study_of(BASE_AND_PLAIN | {B: (0.65, 0.72)}, {A: {}, B: {"kl_to_base": 0.1}})
    unfinished = tuple(replace(t, status="failed") for t in study.trials)
    without = (
        synthetic_study(Truth()),
        replace(study, tasks=study.tasks[:1]),
        replace(study, trials=unfinished),
    )
    found = [(scaling_curves(s, "med"), compare_mitigations(s, "med")) for s in (study, *without)]
    assert [len(part) for part in found[0]] == [1, 1]
    assert found[1:] == [({}, [])] * 3
