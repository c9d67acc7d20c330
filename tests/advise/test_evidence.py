"""What the posterior is given: against slow, obvious forms, numbers by hand and planted truths."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from advice import arms_by_label, evidence
from scipy import stats
from synthetic_study import Truth, synthetic_study, with_scores

from rankscope.advise.evidence import Measured, Part, axes_of, measure, pooled, seed_correlation
from rankscope.advise.net_gains import draw_changes, net_gains
from rankscope.advise.posterior import Changes, posterior
from rankscope.records import BASE, EvalKey, ItemScores, StudyRecords, TrialRecords, finished_trials

GAIN, KEPT = Part("med", 1.0), Part("general", 0.4)
TRUTH = Truth(
    ranks=(2, 8, 32),
    full_lrs=(),
    num_items=30,
    accuracy=lambda rank, lr: 0.5 + 0.02 * np.log2(rank),
)
Arms = Sequence[Sequence[TrialRecords]]


def arms_of(study: StudyRecords) -> list[tuple[TrialRecords, ...]]:
    return [arm.trials for arm in arms_by_label(study).values()]


def changes_of(study: StudyRecords, part: Part = GAIN) -> Changes:
    found = measure(study, part, arms_of(study))
    assert found is not None
    return found.changes


def answered(items: ItemScores, places: Sequence[int]) -> ItemScores:
    """Some of the items, in another order perhaps."""
    return ItemScores(
        tuple(items.item_ids[i] for i in places),
        items.scores[places],
        items.gold_logprobs[places],
        tuple(items.subjects[i] for i in places),
    )


def by_item(study: StudyRecords, task: str, model: str) -> dict[tuple[str, str], float]:
    """Item -> a model's change against the base, of the items that both answered with a number."""
    found = {}
    for split in ("validation", "test"):
        both = (study.items[m, task, split] for m in (BASE, model))
        base, tuned = (dict(zip(i.item_ids, i.scores, strict=True)) for i in both)
        found |= {(split, i): float(tuned[i] - base[i]) for i in base.keys() & tuned.keys()}
    return {item: change for item, change in found.items() if np.isfinite(change)}


def slowly(study: StudyRecords, task: str, arms: Arms) -> tuple[np.ndarray, ...]:
    """Means, item covariance, squares of seeds, noise of answers, item by item in plain loops."""
    bases = {s: study.items[BASE, task, s] for s in ("validation", "test")}
    subjects = {
        (s, i): x for s, b in bases.items() for i, x in zip(b.item_ids, b.subjects, strict=True)
    }
    is_binary = set(bases["test"].scores) <= {0.0, 1.0}
    means, squares, noise, kept, sums, stretch = [], [], [], [], [], []
    for trials in arms:
        models = [by_item(study, task, t.spec.trial_id) for t in finished_trials(trials)]
        items = sorted(set.intersection(*map(set, models)))
        n, mean = len(items), np.mean([[m[i] for i in items] for m in models])
        of_seed = [np.mean([m[i] for i in items]) for m in models]
        of_item = {i: np.mean([m[i] for m in models]) for i in items}
        left = [
            (m[i] - of_item[i] - s + mean) ** 2
            for m, s in zip(models, of_seed, strict=True)
            for i in items
        ]
        means.append(mean)
        squares.append(np.var(of_seed) * len(of_seed))
        noise.append(sum(left) / max(1, len(models) - 1) / (n - 1) / n)
        units: dict[object, float] = {}
        for i in items:
            unit = subjects[i] if len(set(subjects.values())) > 1 else i
            units[unit] = units.get(unit, 0.0) + of_item[i] - mean
        u = len(units)
        stretch.append(stats.t(u - 1).ppf(0.975) / stats.norm.ppf(0.975))
        wider = stretch[-1] * (u / (u - 1)) ** 0.5
        sums.append({unit: total * wider / n for unit, total in units.items()})
        kept.append(items)
    number, n = len(arms), np.array([len(items) for items in kept])
    own, shared = np.zeros((2, number, number))
    for a, b in product(range(number), repeat=2):
        own[a, b] = sum(sums[a][u] * sums[b][u] for u in sums[a].keys() & sums[b].keys())
        shared[a, b] = len({*kept[a]} & {*kept[b]}) / (n[a] * n[b]) ** 0.5
    pairs = list(permutations(range(number), 2))
    alike = {(a, b): own[a, b] / (own[a, a] * own[b, b]) ** 0.5 for a, b in pairs}
    usual = sum(alike.values()) / sum(shared[pair] for pair in pairs)
    error = np.sqrt(np.diag(own) * n)
    error = np.mean(error**2) ** 0.5 + 0 * error if is_binary else (np.median(error) + error) / 2
    for (a, b), correlation in alike.items():
        mean = (correlation + usual * shared[a, b]) / 2
        own[a, b] = mean * error[a] * error[b] / (n[a] * n[b]) ** 0.5
    np.fill_diagonal(own, error**2 / n + 2 * (np.array(stretch) / (n + 2)) ** 2 * is_binary)
    return np.array(means), own, np.array(squares), np.array(noise)


@pytest.mark.parametrize("kind", ["whole", "clusters", "holes", "nats"])
def test_evidence_is_that_of_the_plain_loops(kind: str) -> None:
    """Holes: a failed seed, items of one model that are not finite or that it lacks."""
    failed = {(8, 1e-3, 1): "oom"} if kind == "holes" else {}
    metric = "log_probability" if kind == "nats" else "accuracy"
    subjects = 12 if kind == "clusters" else 1
    study = synthetic_study(replace(TRUTH, failed=failed, subjects=subjects, metric=metric))
    if kind == "holes":
        key = ("med-2-0.001-0", "med", "test")
        part = answered(study.items[key], np.arange(30)[::-1][4:])
        study = replace(study, items={**study.items, key: part})
        lost = ("med-32-0.001-2", "general", "validation")
        study = with_scores(
            study, lambda k, s: np.where((k == lost) & (np.arange(len(s)) < 3), np.nan, s)
        )
    arms = arms_of(study)
    for part in (GAIN, KEPT):
        measured, turned = (
            measure(study, part, arms),
            measure(study, part, [a[::-1] for a in arms[::-1]]),
        )
        assert measured is not None
        assert turned is not None
        found, back = measured.changes, turned.changes.part(np.array([2, 1, 0]))
        fields = ("means", "item_covariance", "squares", "answer_noise")
        for field, slow in zip(fields, slowly(study, part.task, arms), strict=True):
            assert getattr(found, field) == pytest.approx(slow, abs=1e-12)
            assert getattr(back, field) == pytest.approx(slow, abs=1e-12)
        assert measured.places == (0, 1, 2)
        assert found.seeds.tolist() == [len(finished_trials(trials)) for trials in arms]
        assert found.axes[:, 0].tolist() == [1, 3, 5]
        assert len(set(found.kinds)) == 1
        assert found.prior_mean == (0.0 if part is GAIN else -0.5)
    assert found.typical_spread == 0.35


@pytest.mark.parametrize("objective", ["dpo", "grpo"])
def test_seeds_that_learn_from_preferences_or_rewards_may_be_far_apart(objective: str) -> None:
    study = synthetic_study(TRUTH)
    train = study.config.train.model_copy(update={"objective": objective})
    study = replace(study, config=study.config.model_copy(update={"train": train}))
    assert changes_of(study).typical_spread == 3.0


def test_arms_of_other_items_share_the_error_of_those_that_both_answered() -> None:
    """All items change alike by +1 or -1 nats in both arms, of 400 items and of 30 of them: by
    hand, variances of 1 / 400 and 1 / 30, a covariance of 30 / (400 x 30)."""
    truth = replace(TRUTH, ranks=(2, 8), num_items=200, seeds=(0,), metric="log_probability")
    rises = np.tile([1.0, -1.0], 100)
    study = with_scores(synthetic_study(truth), lambda k, s: 0 * s + rises * (k[0] != BASE))
    items = {
        k: v for k, v in study.items.items() if (k[0], k[2]) != ("med-8-0.001-0", "validation")
    }
    key = ("med-8-0.001-0", "med", "test")
    study = replace(study, items={**items, key: answered(items[key], np.arange(30))})
    covariance = changes_of(study).item_covariance
    by_hand = np.array([[1 / 400, 1 / 400], [1 / 400, 1 / 30]])
    assert covariance == pytest.approx(by_hand, rel=0.15)
    assert np.array([-1, 1]) @ covariance @ [-1, 1] == pytest.approx(1 / 30 - 1 / 400, rel=0.15)


def test_pooled_errors_stay_positive_whatever_items_arms_share() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        arms, items = rng.integers(2, 6), rng.integers(6, 40)
        known = rng.uniform(size=(arms, items)) < rng.uniform(0.1, 1, (arms, 1))
        known[:, :2] = True
        size = rng.normal(size=items) * rng.lognormal(0, 1, items)
        rows = np.where(known, size + 0.3 * rng.normal(size=known.shape), 0.0)
        n = known.sum(axis=1)
        rows = np.where(known, rows - (rows.sum(axis=1) / n)[:, None], 0.0) / n[:, None]
        together = (known.astype(float) @ known.T) / np.sqrt(np.outer(n, n))
        for share in (0.5, 1.0):
            sizes = np.linalg.eigvalsh(pooled(rows @ rows.T, n, share, together))
            assert sizes[0] > -1e-12 * sizes[-1]


def test_few_passages_are_not_sure_of_a_gain_that_is_none() -> None:
    """Eight passages of 200 items, whose true changes are 0 +- 15 points, 150 times: sure either
    way in a tenth of them; as if items were independent, in more than two of five."""
    truth = replace(TRUTH, ranks=(8,), seeds=(0,), num_items=800, retention=(), cross=())
    frames = [synthetic_study(replace(truth, subjects=passages)) for passages in (8, 1)]
    rng, sure = np.random.default_rng(0), ([], [])
    for number in range(150):
        gains, drawn = 0.15 * rng.normal(size=8)[np.arange(800) % 8], {}
        for split in ("validation", "test"):
            luck, own = rng.uniform(size=(2, 800))
            tuned = np.where(rng.uniform(size=800) < 0.8, luck, own) < 0.5 + gains
            drawn |= {(True, split): luck < 0.5, (False, split): tuned}
        for frame, found in zip(frames[: 2 if number < 40 else 1], sure, strict=False):
            study = with_scores(frame, lambda k, s, d=drawn: d[k[0] == BASE, k[2]])
            p = (posterior(changes_of(study)).draws > 0).mean()
            found.append(not 0.05 < p < 0.95)
    assert np.mean(sure[0]) <= 0.14
    assert np.mean(sure[1]) > 0.4


def test_few_passages_hardly_know_the_gain() -> None:
    """Three of six passages change by +1 nats and three by -1. By hand, the variance is 1 / 5,
    wider by Student's t of five degrees. Two kinds of items are no sample: items count there."""
    for passages, by_hand in ((6, 0.2 * (2.5706 / 1.96) ** 2), (2, 1 / 59 * (2.001 / 1.96) ** 2)):
        truth = replace(TRUTH, ranks=(8,), metric="log_probability", subjects=passages)
        rises = np.tile([1.0, -1.0], 15)
        study = with_scores(
            synthetic_study(truth), lambda k, s, r=rises: 0 * s + r * (k[0] != BASE) - 2
        )
        assert changes_of(study).item_covariance == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_seeds_that_gain_and_forget_together_move_the_net_gain(sign: float) -> None:
    """Four arms far apart, of six seeds each; a lucky one changes the other task as much, one way
    or the other. So many show 24 / 28 of that correlation."""
    truth = replace(TRUTH, ranks=(2, 8, 32, 128), seeds=tuple(range(6)), metric="log_probability")
    study = synthetic_study(truth)
    luck, side = (
        0.007 * stats.zscore([1.0, -1, 2, -2, 3, -3], ddof=1),
        {"med": 1.0, "general": sign},
    )
    change = {
        t.spec.trial_id: (0.05 * (t.spec.rank or 0) ** 0.5, luck[t.spec.seed]) for t in study.trials
    }

    def scores(key: EvalKey, old: np.ndarray) -> np.ndarray:
        gain, lucky = change.get(key[0], (0.0, 0.0))
        return 0 * old - 2 + gain + lucky * side.get(key[1], 0.0)

    study = with_scores(study, scores)
    found = [measure(study, replace(p, weight=1.0), arms_of(study)) for p in (GAIN, KEPT)]
    parts = [part for part in found if part is not None]
    assert seed_correlation(parts)[0, 1] == pytest.approx(sign * 24 / 28)
    apart = [replace(part, deviations={}) for part in parts]
    assert (seed_correlation(apart) == np.eye(2)).all()
    joint, alone = (net_gains(of, draw_changes(of)[0], 0.02)[0] for of in (parts, apart))
    wider = 1 + sign * 24 / 28
    ratio = joint.draws.var(axis=0) / alone.draws.var(axis=0)
    assert ratio == pytest.approx(np.full(4, wider), abs=0.25)
    assert joint.seed_variance == pytest.approx(wider * alone.seed_variance)


def test_tasks_without_shared_seeds_err_apart() -> None:
    """Of one arm, and of one that training broke."""
    for means in ([0.1], [0.1, 0.3, 0.3, 0.3]):
        changes = evidence(means, item=0.02)
        parts = [Measured(p, changes, tuple(range(len(means))), {}) for p in (GAIN, KEPT)]
        gain, kept = (of.draws[:, 0] for of in draw_changes(parts)[0])
        assert abs(np.corrcoef(gain, kept)[0, 1]) < 0.07


def of_means(study: StudyRecords, n: int, error: float | None) -> StudyRecords:
    """The study with a mean alone of every model, of ``n`` items and with that standard error; that
    of the base is 0.02."""
    items = {
        k: replace(answered(v, [0]), scores=v.scores.mean(keepdims=True))
        for k, v in study.items.items()
        if k[2] == "test"
    }
    errors = {k: 0.02 if error and k[0] == BASE else error for k in study.evals}
    evals = {
        k: e.model_copy(update={"n": n, "standard_error": errors[k]})
        for k, e in study.evals.items()
    }
    return replace(study, items=items, evals=evals)


def test_means_without_items_are_as_sure_as_the_number_of_items_behind_them() -> None:
    study = synthetic_study(TRUTH)
    known = changes_of(of_means(study, 400, 0.015)).item_covariance
    assert known == pytest.approx(0.02**2 + 0.015**2 * np.eye(3))
    for bare in (of_means(study, 400, None), of_means(study, 1, 0.015)):
        found = changes_of(bare)
        assert (found.item_covariance == 0).all()
        assert (found.squares > 0).all()
    one = synthetic_study(replace(TRUTH, seeds=(0,)))
    assert measure(of_means(one, 400, None), GAIN, arms_of(one)) is None


def test_few_items_that_agree_are_no_certainty_by_hand() -> None:
    """All 8 items gained: 2 / (8 + 2)^2 of variance, times (2.365 / 1.960)^2 for Student's t of 7,
    and no covariance. A single item: 1."""
    study = synthetic_study(replace(TRUTH, num_items=4, seeds=(0,), retention=(), cross=()))
    study = with_scores(study, lambda k, s: 0 * s + (k[0] != BASE))
    few = 0.02 * (2.3646 / 1.96) ** 2
    assert changes_of(study).item_covariance == pytest.approx(few * np.eye(3), rel=1e-4)
    items, key = dict(study.items), ("med-32-0.001-0", "med", "test")
    del items["med-32-0.001-0", "med", "validation"]
    one = replace(study, items={**items, key: answered(items[key], [2])})
    assert np.diag(changes_of(one).item_covariance) == pytest.approx([few, few, 1.0], rel=1e-4)


def test_an_arm_without_a_score_on_a_task_is_left_out() -> None:
    study = synthetic_study(TRUTH)
    lost = {k: v for k, v in study.items.items() if k[:2] != ("med-8-0.001-0", "general")}
    assert changes_of(replace(study, items=lost), KEPT).seeds.tolist() == [3, 2, 3]
    lost = {k: v for k, v in study.items.items() if "-8-" not in k[0] or k[1] != "general"}
    found = measure(replace(study, items=lost), KEPT, arms_of(study))
    assert found is not None
    assert found.places == (0, 2)
    assert measure(replace(study, items={}), GAIN, arms_of(study)) is None


def test_errors_are_pooled_by_hand() -> None:
    """Correlations 0.9, 0.3 and 0.3, mean 0.5; errors of 1, 1 and 5 by item, which have a median
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

    found = changes_of(with_scores(study, scores))
    assert found.means[2:].min() > 0.06
    assert posterior(found).draws[:, 2:].mean() > 0.2 * found.means[2:].mean()


def test_errors_that_grow_with_the_gains_do_not_take_the_gains_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peelle's pertinent puzzle: all items gain 0.3 of what they gain by the best arm, or 0.4, and
    so on. Errors as they are before they are pooled leave a fifth of the gains."""
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
        found = changes_of(study)
        left.append(posterior(found).draws.mean() / found.means.mean())
    assert left[0] > 0.6
    assert left[1] < 0.3


def test_a_rate_counts_by_what_it_does_at_an_alpha_of_1() -> None:
    """By hand: 1e-3 x 16^0.75 is 8e-3, and so is 1e-3 / 4^0.75 at alpha 64; rsLoRA scales by
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
    assert at(rows=None)[1] == pytest.approx(np.log2(one[0].train.rows))


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
