"""Net differences, families of tests, clusters, and comparisons between ranks, on studies."""

import dataclasses
from typing import Literal

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study

from rankscope.advise.arms import Arm, pareto_front, summarize_arms
from rankscope.advise.comparisons import arm_difference, net_difference
from rankscope.advise.next_steps import next_steps
from rankscope.advise.recommend import _choose, recommend
from rankscope.advise.select import choose
from rankscope.advise.statistics.estimates import clustered_standard_error
from rankscope.advise.statistics.matching import cluster_labels
from rankscope.advise.statistics.power import data_needed
from rankscope.advise.statistics.significance import holm
from rankscope.advise.task_results import TaskResults
from rankscope.advise.verdict import Verdict
from rankscope.records import BASE, EvalKey, Status, StudyRecords, TaskAdvice

TRUTH = Truth(ranks=(2, 8, 32), num_items=120, tasks=("med", "law"), retention=("general", "more"))


def by_label(study: StudyRecords) -> dict[str, Arm]:
    return {a.summary.label: a for a in summarize_arms(study)["med"]}


def mean(study: StudyRecords, arm: Arm, task: str) -> float:
    return float(np.mean([study.items[t.spec.trial_id, task, "test"].scores for t in arm.trials]))


def test_the_net_difference_is_the_weighted_sum_of_its_parts() -> None:
    study = synthetic_study(TRUTH)
    arms = by_label(study)
    lora, full = arms["r=2 lr=0.001"], arms["full lr=0.0005"]
    score = mean(study, lora, "med") - mean(study, full, "med")
    kept = np.mean([mean(study, lora, n) - mean(study, full, n) for n in ("general", "more")])
    found = net_difference(study, lora, full, (1.0, 0.5))
    assert found is not None
    assert found.value == pytest.approx(score + 0.5 * kept)
    assert found.n == 360
    against_base = net_difference(study, lora, None, (1.0, 0.5))
    assert against_base is not None
    assert lora.summary.gain is not None
    assert lora.summary.forgetting is not None
    expected = lora.summary.gain.value - 0.5 * lora.summary.forgetting.value
    assert against_base.value == pytest.approx(expected)
    score_alone = net_difference(study, lora, full, (1.0, 0.0))
    assert score_alone is not None
    assert score_alone == arm_difference(study, lora, full, "med")


def test_a_net_difference_is_of_trials_that_have_all_scores() -> None:
    gone = frozenset({("med r=2 lr=0.001 seed=0", "more")})
    study = synthetic_study(dataclasses.replace(TRUTH, missing=gone))
    arms = by_label(study)
    found = net_difference(study, arms["r=2 lr=0.001"], None, (1.0, 1.0))
    assert found is not None
    assert found.seeds == 2
    nowhere = dataclasses.replace(
        TRUTH, missing=frozenset((f"med r=2 lr=0.001 seed={s}", "more") for s in (0, 1, 2))
    )
    study = synthetic_study(nowhere)
    assert net_difference(study, by_label(study)["r=2 lr=0.001"], None, (1.0, 1.0)) is None


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
        arms = by_label(study)
        lora, full = arms["r=8 lr=0.001"], arms["full lr=0.0005"]
        gap = arm_difference(study, lora, full, "med")
        net = net_difference(study, lora, full, study.config.objective.weights)
        assert gap is not None
        assert net is not None
        assert gap.high is not None
        assert net.high is not None
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
    arms = by_label(study)
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
    assert labels is not None
    assert [len(set(labels)), labels[0] == labels[10], labels[0] == labels[1]] == [10, True, False]
    apart = cluster_labels((*many, None, None))
    assert apart is not None
    assert len(set(apart)) == 12


def test_cells_have_clustered_errors() -> None:
    study = synthetic_study(dataclasses.replace(TRUTH, subjects=12))
    arm = by_label(study)["r=8 lr=0.001"].summary
    assert arm.score is not None
    assert arm.score.clusters == 12
    base = recommend(study).base
    own = study.items[BASE, "med", "test"]
    assert base["med"].value == pytest.approx(own.scores.mean())
    assert base["med"].standard_error == pytest.approx(
        clustered_standard_error(own.scores, own.subjects)
    )
    by_themselves = recommend(synthetic_study(TRUTH)).base["med"]
    assert by_themselves.clusters is None
    assert by_themselves.standard_error == pytest.approx(clustered_standard_error(own.scores))


def test_forgetting_of_text_stands_beside_forgetting_of_answers() -> None:
    study = synthetic_study(TRUTH)
    nats = tuple(
        t.model_copy(update={"score_unit": "log_probability"}) if t.name == "more" else t
        for t in study.tasks
    )
    mixed = dataclasses.replace(study, tasks=nats)
    arms = summarize_arms(mixed)["med"]
    for arm in arms:
        summary = arm.summary
        assert summary.forgetting is not None
        assert summary.text_forgetting is not None
        assert summary.forgetting.value == pytest.approx(-summary.retention["general"].value)
        assert summary.text_forgetting.value == pytest.approx(-summary.retention["more"].value)
    summaries = [a.summary for a in arms]
    assert [s.on_pareto_front for s in summaries] == pareto_front(summaries)
    assert [s.on_text_front for s in summaries] == pareto_front(summaries, "text_forgetting")
    assert not any(a.summary.on_text_front for a in by_label(study).values())


def undecided(arm: Arm) -> Verdict:
    return Verdict("not_decided", "none", "", arm)


def needs(advice: TaskAdvice, kind: str) -> list[dict[str, float]]:
    return [n.values for n in advice.next_steps if n.kind == kind]


def test_what_is_open_says_what_would_decide_it() -> None:
    unclear = Truth(
        ranks=(8,), full_lrs=(), num_items=60, base_accuracy=0.5, accuracy=lambda r, lr: 0.56
    )
    (advice,) = recommend(synthetic_study(unclear, 1)).advice
    assert advice.decision == "not_decided"
    assert needs(advice, "items")
    assert needs(advice, "items")[0]["items"] > 60
    (rate,) = needs(advice, "learning_rate")
    assert rate["lower"] == pytest.approx(1e-3 / 10**0.5)
    one_seed = recommend(synthetic_study(dataclasses.replace(TRUTH, seeds=(0,)))).advice[0]
    assert needs(one_seed, "seeds") == [{"seeds": 3.0, "missing": 2.0}]
    firm = recommend(synthetic_study(TRUTH)).advice[0]
    assert (firm.confidence, firm.next_steps) == ("firm", ())


def test_an_arm_is_chosen_by_its_gain_on_items_that_the_base_has_too() -> None:
    """Scores that are not finite, of the arm where the base is wrong, and of the base elsewhere."""
    study = synthetic_study(dataclasses.replace(TRUTH, ranks=(8,), full_lrs=(), tasks=("med",)))
    items = dict(study.items)
    base = study.items[BASE, "med", "validation"]
    right = base.scores == 1
    for trial in study.trials:
        key: EvalKey = (trial.spec.trial_id, "med", "validation")
        scores = np.where(right, study.items[key].scores, np.nan)
        items[key] = dataclasses.replace(study.items[key], scores=scores)
    gone = base.scores.copy()
    first = int(np.flatnonzero(right)[0])
    gone[first] = np.nan
    items[BASE, "med", "validation"] = dataclasses.replace(base, scores=gone)
    altered = dataclasses.replace(study, items=items)
    kept = right & (np.arange(len(right)) != first)
    tuned = [items[t.spec.trial_id, "med", "validation"].scores[kept].mean() for t in study.trials]
    (arm,) = summarize_arms(altered)["med"]
    assert arm.summary.validation_gain == pytest.approx(np.mean(tuned) - 1)
    objective = study.config.objective
    chosen = _choose(altered, "med", (arm,), objective).best
    assert chosen is not None
    forgotten = arm.summary.validation_forgetting
    assert forgotten is not None
    assert chosen.utility == pytest.approx(np.mean(tuned) - 1 - forgotten)


def test_what_is_there_already_is_not_asked_for() -> None:
    """Many items and no gain: a gain of the margin would have been seen."""
    idle = Truth(
        ranks=(8,), full_lrs=(), num_items=4000, seed_spread=0.0, accuracy=lambda r, lr: 0.3
    )
    study = synthetic_study(idle, 0)
    (advice,) = recommend(study).advice
    (arm,) = summarize_arms(study)["med"]
    gain = arm.summary.gain
    assert gain is not None
    needed = data_needed(gain, 0.02).items
    assert needed is not None
    assert needed <= gain.n == 4000
    objective = study.config.objective
    results = TaskResults(study, "med", (arm,), choose((arm,), 0.3, objective), objective)
    enough, rate = next_steps(results, undecided(arm))
    assert "collecting more will not settle this" in enough.text
    assert (enough.values, rate.kind) == ({"effect": 0.02}, "learning_rate")
    assert not any({"items", "seeds"} & step.values.keys() for step in advice.next_steps)
    few = synthetic_study(dataclasses.replace(idle, num_items=100), 2)
    (arm,) = summarize_arms(few)["med"]
    results = dataclasses.replace(results, study=few, arms=(arm,))
    assert arm.summary.gain is not None
    (more,) = next_steps(results, undecided(arm))
    assert more.values["items"] > arm.summary.gain.n == 100


@pytest.mark.parametrize("metric", ["accuracy", "log_probability"])
def test_fewer_items_than_any_test_takes_are_asked_for(
    metric: Literal["accuracy", "log_probability"],
) -> None:
    """Of 5 items even unanimous ones have p = .0625; how many more is guessed of answers alone."""
    (advice,) = recommend(synthetic_study(Truth(num_items=5, metric=metric))).advice
    assert advice.decision == "not_decided"
    assert "the test split has 5 items" in advice.headline
    (step,) = (step for step in advice.next_steps if step.kind == "items")
    guess = "With fewer than 6 items no test can decide. About 1,963 test items would show"
    assert (guess in step.text) == (metric == "accuracy")
    assert ("if the models differed on 10 % of them" in step.text) == (metric == "accuracy")
    # (2.8016 / .02)^2 x .1
    assert step.values.get("items") == (1963 if metric == "accuracy" else None)


def test_of_items_that_all_changed_alike_nothing_is_guessed() -> None:
    study = synthetic_study(Truth(ranks=(8,), num_items=60, metric="log_probability"))
    base = {key[1:]: found.scores for key, found in study.items.items() if key[0] == BASE}
    items = {
        key: dataclasses.replace(found, scores=base[key[1:]])
        if "-8-" in key[0] or key[1] != "med"
        else dataclasses.replace(found, scores=base[key[1:]] - 0.5 * (key[0] != BASE))
        for key, found in study.items.items()
    }
    (advice,) = recommend(dataclasses.replace(study, items=items)).advice
    (asked,) = (n for n in advice.next_steps if n.kind == "items")
    assert "items" not in asked.values
    assert "all 60 test items changed by the same" in advice.headline
    assert "is unknown: it depends on how much their changes vary" in asked.text
    assert not any(word in asked.text for word in ("About", "%"))


def test_an_unknown_upper_end_is_called_unknown() -> None:
    """Rank 2 changes no item, so its interval is unknown; rank 8 loses a little."""
    study = synthetic_study(
        Truth(ranks=(2, 8), full_lrs=(), metric="log_probability", seed_spread=0.0, retention=())
    )
    noise = np.random.default_rng(0).normal(-0.001, 0.01, 400)
    items = {}
    for key, found in study.items.items():
        scores = study.items[BASE, *key[1:]].scores
        if "-8-" in key[0]:
            lead = 0.01 if key[2] == "validation" else 0.0
            scores = scores + noise + lead
        if "-2-" in key[0] and key[2] == "validation":
            scores = scores - 0.05
        items[key] = dataclasses.replace(found, scores=scores)
    (advice,) = recommend(dataclasses.replace(study, items=items)).advice
    assert advice.decision == "do_not_fine_tune"
    assert "r=8" in advice.headline
    assert "how large a gain is possible is unknown" in advice.headline
    assert "1.000" not in advice.headline


def test_what_items_alone_cannot_show_is_put_down_to_what_hides_it() -> None:
    """Two seeds 5 points apart would show a gain of 30 to anyone who knew that they vary so."""
    truth = Truth(ranks=(8,), full_lrs=(), accuracy=lambda r, lr: 0.6, seeds=(0, 1))
    study = synthetic_study(truth)
    (arm,) = summarize_arms(study)["med"]
    objective = study.config.objective

    def told(seed_error: float) -> str:
        assert arm.summary.gain is not None
        gain = arm.summary.gain.model_copy(update={"seed_error": seed_error, "value": 0.308})
        one = dataclasses.replace(arm, summary=arm.summary.model_copy(update={"gain": gain}))
        results = TaskResults(study, "med", (one,), choose((one,), 0.3, objective), objective)
        return " ".join(step.text for step in next_steps(results, undecided(one)))

    assert "because 2 seeds do not show well enough how much seeds vary" in told(0.037)
    assert "because the seeds differ too much" in told(0.115)  # 2.802 x .115 > .308


def test_a_rate_at_the_end_of_its_list_names_the_next() -> None:
    def accuracy(rank: int | None, lr: float) -> float:
        return 0.8 if lr == 1e-2 else 0.6

    truth = Truth(ranks=(8,), lrs=(1e-3, 1e-2), full_lrs=(), accuracy=accuracy, seeds=(0, 1))
    (advice,) = recommend(synthetic_study(truth)).advice
    assert advice.chosen is not None
    (rate,) = needs(advice, "learning_rate")
    assert (rate["lr"], round(rate["next"], 4)) == (1e-2, 0.0316)


@pytest.mark.parametrize(
    ("status", "asked", "unasked"),
    [
        ("diverged", ["learning rate of 0.0001 or less"], ["memory", "--retry-failed"]),
        (
            "oom",
            ["train.gradient_checkpointing: true", "train.max_length", "--retry-failed"],
            ["learning rate", "evaluate.batch_tokens"],
        ),
        ("failed", ["(simulated: failed at step 7)", "--retry-failed"], ["learning rate"]),
    ],
)
def test_where_all_failed_the_next_step_is_against_what_failed(
    status: Status, asked: list[str], unasked: list[str]
) -> None:
    failed = {(r, 1e-3, s): status for r in (2, 8, 32) for s in (0, 1, 2)}
    (advice,) = recommend(synthetic_study(Truth(failed=failed, full_lrs=()))).advice
    assert "9 failed" in advice.headline
    (step,) = advice.next_steps
    assert step.values[status] == 9
    assert all(words in step.text for words in asked)
    assert not any(words in step.text for words in unasked)


def test_what_could_not_be_scored_is_not_told_to_train_otherwise() -> None:
    failed: dict[tuple[int | None, float, int], Status] = {(8, 1e-3, s): "oom" for s in (0, 1, 2)}
    truth = Truth(ranks=(8,), full_lrs=(), seeds=(0, 1, 2))
    trained = synthetic_study(truth).trials[0].train
    study = synthetic_study(dataclasses.replace(truth, failed=failed))
    trials = tuple(dataclasses.replace(t, train=trained) for t in study.trials)
    (advice,) = recommend(dataclasses.replace(study, trials=trials)).advice
    assert "try a smaller evaluate.batch_tokens, and run again" in advice.next_steps[0].text
