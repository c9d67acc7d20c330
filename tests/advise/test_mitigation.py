"""Mitigations at an equal score: interpolation by hand, and studies whose truth is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study, with_tasks

from rankscope.advise.mitigation import compare_mitigations, crossing_at
from rankscope.records import (
    BASE,
    Estimate,
    EvalKey,
    EvalRecord,
    ItemScores,
    StudyRecords,
    TrialRecords,
    Variant,
)

ITEMS = 1000
STUDIES = 12


@pytest.mark.parametrize(
    ("gain", "forgotten"),
    [(0.0, 0.0), (0.1, 0.01), (0.2, 0.02), (0.3, 0.06), (0.4, 0.1), (0.41, 0.1), (-0.01, 0.0)],
)
def test_forgetting_between_two_strengths_is_interpolated(gain: float, forgotten: float) -> None:
    """From (.2, .02) to (.4, .1): at .3 it is .06; beyond either end what it is there."""
    found = crossing_at([(0.0, 0.0), (0.2, 0.02), (0.4, 0.1)], gain).forgetting
    assert found == pytest.approx(forgotten)


def test_of_several_passages_the_least_forgetting_counts() -> None:
    """The gain rises to .4 and falls to .2 again, where much more is forgotten."""
    curve = [(0.0, 0.0), (0.4, 0.1), (0.2, 0.5)]
    assert crossing_at(curve, 0.3).forgetting == pytest.approx(0.075)
    assert crossing_at(curve, 0.4).forgetting == pytest.approx(0.1)
    assert crossing_at([(0.2, 0.3), (0.2, 0.1)], 0.2).forgetting == pytest.approx(0.1)


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
    splits = ("validation", "test")
    for model, values in models.items():
        for task, value in zip(("med", "general"), values, strict=True):
            for split in splits:
                items[model, task, split] = exact(value)  # type: ignore[index]
                evals[model, task, split] = blank.evals[BASE, task, split].model_copy(  # type: ignore[index]
                    update={"trial_id": model, "score": value}
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


def drawn_study(
    rng: np.random.Generator, items: int, seeds: int, arms: int, better: float = 0.0
) -> StudyRecords:
    """Mitigated arms that forget less than the scaled plain arm by ``better``, right or wrong.

    Plain: gains 0, .2, .4 at forgetting 0, .06, .2. Mitigated: gain .3, forgetting .13 - better.
    An item is right where its difficulty, which all models share, is below a model's accuracy, or
    a draw of its own one time in four.
    """
    truth: dict[str, tuple[float, float]] = {BASE: (0.3, 0.8)}
    specs: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        plain = f"{seed:016x}"
        truth |= {plain: (0.7, 0.6), HALF.of(plain): (0.5, 0.74)}
        specs[plain] = {"seed": seed}
        for arm in range(arms):
            name = f"{arm + 1:08x}{seed:08x}"
            truth[name] = (0.6, 0.67 + better)
            specs[name] = {"seed": seed, "kl_to_base": 0.1 * (arm + 1)}
    study = study_of(truth, specs)
    ids = tuple(f"i{i}" for i in range(items))
    nothing = np.full(items, np.nan), (None,) * items
    found: dict[EvalKey, ItemScores] = {}
    for column, task in enumerate(("med", "general")):
        for split in ("validation", "test"):
            shared = rng.uniform(size=items)
            for model, accuracy in truth.items():
                own = rng.uniform(size=items)
                difficulty = np.where(rng.uniform(size=items) < 0.25, own, shared)
                scores = (difficulty < accuracy[column]).astype(float)
                found[model, task, split] = ItemScores(ids, scores, *nothing)  # type: ignore[index]
    return replace(study, items=found)


def differences(study: StudyRecords) -> list[Estimate]:
    (found,) = compare_mitigations(study)
    return [c.difference for c in found.comparisons]


def test_differences_of_chance_are_not_shown_however_many_are_compared() -> None:
    """Twelve mitigations that do nothing, three seeds, few items, so that seeds often agree."""
    rng = np.random.default_rng(0)
    families = [differences(drawn_study(rng, 12, 3, 12)) for _ in range(STUDIES)]
    shown = sum(any((d.p_holm or 1.0) < 0.05 for d in family) for family in families)
    assert shown <= 2  # of 12 at 5 % each: three or more have a probability of .02
    alike = [d for family in families for d in family]
    assert sum(d.p is not None and d.p < 0.05 for d in alike) <= 0.1 * len(alike)
    covered = [d.low <= 0 <= d.high for d in alike if d.low is not None and d.high is not None]
    assert len(covered) == len(alike)
    assert np.mean(covered) >= 0.93


def test_a_mitigation_that_helps_is_shown() -> None:
    rng = np.random.default_rng(1)
    found = [differences(drawn_study(rng, 400, 3, 1, better=0.06))[0] for _ in range(10)]
    assert np.mean([d.value for d in found]) == pytest.approx(-0.06, abs=0.015)
    assert sum(d.p is not None and d.p < 0.05 for d in found) >= 7


def test_seeds_that_agree_do_not_make_few_items_many() -> None:
    """Equal seeds have no spread; what is left is the items', as wide as sqrt(10) from 10 times."""
    widths = {}
    for items in (20, 200):
        drawn = drawn_study(np.random.default_rng(3), items, 1, 1)
        (plain, arm) = (t.spec for t in drawn.trials)
        names = {f"{s:016x}": plain.trial_id for s in range(3)}
        names |= {HALF.of(k): HALF.of(v) for k, v in names.items()}
        names |= {f"{1:08x}{s:08x}": arm.trial_id for s in range(3)} | {BASE: BASE}
        study = drawn_study(np.random.default_rng(3), items, 3, 1)
        alike = {key: drawn.items[names[key[0]], key[1], key[2]] for key in study.items}
        (found,) = differences(replace(study, items=alike))
        assert found.p > 0.01
        widths[items] = found.high - found.low
        (of_two,) = differences(replace(study, items=alike, trials=study.trials[:4]))
        assert (of_two.seeds, of_two.low, of_two.high, of_two.p) == (2, None, None, None)
    assert widths[20] / widths[200] == pytest.approx(10**0.5, rel=0.5)


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


def test_a_strength_without_weighed_scores_is_on_no_curve() -> None:
    """A gain in nats is weighed by gold log-probabilities, which one strength lacks."""
    quarter = Variant("scale", 0.25)
    models = {BASE: 0.3, A: 0.7, HALF.of(A): 0.5, quarter.of(A): 0.4}
    study = study_of({model: (score, 0.8) for model, score in models.items()}, {A: {}})
    study = with_tasks(study, med={"score_unit": "log_probability"})

    def known(*models: str) -> StudyRecords:
        items = {
            key: replace(found, gold_logprobs=np.zeros(ITEMS)) if key[0] in models else found
            for key, found in study.items.items()
        }
        return replace(study, items=items)

    (found,) = compare_mitigations(known(BASE, A, HALF.of(A)))
    assert [point.strength for point in found.curves[0].points] == [0.0, 0.5, 1.0]
    assert compare_mitigations(known(BASE)) == ()
