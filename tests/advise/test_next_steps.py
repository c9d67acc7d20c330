"""What would decide an open question, with numbers."""

import dataclasses
import re
from typing import Literal

import numpy as np
import pytest
from advice import advice_on, advise
from synthetic_study import Truth, synthetic_study, with_scores, with_trials

from rankscope.advise.arms import Arm, summarize_arms
from rankscope.advise.decide import Verdict
from rankscope.advise.next_steps import _more_data, next_steps
from rankscope.advise.recommend import recommend
from rankscope.advise.select import choose
from rankscope.advise.statistics.power import data_needed
from rankscope.advise.task_results import TaskResults
from rankscope.config.objective import BudgetConfig
from rankscope.formatting import POINTS, difference
from rankscope.records import (
    BASE,
    OVER_BUDGET,
    AdviceMessage,
    EvalKey,
    Status,
    StudyRecords,
    TaskAdvice,
    TrialRecords,
)

TRUTH = Truth(ranks=(2, 8, 32), num_items=120, tasks=("med", "law"), retention=("general", "more"))


def asked(study: StudyRecords, arm: Arm) -> tuple[AdviceMessage, ...]:
    """What would decide whether this arm, the only one, is worth it."""
    objective = study.config.objective
    results = TaskResults(study, "med", (arm,), choose((arm,), 0.3, objective), objective)
    return tuple(next_steps(results, Verdict("not_decided", "none", "", "", arm)))


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
    only_arm = dataclasses.replace(TRUTH, ranks=(8,), full_lrs=())
    firm = recommend(synthetic_study(only_arm)).advice[0]
    assert (firm.confidence, firm.next_steps) == ("firm", ())


def test_a_budget_is_raised_only_if_it_kept_a_trial_from_beginning() -> None:
    """Of 12 trials, the later seeds of r=2 never began."""
    study = synthetic_study(dataclasses.replace(TRUTH, tasks=("med",)))
    config = study.config.model_copy(
        update={"strategy": "adaptive", "budget": BudgetConfig(trials=10)}
    )

    def skipped(reason: str) -> TaskAdvice:
        adaptive = dataclasses.replace(study, config=config)
        return advice_on(
            with_trials(
                adaptive,
                lambda t: (
                    TrialRecords(t.spec, "skipped", failure=reason)
                    if t.spec.rank == 2 and t.spec.seed
                    else t
                ),
            )
        )

    spent, enough = skipped(OVER_BUDGET), skipped("not needed")
    assert needs(enough, "runs") == []
    assert needs(spent, "runs") == [{"over_budget": 2.0}]
    assert any("Raise the budget (10 trials)" in step.text for step in spent.next_steps)
    # 10 of the 12 trials were trained to their end.
    (not_needed,) = (c for c in enough.checks if c.name == "trials")
    assert (
        not_needed.value
        == "2 of 12 trials stopped or not begun; trained on 83 % of the grid's tokens"
    )
    (check,) = (c for c in spent.checks if c.name == "trials")
    assert check.value.startswith("budget spent, 2 of 12 trials")
    assert "it stopped 0 trials at a rung" in not_needed.text
    assert "did not ask for 2 trials." in not_needed.text
    assert check.text.startswith("The budget was spent, so 2 trials that the answer asks for never")
    assert "never began, because" not in not_needed.text + check.text


def test_what_is_there_already_is_not_asked_for() -> None:
    """Many items and no gain: a gain of the margin would have been seen."""
    idle = Truth(
        ranks=(8,), full_lrs=(), num_items=4000, seed_spread=0.0, accuracy=lambda r, lr: 0.3
    )
    study = synthetic_study(idle, 0)
    (advice,) = recommend(study).advice
    (arm,) = summarize_arms(study)["med"]
    gain = arm.summary.gain
    needed = data_needed(gain, 0.02).items
    assert needed <= gain.n == 4000
    enough, rate = asked(study, arm)
    assert "collecting more will not settle this" in enough.text
    assert (enough.values, rate.kind) == ({"effect": 0.02}, "learning_rate")
    assert not any({"items", "seeds"} & step.values.keys() for step in advice.next_steps)
    few = synthetic_study(dataclasses.replace(idle, num_items=100), 2)
    (arm,) = summarize_arms(few)["med"]
    more, *_ = asked(few, arm)
    assert more.values["items"] > arm.summary.gain.n == 100


@pytest.mark.parametrize("metric", ["accuracy", "log_probability"])
def test_fewer_items_than_any_test_takes_are_asked_for(
    metric: Literal["accuracy", "log_probability"],
) -> None:
    """Of 5 items even unanimous ones have p = .0625; how many more is guessed of answers alone."""
    (advice,) = recommend(synthetic_study(Truth(num_items=5, metric=metric))).advice
    assert advice.decision == "not_decided"
    assert "only 5 test items" in advice.explanation
    (step,) = (step for step in advice.next_steps if step.kind == "items")
    guess = "With fewer than 6 items no test can decide. About 1,963 test items would show"
    assert (guess in step.text) == (metric == "accuracy")
    assert ("if the models differed on 10 % of them" in step.text) == (metric == "accuracy")
    # (2.8016 / .02)^2 x .1
    assert step.values.get("items") == (1963 if metric == "accuracy" else None)


def test_of_items_that_all_changed_alike_nothing_is_guessed() -> None:
    study = synthetic_study(Truth(ranks=(8,), num_items=60, metric="log_probability"))

    def alike(key: EvalKey, scores: np.ndarray) -> np.ndarray:
        lower = key[0] != BASE and "-8-" not in key[0] and key[1] == "med"
        return study.items[BASE, *key[1:]].scores - 0.5 * lower

    advice = advice_on(with_scores(study, alike))
    (step,) = (n for n in advice.next_steps if n.kind == "items")
    assert "items" not in step.values
    assert "all 60 test items changed by the same" in advice.explanation
    assert "is unknown: it depends on how much their changes vary" in step.text
    assert not any(word in step.text for word in ("About", "%"))


def test_what_items_alone_cannot_show_is_put_down_to_what_hides_it() -> None:
    """Two seeds 5 points apart would show a gain of 30 to anyone who knew that they vary so."""
    truth = Truth(ranks=(8,), full_lrs=(), accuracy=lambda r, lr: 0.6, seeds=(0, 1))
    study = synthetic_study(truth)
    (arm,) = summarize_arms(study)["med"]

    def step_text(seed_error: float) -> str:
        gain = arm.summary.gain.model_copy(update={"seed_error": seed_error, "value": 0.308})
        one = dataclasses.replace(arm, summary=arm.summary.model_copy(update={"gain": gain}))
        return " ".join(step.text for step in asked(study, one))

    assert "because 2 seeds do not show well enough how much seeds vary" in step_text(0.037)
    assert "because the seeds differ too much" in step_text(0.115)  # 2.802 x .115 > .308


def test_a_difference_that_needs_many_times_the_items_is_called_too_small() -> None:
    truth = Truth(ranks=(8,), full_lrs=(), accuracy=lambda r, lr: 0.6)
    study = synthetic_study(truth)
    (arm,) = summarize_arms(study)["med"]

    def step(**errors: float | None) -> AdviceMessage:
        return _more_data(arm.summary.gain.model_copy(update=errors), 0.01, "a gain of 1 point")

    # (2.802 x .03 / .01)^2 = 71 times the items; at .02 they are 31 times as many.
    few, many = (step(item_error=error, seed_error=0.0) for error in (0.02, 0.03))
    assert few.values["items"] == pytest.approx(31.4 * 400, rel=0.01)
    assert many.text == (
        "The difference is too small to settle with more items: showing a gain of 1 point would "
        "take more than 50 times as many."
    )


def test_a_rate_at_the_end_of_its_list_names_the_next() -> None:
    def accuracy(rank: int | None, lr: float) -> float:
        return 0.8 if lr == 1e-2 else 0.6

    truth = Truth(ranks=(8,), lrs=(1e-3, 1e-2), full_lrs=(), accuracy=accuracy, seeds=(0, 1))
    (advice,) = recommend(synthetic_study(truth)).advice
    assert advice.chosen is not None
    (rate,) = needs(advice, "learning_rate")
    assert (rate["lr"], round(rate["next"], 4)) == (1e-2, 0.0316)


@pytest.mark.parametrize(
    ("status", "expected", "unexpected"),
    [
        ("diverged", ["learning rate of 0.0001 or less"], ["memory", "--retry"]),
        (
            "oom",
            ["train.gradient_checkpointing: true", "train.max_length", "--retry oom"],
            ["learning rate", "evaluate.batch_tokens"],
        ),
        ("failed", ["(simulated: failed at step 7)", "--retry failed"], ["learning rate"]),
    ],
)
def test_where_all_failed_the_next_step_is_against_what_failed(
    status: Status, expected: list[str], unexpected: list[str]
) -> None:
    failed = {(r, 1e-3, s): status for r in (2, 8, 32) for s in (0, 1, 2)}
    (advice,) = recommend(synthetic_study(Truth(failed=failed, full_lrs=()))).advice
    assert "9 failed" in advice.explanation
    (step,) = advice.next_steps
    assert step.values[status] == 9
    assert all(words in step.text for words in expected)
    assert not any(words in step.text for words in unexpected)


def test_what_could_not_be_scored_is_not_told_to_train_otherwise() -> None:
    failed: dict[tuple[int | None, float, int], Status] = {(8, 1e-3, s): "oom" for s in (0, 1, 2)}
    truth = Truth(ranks=(8,), full_lrs=(), seeds=(0, 1, 2))
    trained = synthetic_study(truth).trials[0].train
    study = synthetic_study(dataclasses.replace(truth, failed=failed))
    advice = advice_on(with_trials(study, lambda t: dataclasses.replace(t, train=trained)))
    assert "try a smaller evaluate.batch_tokens, and run again" in advice.next_steps[0].text


def test_seeds_that_differ_ask_for_seeds_and_not_for_items() -> None:
    """Items cannot make seeds alike."""

    def hints(spread: float) -> list[str]:
        truth = Truth(
            num_items=100,
            base_accuracy=0.5,
            accuracy=lambda r, lr: 0.54,
            seed_spread=spread,
            retention=(),
        )
        found = [advise(truth, seed) for seed in range(8)]
        return [
            " ".join(step.text for step in a.next_steps)
            for a in found
            if a.decision == "not_decided"
        ]

    alike, spread_out = hints(0.0), hints(0.15)
    assert alike
    assert spread_out
    # Three seeds that are alike may look as if they were not.
    by_items = [bool(re.search(r"About [\d,]+ test items would show", h)) for h in alike]
    assert np.mean(by_items) > 0.5
    assert all(
        re.search(r"seeds differ too much|seeds would show|seeds together", h) for h in spread_out
    )
    assert not any(re.search(r"About [\d,]+ test items would show", h) for h in spread_out)


def test_what_is_asked_for_is_of_the_difference_that_was_found() -> None:
    """A wide margin asks for nothing: how near the net, or the limit, lies is what counts."""
    truth = Truth(
        accuracy=lambda rank, lr: 0.42,
        forgetting=lambda rank, lr: 0.12,
        full_lrs=(),
        objective={"margin": 0.1, "max_forgetting": 0.125},
    )
    seen = 0
    for seed in range(15):
        advice = advice_on(synthetic_study(truth, seed))
        for need in advice.next_steps:
            if "net" not in need.values and "max_forgetting" not in need.values:
                continue
            seen += 1
            assert need.values.get("items", 401) > 400
            assert need.values.get("seeds", 4) > 3
            if "net" in need.values:
                assert f"a net gain of {difference(need.values['net'], POINTS)}" in need.text
    assert seen > 5


def test_a_gain_that_holm_takes_back_is_what_is_asked_about() -> None:
    """Three tasks: an interval clear of zero may still be no shown gain."""
    truth = Truth(
        tasks=("med", "law", "art"),
        ranks=(8,),
        full_lrs=(),
        accuracy=lambda rank, lr: 0.345,
        forgetting=lambda rank, lr: 0.03,
        seed_spread=0.0,
    )
    seen = 0
    for seed in range(12):
        for advice in recommend(synthetic_study(truth, seed)).advice:
            arm = advice.arms[0]
            clear = arm.gain is not None and (arm.gain.low or 0) > 0
            if clear and "cannot tell whether fine-tuning helps" in advice.explanation:
                seen += 1
                assert not any("study's weights" in step.text for step in advice.next_steps)
    assert seen > 0
