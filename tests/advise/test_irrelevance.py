"""Laws of irrelevance: what has nothing to do with an answer does not move it.

Studies are simulated, truths are planted. Probabilities may move by 0.05.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on
from synthetic_study import Truth, synthetic_study, with_scores

from rankscope.records import BASE, EvalKey, ItemScores, StudyRecords, TaskAdvice

MOVED = 0.05
GAINS = {0: 0.0, 4: 0.0, 8: 0.20, 32: 0.30}


def planted(
    ranks: tuple[int, ...] = (8, 32),
    items: int = 500,
    kept: int = 0,
    changed: Callable[[int, np.ndarray], np.ndarray] = lambda rank, kept: kept,
    seed: int = 0,
) -> StudyRecords:
    """A study of two splits of ``items`` right-or-wrong items, on which r = 8 gains 20 points and
    r = 32 gains 30; and of as many retention items as ``kept``, that ``changed`` makes of the
    base's."""
    truth = Truth(ranks=ranks, full_lrs=(), num_items=items, cross=(), seed_spread=0.005)
    frame = synthetic_study(truth, seed)
    rank_of = {t.spec.trial_id: t.spec.rank or 0 for t in frame.trials}
    rng = np.random.default_rng([seed, 9])
    level = {s: rng.uniform(size=items) for s in ("validation", "test")}
    found = {}
    for key, of in frame.items.items():
        model, task, split = key
        own = np.random.default_rng([seed, *map(ord, "".join(key))])
        if task == "med":
            luck = np.where(own.uniform(size=items) < 0.7, level[split], own.uniform(size=items))
            found[key] = replace(of, scores=(luck < 0.4 + GAINS[rank_of.get(model, 0)]) * 1.0)
        elif kept:
            base = (np.arange(kept) % 4 > 0).astype(float)
            scores = base if model == BASE else changed(rank_of[model], base)
            found[key] = ItemScores(of.item_ids[:kept], scores, 0 * scores, (None,) * kept)
    tasks = frame.tasks if kept else tuple(t for t in frame.tasks if t.name == "med")
    evals = {k: e for k, e in frame.evals.items() if k in found}
    return replace(frame, items=found, evals=evals, tasks=tasks)


def p_of(advice: TaskAdvice, rank: int) -> float:
    (found,) = (arm.expected.p_within_margin for arm in advice.arms if arm.rank == rank)
    return found


def test_retention_items_without_a_change_move_nothing() -> None:
    """Twenty-four items of which every model answers as many as the base, others in its place."""

    def swapped(rank: int, base: np.ndarray) -> np.ndarray:
        return np.roll(base, 1) if rank == 32 else base

    alone, beside = advice_on(planted()), advice_on(planted(kept=12, changed=swapped))
    assert (alone.chosen.rank, beside.chosen.rank) == (32, 32)
    assert abs(p_of(alone, 32) - p_of(beside, 32)) < MOVED
    net, without = (next(a for a in x.arms if a.rank == 32).expected.net for x in (beside, alone))
    assert net.value == pytest.approx(without.value, abs=0.015)


def in_nats(extra: bool, seed: int = 0) -> StudyRecords:
    """r = 4 gains 0.20 nats and loses nothing; r = 8 gains 0.40 and loses 9 points; if asked for,
    r = 32 gains 1.6 and loses 32."""
    ranks = (4, 8, 32) if extra else (4, 8)
    gains, losses = {4: 0.2, 8: 0.4, 32: 1.6}, {4: 0.0, 8: 0.09, 32: 1.5}
    truth = Truth(ranks=(4, 8, 32), full_lrs=(), num_items=400, metric="log_probability", cross=())
    frame = synthetic_study(truth, seed)
    rank_of = {t.spec.trial_id: t.spec.rank for t in frame.trials}
    rng = np.random.default_rng(seed)

    def scores(key: EvalKey, old: np.ndarray) -> np.ndarray:
        rank = rank_of.get(key[0])
        change = 0.0 if rank is None else gains[rank] if key[1] == "med" else -losses[rank]
        level = np.random.default_rng(list(map(ord, key[1] + key[2]))).normal(-2, 0.5, 400)
        return level + change + 0.05 * rng.standard_normal(400)

    study = with_scores(frame, scores)
    return replace(study, trials=tuple(t for t in study.trials if t.spec.rank in ranks))


def test_an_arm_that_nobody_would_take_does_not_turn_the_answer() -> None:
    """With shares of the largest gain it did: the gains of the others became small."""
    two, three = advice_on(in_nats(extra=False)), advice_on(in_nats(extra=True))
    assert two.chosen.rank == three.chosen.rank == 8
    for rank in (4, 8):
        ahead = three.arms[2].expected.net.value
        assert ahead < two.chosen.expected.net.value
        assert abs(p_of(two, rank) - p_of(three, rank)) < MOVED


@pytest.mark.parametrize("base", [749, 751])
def test_no_threshold_of_the_base_turns_the_answer(base: int) -> None:
    """The base is right on so many of 1,000 retention items; r = 8 loses 100 of them, r = 32 150:
    all that its 10 points of gain are worth less 5."""

    def fallen(rank: int, right: np.ndarray) -> np.ndarray:
        lost = {8: 0.10, 32: 0.15}[rank]
        own = right.copy()
        own[np.flatnonzero(right)[: round(lost * len(right))]] = 0.0
        return own

    study = planted(kept=500, changed=fallen)
    items = {
        key: replace(of, scores=of.scores + 0.0) if key[1] == "med" else of
        for key, of in study.items.items()
    }
    for key in [key for key in items if key[1] == "general"]:
        of = items[key]
        right = (np.arange(500) < round(base / 2)).astype(float)
        rank = 0 if key[0] == BASE else int(key[0].split("-")[1])
        items[key] = replace(of, scores=fallen(rank, right) if rank else right)
    advice = advice_on(replace(study, items=items))
    assert advice.chosen.rank == 32
    assert p_of(advice, 8) == pytest.approx(0.25, abs=0.25)


def test_an_arm_with_few_items_takes_none_from_the_others() -> None:
    """Thirty of a thousand items of r = 4."""
    whole, ragged = planted(ranks=(4, 8, 32)), planted(ranks=(4, 8, 32))
    items = dict(ragged.items)
    for key in [key for key in items if key[0].startswith("med-4-")]:
        of = items[key]
        items[key] = ItemScores(
            of.item_ids[:15], of.scores[:15], of.gold_logprobs[:15], of.subjects[:15]
        )
    one, other = advice_on(whole), advice_on(replace(ragged, items=items))
    assert one.chosen.rank == other.chosen.rank == 32
    assert abs(p_of(one, 32) - p_of(other, 32)) < MOVED
    for rank in (8, 32):
        before, after = (
            next(a for a in x.arms if a.rank == rank).expected.net for x in (one, other)
        )
        assert after.high - after.low < 1.1 * (before.high - before.low)


@pytest.mark.parametrize("lowest", [0.0, -0.4])
def test_an_arm_far_below_all_others_moves_no_probability(lowest: float) -> None:
    """r = 4, whose gain is nothing, or that answers nothing right."""
    for seed in range(6):
        study = planted(ranks=(4, 8, 32), seed=seed)
        if lowest:
            study = with_scores(study, lambda k, s: s * 0 if k[0].startswith("med-4-") else s)
        without = replace(study, trials=tuple(t for t in study.trials if t.spec.rank != 4))
        with_it, alone = advice_on(study), advice_on(without)
        for rank in (8, 32):
            assert abs(p_of(with_it, rank) - p_of(alone, rank)) < MOVED
            before, after = (
                next(a for a in x.arms if a.rank == rank).expected.net for x in (alone, with_it)
            )
            assert after.high - after.low < 1.25 * (before.high - before.low)


def test_the_margin_moves_no_expected_gain() -> None:
    narrow, wide = (
        advice_on(synthetic_study(Truth(ranks=(2, 8), num_items=100, objective={"margin": m})))
        for m in (0.01, 0.08)
    )
    for one, other in zip(narrow.arms, wide.arms, strict=True):
        assert one.expected.net == other.expected.net
        assert one.expected.p_within_margin <= other.expected.p_within_margin


def copied(study: StudyRecords, distinct: int) -> StudyRecords:
    """The study whose items of both splits are copies of their first ``distinct`` ones."""

    def ids(old: tuple[str, ...]) -> tuple[str, ...]:
        number = [1 + k // distinct for k in range(len(old))]
        firsts = [old[k % distinct] for k in range(len(old))]
        return tuple(f if n == 1 else f"{f}.{n}" for f, n in zip(firsts, number, strict=True))

    items = {
        key: ItemScores(
            ids(of.item_ids), np.resize(of.scores[:distinct], len(of.scores)), of.gold_logprobs,
            (None,) * len(of.scores),
        )
        for key, of in study.items.items()
    }  # fmt: skip
    return replace(study, items=items)


def test_copies_of_an_item_are_one_item() -> None:
    """Twenty items asked fifty times each say as much as twenty; a single one says nothing."""
    widths = []
    for study in (planted(items=20), copied(planted(items=1000), 20)):
        (arm,) = (a for a in advice_on(study).arms if a.rank == 32)
        widths.append(arm.expected.net.high - arm.expected.net.low)
    assert widths[1] > 0.75 * widths[0]
    right = with_scores(planted(), lambda k, s: 0 * s + (k[0] != BASE))
    one = advice_on(copied(right, 1))
    assert all(arm.expected.p_better < 0.9 for arm in one.arms)
    assert one.confidence != "sure"
