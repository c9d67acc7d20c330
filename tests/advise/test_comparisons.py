"""Net differences, families of tests, clusters, and comparisons between ranks."""

import dataclasses

import numpy as np
import pytest
from advice import arms_by_label
from synthetic_study import Truth, synthetic_study

from rankscope.advise.arms import Arm, summarize_arms
from rankscope.advise.comparisons import arm_difference, net_difference
from rankscope.advise.recommend import recommend
from rankscope.advise.statistics.estimates import clustered_standard_error
from rankscope.advise.statistics.matching import cluster_labels
from rankscope.advise.statistics.significance import holm
from rankscope.records import BASE, StudyRecords

TRUTH = Truth(ranks=(2, 8, 32), num_items=120, tasks=("med", "law"), retention=("general", "more"))


def mean(study: StudyRecords, arm: Arm, task: str) -> float:
    return float(np.mean([study.items[t.spec.trial_id, task, "test"].scores for t in arm.trials]))


def test_the_net_difference_is_the_weighted_sum_of_its_parts() -> None:
    study = synthetic_study(TRUTH)
    arms = arms_by_label(study)
    lora, full = arms["r=2 lr=0.001"], arms["full lr=0.0005"]
    score = mean(study, lora, "med") - mean(study, full, "med")
    kept = np.mean([mean(study, lora, n) - mean(study, full, n) for n in ("general", "more")])
    found = net_difference(study, lora, full, (1.0, 0.5))
    assert found.value == pytest.approx(score + 0.5 * kept)
    assert found.n == 360
    against_base = net_difference(study, lora, None, (1.0, 0.5))
    expected = lora.summary.gain.value - 0.5 * lora.summary.forgetting.value
    assert against_base.value == pytest.approx(expected)
    score_alone = net_difference(study, lora, full, (1.0, 0.0))
    assert score_alone is not None
    assert score_alone == arm_difference(study, lora, full, "med")


def test_a_net_difference_is_of_trials_that_have_all_scores() -> None:
    gone = frozenset({("med r=2 lr=0.001 seed=0", "more")})
    study = synthetic_study(dataclasses.replace(TRUTH, missing=gone))
    arms = arms_by_label(study)
    found = net_difference(study, arms["r=2 lr=0.001"], None, (1.0, 1.0))
    assert found.seeds == 2
    nowhere = dataclasses.replace(
        TRUTH, missing=frozenset((f"med r=2 lr=0.001 seed={s}", "more") for s in (0, 1, 2))
    )
    study = synthetic_study(nowhere)
    assert net_difference(study, arms_by_label(study)["r=2 lr=0.001"], None, (1.0, 1.0)) is None


def test_small_losses_that_add_up_are_clearly_worse_than_full() -> None:
    """Score and retention each too close to call, their sum is not."""
    truth = Truth(
        ranks=(8,),
        num_items=1000,
        seed_spread=0.0,
        agreement=0.9,
        accuracy=lambda rank, lr: 0.9 if rank is None else 0.884,
        forgetting=lambda rank, lr: 0.02 if rank is None else 0.036,
        objective={"margin": 0.01},
    )
    open_, named_full = 0, 0
    for seed in range(12):
        study = synthetic_study(truth, seed)
        arms = arms_by_label(study)
        lora, full = arms["r=8 lr=0.001"], arms["full lr=0.0005"]
        gap = arm_difference(study, lora, full, "med")
        net = net_difference(study, lora, full, study.config.objective.weights)
        decision = recommend(study).advice[0].decision
        if net.high >= 0:
            # Not shown to be worse in what the study weighs: never "full" for that reason.
            assert decision == "use" or gap.value < 0
        elif gap.high >= 0 and net.value < -0.01:
            open_ += 1
            named_full += decision == "use_full"
    # Of these twelve studies, those that the sum decides and no part does; all say so.
    assert named_full == open_ >= 2


def test_the_declared_family_is_all_arms_on_all_training_tasks() -> None:
    study = synthetic_study(TRUTH)
    gains = [a.summary.gain for arms in summarize_arms(study).values() for a in arms]
    found = [g for g in gains if g is not None and g.p is not None]
    assert len(found) == 8
    assert [g.p_holm for g in found] == pytest.approx(holm([g.p or 0.0 for g in found]))


def test_ranks_are_compared_with_the_next_and_with_full() -> None:
    study = synthetic_study(TRUTH)
    advice = recommend(study).advice
    (med, law) = (list(a.comparisons) for a in advice)
    ranks = [(c.first_label[:4], c.second_label[:4]) for c in med if c.kind == "ranks"]
    assert ranks == [("r=8 ", "r=2 "), ("r=32", "r=8 "), ("r=32", "r=2 ")]
    assert sum(c.kind == "full" for c in med) == 3
    arms = arms_by_label(study)
    first = next(c for c in med if c.kind == "ranks")
    expected = mean(study, arms["r=8 lr=0.001"], "med") - mean(study, arms["r=2 lr=0.001"], "med")
    assert first.difference.value == pytest.approx(expected)
    everything = [c.difference for c in [*med, *law]]
    assert [e.p_holm for e in everything] == pytest.approx(holm([e.p or 0 for e in everything]))


def test_subjects_are_clusters_where_there_are_enough() -> None:
    few = tuple(f"subject {i % 9}" for i in range(90))
    many = tuple(f"subject {i % 10}" for i in range(90))
    assert cluster_labels(few) is None
    assert cluster_labels((None,) * 90) is None
    assert cluster_labels(tuple(str(i) for i in range(90))) is None  # nobody shares one
    labels = cluster_labels(many)
    assert [len(set(labels)), labels[0] == labels[10], labels[0] == labels[1]] == [10, True, False]
    labels = cluster_labels((*many, None, None))
    assert len(set(labels)) == 12


def test_cells_have_clustered_errors() -> None:
    study = synthetic_study(dataclasses.replace(TRUTH, subjects=12))
    arm = arms_by_label(study)["r=8 lr=0.001"].summary
    assert arm.score.clusters == 12
    base = recommend(study).base
    base_scores = study.items[BASE, "med", "test"]
    assert base["med"].value == pytest.approx(base_scores.scores.mean())
    assert base["med"].standard_error == pytest.approx(
        clustered_standard_error(base_scores.scores, base_scores.subjects)
    )
    by_themselves = recommend(synthetic_study(TRUTH)).base["med"]
    assert by_themselves.clusters is None
    assert by_themselves.standard_error == pytest.approx(
        clustered_standard_error(base_scores.scores)
    )
