"""The worth of the next trial: against new data that are simulated and judged anew."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from advice import advice_on, evidence
from scipy.linalg import block_diag
from synthetic_study import Truth, synthetic_study, with_specs, with_trials

from rankscope.advise.posterior import NetGains, likeliest_posteriors, posterior
from rankscope.advise.value import value_of_items, values_of_trials, with_untried
from rankscope.config.objective import BudgetConfig
from rankscope.records import OVER_BUDGET, Status, TaskAdvice, TrialRecords

MARGIN = 0.02
CLOSE = evidence(
    [0.02, 0.0, -0.02], seeds=[1, 2, 6], squares=[0, 2e-3, 8e-3], item=0.004, ranks=(2, 32, 1024)
)


def with_another_seed(found: NetGains, arm: int, rng: np.random.Generator) -> NetGains:
    """One more seed of an arm, drawn from what is known: a choice of scales, then the true net gain
    and the error of these items given what was measured, then the seed."""
    choices = likeliest_posteriors(found, MARGIN, 48)
    weights = np.array([choice.weight for choice in choices])
    f = choices[rng.choice(len(choices), p=weights / weights.sum())]
    both = np.vstack([f.kernel, found.item_covariance])  # With what was measured, (2 A, A)
    rest = block_diag(f.kernel, found.item_covariance) - both @ f.inverse @ both.T
    mean = both @ f.inverse @ found.means
    net, error = np.split(rng.multivariate_normal(mean, rest, check_valid="ignore"), 2)
    seed = net[arm] + error[arm] + f.own[arm] ** 0.5 * rng.normal()
    number, old = found.seeds[arm], found.means[arm]
    one = np.eye(len(found.means))[arm]
    return replace(
        found,
        means=found.means + one * (seed - old) / (number + 1),
        seeds=found.seeds + one,
        squares=found.squares + one * (seed - old) ** 2 * number / (number + 1),
    )


def test_a_seed_is_worth_what_the_regret_falls_by_when_it_is_drawn() -> None:
    """80 draws for each arm, each with a posterior of its own; three standard errors, and a tenth
    for the scales, which a new seed changes too."""
    values, rng = values_of_trials(CLOSE, MARGIN), np.random.default_rng(0)
    now = max(0.0, posterior(CLOSE, MARGIN).draws.mean(axis=0).max())
    for arm in (0, 1):
        drawn = [posterior(with_another_seed(CLOSE, arm, rng), MARGIN).draws for _ in range(80)]
        falls = [max(0.0, draws.mean(axis=0).max()) for draws in drawn]
        error = np.std(falls) / 80**0.5
        assert np.mean(falls) - now == pytest.approx(values[arm], abs=3 * error + 0.1 * values[arm])
        assert values[arm] > 3 * error


def test_the_value_of_a_seed_by_hand() -> None:
    """Fifty seeds apart by a margin and no gain: the mean moves by N(0, 1 / (50 x 51)) margins,
    and the positive half of that counts."""
    known = evidence([0.0], seeds=50, squares=49 * MARGIN**2, item=0.001)
    by_hand = MARGIN / np.sqrt(50 * 51) / np.sqrt(2 * np.pi)
    assert values_of_trials(known, MARGIN) == pytest.approx([by_hand], rel=0.05)


def test_values_fall_with_seeds_and_items_and_are_never_negative() -> None:
    seeds, items = [], []
    for k in (1, 3, 9):
        more = replace(CLOSE, seeds=k * CLOSE.seeds, squares=k * CLOSE.squares)
        seeds.append(values_of_trials(more, MARGIN).max())
        more = replace(CLOSE, item_covariance=16 * CLOSE.item_covariance / k**2)
        items.append(value_of_items(more, MARGIN))
    assert seeds == sorted(seeds, reverse=True)
    assert seeds[-1] < 0.3 * seeds[0]
    assert items == sorted(items, reverse=True)
    assert items[0] > 0
    clear = evidence([0.0, 0.3], seeds=5)
    assert values_of_trials(clear, MARGIN) == pytest.approx([0, 0], abs=1e-4)
    assert value_of_items(clear, MARGIN) == pytest.approx(0, abs=1e-4)


def test_an_untried_arm_takes_nothing_from_others_and_is_worth_most_where_ranks_rise() -> None:
    rising = evidence([0.0, 0.05, 0.1], seeds=5, item=0.003)
    arms = [("lora", (0.0, 10.0, -2.774)), ("lora", (8.0, 10.0, -0.968))]  # r=1 and r=256
    more = with_untried(rising, arms, MARGIN)
    assert posterior(more, MARGIN).draws.mean(axis=0)[:3] == pytest.approx(
        posterior(rising, MARGIN).draws.mean(axis=0), abs=0.1 * MARGIN
    )
    below, above = values_of_trials(more, MARGIN)[3:]
    assert above > 3 * below
    assert above > 0.5 * MARGIN


TRUTH = Truth(ranks=(2, 8, 32), lrs=(3e-4, 1e-3, 3e-3), full_lrs=(), num_items=36, seeds=(0,))


def steps(advice: TaskAdvice, words: str) -> list[str]:
    return [step for step in advice.next_steps if words in step]


def test_next_trials_are_named_by_their_worth_per_second() -> None:
    def timed(trial: TrialRecords) -> TrialRecords:
        seconds = 50.0 if trial.spec.rank == 32 else 3.0
        return replace(trial, train=trial.train.model_copy(update={"seconds": seconds}))

    advice = advice_on(with_trials(synthetic_study(TRUTH), timed))
    trials = steps(advice, " s, expected ")
    assert len(trials) == 5  # the most that are named
    seconds = [float(re.search(r": ([\d.]+) s, ", step)[1]) for step in trials]
    numbers = [re.findall(r"([\d.]+) points", step) for step in trials]
    gains = [float(n[0]) - float(n[1]) if len(n) == 2 else float(n[0]) for n in numbers]
    # As shown: a tenth of a point is rounding.
    worth = [((g - 0.1) / s, (g + 0.1) / s) for g, s in zip(gains, seconds, strict=True)]
    assert all(most >= least for (_, most), (least, _) in pairwise(worth))
    assert gains != sorted(gains, reverse=True)
    before = {float(n[0]) for n in numbers if len(n) == 2}
    assert all(b <= 100 * advice.expected_regret + 0.05 for b in before)
    assert len(steps(advice, "Twice as many items: expected regret ")) == 1
    one = replace(TRUTH, ranks=(8,), lrs=(1e-3,), seeds=(0, 1, 2), num_items=120)
    clear = advice_on(synthetic_study(one))
    assert steps(clear, "expected regret") == []


def test_one_rate_alone_has_no_priced_rate_beside_it() -> None:
    """Two ranks at one rate: what another rank or rate may gain is a guess, so it has no price."""
    advice = advice_on(synthetic_study(replace(TRUTH, ranks=(2, 8), lrs=(1e-3,))))
    assert steps(advice, "at a rate of") == []


def test_rates_of_another_alpha_are_no_rates_of_this_one() -> None:
    """Two rates of each of two alphas are too few to price a third. Where one alpha is tried, an
    untried rank is named with its own."""
    few = synthetic_study(replace(TRUTH, ranks=(2, 8), lrs=(1e-3, 4e-3, 1.2e-4, 5e-4)))
    few = with_specs(few, lambda spec: {"alpha": 16.0 if spec.lr >= 1e-3 else 256.0})
    assert steps(advice_on(few), "at a rate of") == []
    one = with_specs(synthetic_study(TRUTH), lambda spec: {"alpha": 16.0})
    assert any("r=64 alpha=32 at a rate of" in step for step in advice_on(one).next_steps)


def test_what_was_not_run_is_run_before_anything_else() -> None:
    study = synthetic_study(replace(TRUTH, seeds=(0, 1), retention=()))
    config = study.config.model_copy(update={"budget": BudgetConfig(trials=10)})

    def with_late(status: Status, failure: str | None = None) -> TaskAdvice:
        def late(trial: TrialRecords) -> TrialRecords:
            return TrialRecords(trial.spec, status, failure=failure) if trial.spec.seed else trial

        return advice_on(replace(with_trials(study, late), config=config))

    waits = with_late("planned").next_steps
    assert "continues with the remaining 9 trials" in waits[0]
    spent, enough = with_late("skipped", OVER_BUDGET), with_late("skipped", "not needed")
    assert spent.next_steps[0].startswith(
        "Raise the budget (10 trials) and run the study again: 9 trials that the answer asks for"
    )
    assert steps(enough, "run the study again") == []


MEMORY = ["train.gradient_checkpointing: true", "train.max_length", "--retry oom"]


@pytest.mark.parametrize(
    ("status", "trained", "expected", "unexpected"),
    [
        ("diverged", False, ["9 trials diverged", "rate of 0.0001 or less"], ["memory", "--retry"]),
        ("oom", False, MEMORY, ["learning rate", "evaluate.batch_tokens"]),
        ("oom", True, ["try a smaller evaluate.batch_tokens, and run again"], ["checkpointing"]),
        ("failed", False, ["(simulated: failed at step 7)", "--retry failed"], ["learning rate"]),
    ],
)
def test_where_all_failed_the_next_step_is_against_what_failed(
    status: Status, trained: bool, expected: list[str], unexpected: list[str]
) -> None:
    failed = {(r, 1e-3, s): status for r in (2, 8, 32) for s in (0, 1, 2)}
    study = synthetic_study(Truth(failed=failed, full_lrs=(), num_items=20))
    if trained:
        train = synthetic_study(Truth(num_items=20)).trials[0].train
        study = with_trials(study, lambda t: replace(t, train=train))
    advice = advice_on(study)
    assert "9 failed" in advice.explanation
    (step,) = advice.next_steps
    assert all(words in step for words in expected)
    assert not any(words in step for words in unexpected)
