"""What the posterior is given: against slow, obvious forms, and against a mixed model."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from advice import arms_by_label
from synthetic_study import Truth, synthetic_study, with_scores

from rankscope.advise.arms import summarize_arms
from rankscope.advise.evidence import Part, axes_of, measure, pooled
from rankscope.advise.posterior import posterior
from rankscope.advise.results import task_results
from rankscope.records import (
    BASE,
    CurvePoint,
    EvalKey,
    ItemScores,
    StopRecord,
    StudyRecords,
    TrialRecords,
    finished_trials,
)

GAIN = (Part("med", "score", 1.0),)
NET = (*GAIN, Part("general", "score", 0.4), Part("more", "gold_logprob", 0.1))
TRUTH = Truth(ranks=(2, 8, 32), full_lrs=(), num_items=30, retention=("general", "more"))
Arms = Sequence[Sequence[TrialRecords]]


def arms_of(study: StudyRecords) -> list[tuple[TrialRecords, ...]]:
    return [arm.trials for arm in arms_by_label(study).values()]


def changes(study: StudyRecords, part: Part, model: str) -> dict[tuple[str, str], float]:
    """Item -> a model's change against the base, of the items that both answered with a number."""
    field, found = {"score": "scores"}.get(part.measure, "gold_logprobs"), {}
    for split in ("validation", "test"):
        both = (study.items[m, part.task, split] for m in (BASE, model))
        base, tuned = (dict(zip(i.item_ids, getattr(i, field), strict=True)) for i in both)
        found |= {(split, i): float(tuned[i] - base[i]) for i in base.keys() & tuned.keys()}
    return {item: change for item, change in found.items() if np.isfinite(change)}


def slowly(study: StudyRecords, parts: Sequence[Part], arms: Arms) -> tuple[np.ndarray, ...]:
    """Means, item covariance, squares of seeds, noise of answers, item by item in plain loops."""
    number = len(arms)
    means, noise, covariance = np.zeros(number), np.zeros(number), np.zeros((number, number))
    by_seed = [np.zeros(len(finished_trials(trials))) for trials in arms]
    for part in parts:
        bases = {s: study.items[BASE, part.task, s] for s in ("validation", "test")}
        subjects = {
            (s, i): x for s, b in bases.items() for i, x in zip(b.item_ids, b.subjects, strict=True)
        }
        is_clustered = len(set(subjects.values())) >= 10
        is_binary = part.measure == "score" and set(bases["test"].scores) <= {0.0, 1.0}
        units: list[dict[object, float]] = []
        answered: list[int] = []
        for a, trials in enumerate(arms):
            models = [changes(study, part, t.spec.trial_id) for t in finished_trials(trials)]
            kept = sorted(set.intersection(*map(set, models)))
            n, mean = len(kept), np.mean([[m[i] for i in kept] for m in models])
            of_seed = [np.mean([m[i] for i in kept]) for m in models]
            of_item = {i: np.mean([m[i] for m in models]) for i in kept}
            answered.append(n)
            means[a] += part.weight * mean
            by_seed[a] += part.weight * np.array(of_seed)
            left = [
                (m[i] - of_item[i] - s + mean) ** 2
                for m, s in zip(models, of_seed, strict=True)
                for i in kept
            ]
            noise[a] += part.weight**2 * sum(left) / max(1, len(models) - 1) / (n - 1) / n
            covariance[a, a] += part.weight**2 * 2 / (n + 2) ** 2 * is_binary
            sums: dict[object, float] = {}
            for i in kept:
                unit = subjects[i] if is_clustered else i
                sums[unit] = sums.get(unit, 0.0) + of_item[i] - mean
            # U / (U - 1), and Student's t has the variance (U - 1) / (U - 3).
            widen = len(sums) / (len(sums) - 3)
            units.append({unit: total * widen**0.5 / n for unit, total in sums.items()})
        own = np.zeros((number, number))
        for a, b in product(range(number), repeat=2):
            shared = units[a].keys() & units[b].keys()
            own[a, b] = sum(units[a][u] * units[b][u] for u in shared)
        pairs = list(permutations(range(number), 2))
        alike = {(a, b): own[a, b] / (own[a, a] * own[b, b]) ** 0.5 for a, b in pairs}
        of_item = [(own[c, c] * answered[c]) ** 0.5 for c in range(number)]
        share = 1.0 if is_binary else 0.5
        middle = np.mean(np.square(of_item)) ** 0.5 if is_binary else np.median(of_item)
        error = [
            (share * middle + (1 - share) * e) / k**0.5
            for e, k in zip(of_item, answered, strict=True)
        ]
        for a, b in alike:
            own[a, b] = (alike[a, b] + np.mean([*alike.values()])) / 2 * error[a] * error[b]
        np.fill_diagonal(own, np.square(error))
        covariance += part.weight**2 * own
    return means, covariance, np.array([np.var(s) * len(s) for s in by_seed]), noise


@pytest.mark.parametrize("kind", ["whole", "clusters", "holes"])
def test_evidence_is_that_of_the_plain_loops(kind: str) -> None:
    """Holes: a failed seed, items of one model that are not finite or that it lacks."""
    failed = {(8, 1e-3, 1): "oom"} if kind == "holes" else {}
    subjects = 12 if kind == "clusters" else 1
    study = synthetic_study(replace(TRUTH, failed=failed, subjects=subjects))
    if kind == "holes":
        key = ("med-2-0.001-0", "med", "test")
        whole, order = study.items[key], np.arange(30)[::-1][4:]
        part = ItemScores(
            tuple(whole.item_ids[i] for i in order),
            whole.scores[order],
            whole.gold_logprobs[order],
            tuple(whole.subjects[i] for i in order),
        )
        study = replace(study, items={**study.items, key: part})
        lost = ("med-32-0.001-2", "general", "validation")
        study = with_scores(
            study, lambda k, s: np.where((k == lost) & (np.arange(len(s)) < 3), np.nan, s)
        )
    arms = arms_of(study)
    found, places = measure(study, NET, arms)
    assert places == (0, 1, 2)
    fields = ("means", "item_covariance", "squares", "answer_noise")
    slow = dict(zip(fields, slowly(study, NET, arms), strict=True))
    # The order of trials and of arms is none of its business.
    turned, _ = measure(study, NET, [trials[::-1] for trials in arms[::-1]])
    for field, expected in slow.items():
        assert getattr(found, field) == pytest.approx(expected, abs=1e-12)
        back = expected[::-1, ::-1] if expected.ndim == 2 else expected[::-1]
        assert getattr(turned, field) == pytest.approx(back, abs=1e-12)
    assert found.seeds.tolist() == [len(finished_trials(trials)) for trials in arms]
    assert found.axes[:, 0].tolist() == [1, 3, 5]
    assert len(set(found.kinds)) == 1


def test_means_and_errors_are_those_of_a_mixed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds and items crossed, two arms, restricted likelihood, on ten small studies; errors as
    they are before they are pooled.

    On a balanced grid it is the analysis of variance: the same differences to rounding, the same
    standard errors to the .1 % at which its search stops.
    """
    monkeypatch.setattr("rankscope.advise.evidence.pooled", lambda covariance, *_: covariance)
    truth = Truth(
        ranks=(2, 8), full_lrs=(), num_items=8, metric="log_probability", retention=(), cross=()
    )
    for seed in range(10):
        rng = np.random.default_rng(seed)
        common, own = rng.normal(size=16), rng.normal(size=(2, 16))
        frame = synthetic_study(truth)
        rank = {t.spec.trial_id: int(t.spec.rank == 8) for t in frame.trials}
        level = {t: 0.6 * rng.normal() + 0.5 * rank[t] for t in rank}

        def scores(key, old, rank=rank, level=level, common=common, own=own, rng=rng):
            place = slice(0, 8) if key[2] == "validation" else slice(8, 16)
            if key[0] == BASE:
                return 0 * old - 2
            return level[key[0]] + (common + own[rank[key[0]]])[place] + 0.4 * rng.normal(size=8)

        study = with_scores(frame, scores)
        found = measure(study, GAIN, arms_of(study))[0]
        rows = [
            (rank[t], t, f"{i}", f"{i} {rank[t]}", change)
            for t in rank
            for i, change in changes(study, GAIN[0], t).items()
        ]
        table = pd.DataFrame(rows, columns=["arm", "trial", "item", "both", "y"])
        parts = {name: f"0 + C({name})" for name in ("item", "both", "trial")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = smf.mixedlm("y ~ C(arm)", table, groups=np.ones(len(table)), vc_formula=parts)
            fitted = fitted.fit(reml=True)
        assert found.means[1] - found.means[0] == pytest.approx(
            fitted.params["C(arm)[T.1]"], abs=1e-5
        )
        items = found.item_covariance * 13 / 15  # Without the variance of Student's t
        between = (found.squares / 2 - found.answer_noise).sum() / 3
        error = (items[0, 0] + items[1, 1] - 2 * items[0, 1] + between) ** 0.5
        assert error == pytest.approx(fitted.bse["C(arm)[T.1]"], rel=1e-3)


def with_rungs(
    heights: Sequence[float], ends: Sequence[float | None], truth: Truth = TRUTH
) -> StudyRecords:
    """Arms, by default ranks, that gained ``heights`` at step 10 of 40 on five items and ``ends``
    at the end on all; None: stopped there."""
    ranks = (2, 8, 32)[: len(ends)] if truth is TRUTH else truth.ranks
    truth = replace(truth, metric="log_probability", retention=(), seeds=(0,), ranks=ranks)
    study = synthetic_study(truth)
    end = {t.spec.trial_id: e for t, e in zip(study.trials, ends, strict=True)}
    study = with_scores(study, lambda k, s: 0 * s - 2 + (end.get(k[0]) or 0.0))
    trials = []
    for trial, height in zip(study.trials, heights, strict=True):
        at_rung = {"task": "med", "step": 10, "n": 5}
        scores = (height - 2,) * 5
        point = CurvePoint.model_construct(**at_rung, item_scores=scores, gold_logprobs=scores)
        changes = {"curve": (point,)}
        if end[trial.spec.trial_id] is None:
            train = trial.train.model_copy(update={"steps": 10})
            stop = StopRecord.model_construct(num_steps=40, train=train)
            changes |= {"status": "stopped", "train": None, "stop": stop}
        trials.append(replace(trial, **changes))
    items = {k: v for k, v in study.items.items() if end.get(k[0], 0.0) is not None}
    return replace(study, trials=tuple(trials), items=items)


@pytest.mark.parametrize(
    ("heights", "ends", "net", "variance"),
    [
        # Rises of .2 and .4: their mean; 2 x .3^2 and .02 of squares over 3, for one more curve.
        ((0.3, 0.1, 0.2), (0.5, 0.5, None), 0.5, (2 * 0.09 + 0.02) / 3 * 1.5),
        ((0.3, 0.2), (0.4, None), 0.3, 0.01 * 2),  # one curve: as uncertain as it is steep
        ((0.1, 0.3), (None, None), 0.3, 0.09),  # none: as much again, either way
    ],
)
def test_a_stopped_arm_is_where_its_rung_heads_by_hand(
    heights: tuple[float, ...], ends: tuple[float | None, ...], net: float, variance: float
) -> None:
    study = with_rungs(heights, ends)
    found, places = measure(study, GAIN, arms_of(study))
    assert places == tuple(range(len(ends)))
    assert found.means[-1] == pytest.approx(net)
    assert found.extra[-1] == pytest.approx(variance, rel=1e-4)
    assert [e > 0 for e in found.extra] == [end is None for end in ends]
    flat = with_rungs([0.0] * len(ends), ends)  # A rung that shows nothing is not a certain end
    assert measure(flat, GAIN, arms_of(flat))[0].extra[-1] > 0


@pytest.mark.parametrize(("height", "chosen"), [(0.45, "r=8 lr=0.0001"), (0.9, "r=8 lr=0.001")])
def test_an_arm_that_was_trained_stands_for_its_rank(height: float, chosen: str) -> None:
    """Unless a stopped rate is expected to be ahead by the margin, .05; here by .04 and by .25."""
    truth = replace(TRUTH, ranks=(8,), lrs=(1e-4, 1e-3))
    study = with_rungs((0.3, height), (0.5, None), truth)
    results = task_results(study, "med", summarize_arms(study)["med"])
    trained, stopped = (arm.summary.expected for arm in results.arms)
    assert trained is not None
    assert stopped is not None
    assert stopped.net > trained.net
    assert [arm.summary.label for arm in results.candidates] == [chosen]


def test_few_items_that_agree_are_no_certainty_by_hand() -> None:
    """All 8 items gained: 2 / (8 + 2)^2 of variance, no covariance; a single item: 1."""
    study = synthetic_study(replace(TRUTH, num_items=4, retention=(), cross=()))
    alike = with_scores(study, lambda k, s: 0 * s + (k[0] != BASE))
    found = measure(alike, GAIN, arms_of(alike))[0]
    assert found.item_covariance == pytest.approx(0.02 * np.eye(3))
    one = synthetic_study(replace(TRUTH, num_items=1)).items
    of_one = replace(alike, items={k: v for k, v in one.items() if k[2] == "test"})
    found = measure(of_one, GAIN, arms_of(of_one))[0]
    assert np.diag(found.item_covariance) == pytest.approx([1.0] * 3)


def test_an_arm_without_a_score_on_some_part_is_left_out() -> None:
    study = synthetic_study(TRUTH)
    lost = {k: v for k, v in study.items.items() if k[:2] not in {("med-8-0.001-0", "more")}}
    found, _ = measure(replace(study, items=lost), NET, arms_of(study))
    assert found.seeds.tolist() == [3, 2, 3]
    lost = {k: v for k, v in study.items.items() if "-8-" not in k[0] or k[1] != "more"}
    assert measure(replace(study, items=lost), NET, arms_of(study))[1] == (0, 2)
    assert measure(replace(study, items={}), NET, arms_of(study)) is None
    assert measure(study, (), arms_of(study)) is None


def test_errors_are_pooled_by_hand() -> None:
    """Correlations .9, .3 and .3, mean .5; errors of 1, 1 and 5 by item, which have a median
    of 1 and a root mean square of 3."""
    variances, n = np.array([1 / 4, 1 / 9, 25 / 4]), np.array([4, 9, 4])
    correlations = np.array([[1, 0.9, 0.3], [0.9, 1, 0.3], [0.3, 0.3, 1]])
    root = np.sqrt(variances)
    expected = np.array([[1, 0.7, 0.4], [0.7, 1, 0.4], [0.4, 0.4, 1]])
    for share, errors in ((0.5, [1 / 2, 1 / 3, 3 / 2]), (1.0, [3 / 2, 1, 3 / 2])):
        found = pooled(correlations * np.outer(root, root), n, share)
        assert found == pytest.approx(expected * np.outer(errors, errors))


def test_arms_that_hardly_trained_do_not_say_that_no_arm_gains() -> None:
    """Ranks 2 and 4 answer as the base but for an item each; four others turn 24 of 120 items right
    and 12 wrong, half of them the same ones."""
    ranks = (2, 4, 8, 16, 32, 64)
    truth = Truth(ranks=ranks, full_lrs=(), seeds=(0,), num_items=60, retention=(), cross=())
    study, rng = synthetic_study(truth), np.random.default_rng(0)
    base = {s: (np.arange(60) % 2).astype(float) for s in ("validation", "test")}

    def scores(key: EvalKey, old: np.ndarray) -> np.ndarray:
        right = base[key[2]].copy()
        if key[0] != BASE:
            rank = next(t.spec.rank for t in study.trials if t.spec.trial_id == key[0])
            if rank <= 4:
                right[rank + 1] = 1 - right[rank + 1]
            else:
                own = 2 * rng.permutation(30)
                right[np.concatenate([np.arange(0, 12, 2), own[:6]])] = 1.0
                right[np.concatenate([np.arange(1, 7, 2), own[6:9] + 1])] = 0.0
        return right

    evidence, _ = measure(study := with_scores(study, scores), GAIN, arms_of(study))
    assert evidence.means[2:].min() > 0.06
    assert posterior(evidence, 0.02).draws[:, 2:].mean() > 0.4 * evidence.means[2:].mean()


def test_errors_that_grow_with_the_gains_do_not_take_the_gains_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peelle's pertinent puzzle: all items gain .3 of what they gain by the best arm, or .4 of it,
    and so on. Errors as they are before they are pooled leave a fifth of the gains."""
    ranks = (1, 2, 4, 8, 16, 32, 64, 128)
    truth = Truth(
        ranks=ranks, full_lrs=(), seeds=(0,), num_items=60, metric="log_probability", retention=()
    )
    study, rng = synthetic_study(truth), np.random.default_rng(0)
    gains = {s: 1 + 3 * rng.normal(size=60) for s in ("validation", "test")}
    share = {t.spec.trial_id: 0.3 + 0.1 * ranks.index(t.spec.rank) for t in study.trials}

    def scores(key: EvalKey, old: np.ndarray) -> np.ndarray:
        noise = 0.1 * rng.normal(size=60) if key[0] in share else 0.0
        return -9 + share.get(key[0], 0.0) * gains[key[2]] + noise

    study = with_scores(study, scores)
    left = []
    for rule in (pooled, lambda covariance, *_: covariance):
        monkeypatch.setattr("rankscope.advise.evidence.pooled", rule)
        evidence, _ = measure(study, GAIN, arms_of(study))
        left.append(posterior(evidence, 0.05).draws.mean() / evidence.means.mean())
    assert left[0] > 0.6
    assert left[1] < 0.3


def test_a_rate_counts_by_what_it_does_at_an_alpha_of_1() -> None:
    """By hand: 1e-3 x 16^.75 is 8e-3, and so is 1e-3 / 4^.75 at alpha 64; rsLoRA scales by
    alpha / sqrt(r), as LoRA does with sqrt(r) times the alpha. Without alpha the rate is the rate;
    an unknown one counts as 1."""
    one = arms_of(synthetic_study(TRUTH))[0]
    spec = one[0].spec.model_copy(update={"rank": 16, "alpha": 16.0, "lr": 1e-3, "rows": 32})

    def at(**changes: object) -> tuple[float, ...]:
        return axes_of(spec.model_copy(update=changes), one)

    assert at() == pytest.approx((4, 5, np.log10(8e-3)))
    assert at(alpha=64.0, lr=1e-3 / 4**0.75) == pytest.approx(at())
    assert at(rank=64) == pytest.approx((6, 5, np.log10(8e-3)))
    assert at(method="rslora") == pytest.approx(at(alpha=64.0))
    assert at(method="full", rank=None, alpha=None) == pytest.approx((0, 5, -3))
    assert at(lr=0.0) == pytest.approx((4, 5, np.log10(8)))
    assert at(rows=None)[1] == pytest.approx(np.log2(one[0].training.rows))


def test_errors_beside_those_of_a_broken_arm_are_a_covariance() -> None:
    """On the items by which two arms gain, a third falls and errs a hundredfold."""
    truth = Truth(ranks=(2, 8, 32), full_lrs=(), seeds=(0,), metric="log_probability", cross=())
    study, rng = synthetic_study(truth), np.random.default_rng(0)
    shared, size = {s: rng.normal(size=400) for s in ("validation", "test")}, {2: 1, 8: 2, 32: -100}
    ranks = {t.spec.trial_id: t.spec.rank for t in study.trials}

    def scores(key: EvalKey, old: np.ndarray) -> np.ndarray:
        rank = ranks.get(key[0])
        return -9 + (size[rank] * (0.1 + shared[key[2]]) if rank else 0 * old)

    study = with_scores(study, scores)
    changes = measure(study, Part("med", 1.0), arms_of(study)).changes
    assert changes.means[2] < -1 < changes.means[0]
    sizes = np.linalg.eigvalsh(changes.item_covariance)
    assert sizes.min() > -1e-9 * sizes.max()
