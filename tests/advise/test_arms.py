"""Raw figures of arms and of retention's subjects: test split, items matched by their ids."""

from dataclasses import replace

import numpy as np
import pytest
from advice import arms_by_label
from synthetic_study import Truth, synthetic_study, with_scores, with_tasks

from rankscope.advise.arms import pareto_front, summarize_arms
from rankscope.advise.recommend import recommend
from rankscope.advise.statistics.matching import cluster_labels
from rankscope.records import BASE, ArmSummary, Estimate, ItemScores, trained_parts

TRUTH = Truth(ranks=(2, 8), full_lrs=(), num_items=60, tasks=("med", "law"))
TWO, EIGHT = "r=2 lr=0.001", "r=8 lr=0.001"
ANY_ARM = arms_by_label(synthetic_study(TRUTH))[TWO].summary


def test_figures_are_the_plain_means_of_the_test_items() -> None:
    study = synthetic_study(TRUTH)
    arms = arms_by_label(study)
    summary = arms[EIGHT].summary
    rows = np.stack(
        [study.items[t.spec.trial_id, "med", "test"].scores for t in arms[EIGHT].trials]
    )
    assert summary.score.value == pytest.approx(rows.mean())
    gain = rows.mean() - study.items[BASE, "med", "test"].scores.mean()
    assert summary.gain.value == pytest.approx(gain)
    assert summary.forgetting.value == -summary.retention["general"].value
    assert set(summary.transfer) == {"law", "math"}
    assert (summary.seeds, summary.failed) == (3, 0)
    moved = with_scores(study, lambda k, s: s + 0.25 * (k[2] == "validation" and k[0] != BASE))
    assert arms_by_label(moved)[EIGHT].summary == summary


def test_what_failed_or_is_missing_leaves_out_that_figure_alone() -> None:
    whole = arms_by_label(synthetic_study(TRUTH))
    lost = {("med r=8 lr=0.001 seed=0", "general")}
    lost |= {(f"med r=2 lr=0.001 seed={s}", "math") for s in (0, 1, 2)}
    failed = {(8, 1e-3, 1): "oom"}
    broken = arms_by_label(synthetic_study(replace(TRUTH, failed=failed, missing=frozenset(lost))))
    two, eight = broken[TWO].summary, broken[EIGHT].summary
    assert (eight.seeds, eight.failed, len(broken[EIGHT].trials)) == (2, 1, 3)
    assert (eight.forgetting.seeds, eight.gain.seeds) == (1, 2)
    assert set(two.transfer) == {"law"}
    for name in ("score", "forgetting", "retention"):
        assert getattr(two, name) == getattr(whole[TWO].summary, name)
    all_failed = {(8, 1e-3, seed): "diverged" for seed in (0, 1, 2)}
    none = arms_by_label(synthetic_study(replace(TRUTH, failed=all_failed)))[EIGHT].summary
    assert (none.seeds, none.failed, none.on_pareto_front) == (0, 3, False)
    assert none.score is none.gain is none.forgetting is None


def test_items_are_matched_by_id_and_must_be_finite() -> None:
    study = synthetic_study(TRUTH)
    key, order = (BASE, "med", "test"), np.arange(60)[::-1][5:]
    base = study.items[key]
    shuffled = ItemScores(
        item_ids=tuple(base.item_ids[i] for i in order),
        scores=np.where(order == 7, -np.inf, base.scores[order]),
        gold_logprobs=base.gold_logprobs[order],
        subjects=tuple(base.subjects[i] for i in order),
    )
    arm = arms_by_label(replace(study, items={**study.items, key: shuffled}))[EIGHT]
    rows = np.stack([study.items[t.spec.trial_id, "med", "test"].scores for t in arm.trials])
    kept = order[order != 7]
    expected = rows[:, kept].mean() - base.scores[kept].mean()
    assert arm.summary.gain.value == pytest.approx(expected)
    assert arm.summary.gain.n == 54


def summary(score: float | None, forgetting: float | None, parameters: int) -> ArmSummary:
    figures = {
        name: value if value is None else Estimate(value=value, low=None, high=None, n=1, seeds=1)
        for name, value in (("score", score), ("forgetting", forgetting))
    }
    return ANY_ARM.model_copy(update={**figures, "trainable_parameters": parameters})


def test_pareto_front_by_hand() -> None:
    """Beaten in score alone; better in one; equal to the first, and not beaten; without a score."""
    points = [(0.9, 0.1, 100), (0.8, 0.1, 100), (0.8, 0.0, 100), (0.8, 0.1, 50), (0.9, 0.1, 100)]
    arms = [summary(*point) for point in (*points, (None, None, 1))]
    assert pareto_front(arms) == [True, False, True, True, True, False]
    # Without forgetting for all, score and parameters decide.
    assert pareto_front([summary(0.9, None, 100), summary(0.8, 0.0, 100)]) == [True, False]


def test_what_shares_training_rows_is_neither_forgetting_nor_transfer() -> None:
    """``both`` joins ``med`` and ``general``: to a model of either it is no stranger, nor back."""
    truth = Truth(ranks=(2,), full_lrs=(), num_items=20, tasks=("med", "law", "both"))
    study = with_tasks(synthetic_study(truth), both={"parts": ("med", "general")})
    assert trained_parts(study.tasks, "both") == {"both", "med", "general"}
    assert trained_parts(study.tasks, "med") == {"med", "both"}
    of = {task: arms[0].summary for task, arms in summarize_arms(study).items()}
    assert (set(of["both"].transfer), of["both"].retention) == ({"law", "math"}, {})
    assert (set(of["med"].transfer), set(of["med"].retention)) == ({"law", "math"}, {"general"})
    assert set(of["law"].transfer) == {"med", "math", "both"}


def test_subjects_are_clusters_unless_there_are_few_or_each_has_its_own() -> None:
    four = tuple(f"s {i % 4}" for i in range(90))
    for none in (("s",) * 90, four, (None,) * 90, tuple(map(str, range(90)))):
        assert cluster_labels(none) is None
    found = cluster_labels((*(f"s {i % 5}" for i in range(90)), None, None))
    assert [len(set(found)), found[0] == found[5], found[0] == found[1]] == [7, True, False]
    copies = cluster_labels((None,) * 4, ("a", "b", "a.2", "a.3"))
    assert copies.tolist() == [0, 1, 0, 0]
    study = synthetic_study(replace(TRUTH, subjects=12))
    base, scores = recommend(study).base["med"], study.items[BASE, "med", "test"]
    mean = scores.scores.mean()
    sums = [(scores.scores - mean)[i::12].sum() for i in range(12)]  # item i modulo 12
    error = (np.square(sums).sum() * 12 / 11) ** 0.5 / len(scores.scores)
    assert (base.value, base.item_error) == pytest.approx((mean, error))
