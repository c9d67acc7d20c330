"""Arms over seeds: nothing dropped, the two splits kept apart, items matched by their ids."""

import dataclasses

import numpy as np
import pytest
from advice import arms_by_label
from synthetic_study import Truth, synthetic_study, with_scores, with_tasks

from rankscope.advise.arms import pareto_front, summarize_arms, training_tasks, transfer_tasks
from rankscope.advise.mitigation import gain_and_forgetting
from rankscope.advise.retention import retention_tasks
from rankscope.records import (
    BASE,
    ArmSummary,
    Estimate,
    ItemScores,
    Split,
    StudyRecords,
    trained_parts,
)

TRUTH = Truth(ranks=(2, 8), full_lrs=(), num_items=60, tasks=("med", "law"))


ANY_ARM = arms_by_label(synthetic_study(TRUTH))["r=2 lr=0.001"].summary


def changed(study: StudyRecords, split: Split, change: float) -> StudyRecords:
    """Every trial's scores of one split moved by ``change``."""
    return with_scores(study, lambda key, s: s + change * (key[2] == split and key[0] != BASE))


def test_figures_are_the_plain_means_of_the_items() -> None:
    study = synthetic_study(TRUTH)
    arm = arms_by_label(study)["r=8 lr=0.001"]
    rows = np.stack([study.items[t.spec.trial_id, "med", "test"].scores for t in arm.trials])
    base = study.items[BASE, "med", "test"].scores
    summary = arm.summary
    assert summary.score.value == pytest.approx(rows.mean())
    assert summary.gain.value == pytest.approx(rows.mean() - base.mean())
    assert summary.forgetting.value == -summary.retention["general"].value
    assert set(summary.transfer) == {"law", "math"}
    assert (summary.seeds, summary.failed) == (3, 0)
    validation = [study.evals[t.spec.trial_id, "med", "validation"].score for t in arm.trials]
    assert summary.validation_score == pytest.approx(np.mean(validation))
    seconds = [t.train.seconds for t in arm.trials if t.train is not None]
    assert summary.seconds == pytest.approx(np.mean(seconds))


def test_each_split_feeds_its_own_figures_only() -> None:
    study = synthetic_study(TRUTH)
    chosen_by = {"validation_score", "validation_gain", "validation_forgetting"}
    quoted = {"score", "gain", "forgetting", "transfer", "retention"}
    before = arms_by_label(study)["r=2 lr=0.001"].summary
    for split, moved, still in (
        ("validation", chosen_by, quoted),
        ("test", quoted, chosen_by),
    ):
        after = arms_by_label(changed(study, split, 0.25))["r=2 lr=0.001"].summary
        assert all(getattr(after, name) == getattr(before, name) for name in still)
        assert all(getattr(after, name) != getattr(before, name) for name in moved)


def test_failed_trials_are_counted_and_the_rest_is_unmoved() -> None:
    whole = arms_by_label(synthetic_study(TRUTH))
    broken = arms_by_label(
        synthetic_study(dataclasses.replace(TRUTH, failed={(8, 1e-3, 1): "oom"}))
    )
    assert (broken["r=8 lr=0.001"].summary.seeds, broken["r=8 lr=0.001"].summary.failed) == (2, 1)
    assert len(broken["r=8 lr=0.001"].trials) == 3
    for name in ("score", "forgetting", "transfer", "retention", "validation_score"):
        unmoved = [getattr(arms["r=2 lr=0.001"].summary, name) for arms in (broken, whole)]
        assert unmoved[0] == unmoved[1]
    gains = [arms["r=2 lr=0.001"].summary.gain for arms in (broken, whole)]
    # Its own figures stay; what Holm makes of its p depends on the other arms.
    unadjusted = [g.model_copy(update={"p_holm": None}) for g in gains if g is not None]
    assert unadjusted[0] == unadjusted[1]


def test_an_arm_with_no_finished_trial_stays_in_the_list() -> None:
    failed = {(8, 1e-3, seed): "diverged" for seed in (0, 1, 2)}
    summary = arms_by_label(synthetic_study(dataclasses.replace(TRUTH, failed=failed)))[
        "r=8 lr=0.001"
    ].summary
    assert (summary.seeds, summary.failed) == (0, 3)
    assert summary.score is summary.gain is summary.forgetting is summary.validation_score is None
    assert not summary.on_pareto_front


def test_a_missing_cell_leaves_out_that_figure_alone() -> None:
    truth = dataclasses.replace(
        TRUTH,
        missing=frozenset(
            {("med r=8 lr=0.001 seed=0", "general")}
            | {(f"med r=2 lr=0.001 seed={s}", "math") for s in (0, 1, 2)}
        ),
    )
    arms = arms_by_label(synthetic_study(truth))
    eight, two = arms["r=8 lr=0.001"].summary, arms["r=2 lr=0.001"].summary
    assert (eight.forgetting.seeds, eight.gain.seeds) == (2, 3)
    assert set(two.transfer) == {"law"}


def test_items_are_matched_by_id_not_by_position() -> None:
    study = synthetic_study(TRUTH)
    key = (BASE, "med", "test")
    base = study.items[key]
    order = np.arange(len(base.scores))[::-1][5:]
    shuffled = ItemScores(
        item_ids=tuple(base.item_ids[i] for i in order),
        scores=base.scores[order],
        gold_logprobs=base.gold_logprobs[order],
        subjects=tuple(base.subjects[i] for i in order),
    )
    other = dataclasses.replace(study, items={**study.items, key: shuffled})
    arm = arms_by_label(other)["r=8 lr=0.001"]
    rows = np.stack([study.items[t.spec.trial_id, "med", "test"].scores for t in arm.trials])
    expected = rows[:, order].mean() - base.scores[order].mean()
    assert arm.summary.gain.value == pytest.approx(expected)
    assert arm.summary.gain.n == 55


def test_scores_that_are_not_finite_are_left_out_for_all_models() -> None:
    study = synthetic_study(dataclasses.replace(TRUTH, metric="log_probability"))
    key = (study.trials[0].spec.trial_id, "med", "test")
    lost = with_scores(
        study, lambda k, s: np.where(np.arange(len(s)) == 7, -np.inf, s) if k == key else s
    )
    summary = arms_by_label(lost)["r=2 lr=0.001"].summary
    assert summary.gain.n == 59
    assert np.isfinite(summary.gain.value)


def test_forgetting_keeps_to_one_unit() -> None:
    study = synthetic_study(dataclasses.replace(TRUTH, retention=("general", "text")))
    mixed = with_tasks(study, text={"score_unit": "log_probability"})
    assert [t.name for t in retention_tasks(mixed, "med")] == ["general"]
    summary = arms_by_label(mixed)["r=2 lr=0.001"].summary
    assert summary.forgetting.value == pytest.approx(-summary.retention["general"].value)
    assert set(summary.retention) == {"general", "text"}


def test_tasks_by_what_they_show() -> None:
    study = synthetic_study(TRUTH)
    assert training_tasks(study) == ("med", "law")
    assert [t.name for t in transfer_tasks(study, "law")] == ["med", "math"]


def summary(score: float | None, forgetting: float | None, parameters: int) -> ArmSummary:
    def estimate(value: float | None) -> Estimate | None:
        return None if value is None else Estimate(value=value, low=None, high=None, n=1, seeds=1)

    figures = {
        "score": estimate(score),
        "weighed_forgetting": estimate(forgetting),
        "trainable_parameters": parameters,
    }
    return ANY_ARM.model_copy(update=figures)


def test_pareto_front_by_hand() -> None:
    arms = [
        summary(0.9, 0.1, 100),
        summary(0.8, 0.1, 100),  # beaten in score alone
        summary(0.8, 0.0, 100),
        summary(0.8, 0.1, 50),
        summary(0.9, 0.1, 100),  # equals the first: neither beats the other
        summary(None, None, 1),
    ]
    assert pareto_front(arms) == [True, False, True, True, True, False]
    # Without forgetting for all, score and parameters decide.
    assert pareto_front([summary(0.9, None, 100), summary(0.8, 0.0, 100)]) == [True, False]


def test_what_shares_training_rows_is_neither_forgetting_nor_transfer() -> None:
    """``both`` joins ``med`` and ``general``: to a model of either it is no stranger, nor back."""
    truth = Truth(ranks=(2,), full_lrs=(), num_items=20, tasks=("med", "law", "both"))
    study = synthetic_study(truth)
    study = with_tasks(study, both={"parts": ("med", "general")})
    assert trained_parts(study.tasks, "both") == {"both", "med", "general"}
    assert trained_parts(study.tasks, "med") == {"med", "both"}
    assert trained_parts(study.tasks, "law") == {"law"}
    of = {task: arms[0].summary for task, arms in summarize_arms(study).items()}
    assert set(of["both"].transfer) == {"law", "math"}
    assert (of["both"].retention, of["both"].forgetting) == ({}, None)
    assert set(of["med"].transfer) == {"law", "math"}
    assert set(of["med"].retention) == {"general"}
    assert set(of["law"].transfer) == {"med", "math", "both"}
    trials = {trial.spec.task: trial.spec.trial_id for trial in study.trials}
    assert gain_and_forgetting(study, "both", trials["both"], "test") is None
    assert gain_and_forgetting(study, "med", trials["med"], "test") is not None
