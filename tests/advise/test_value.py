"""The worth of the next trial: against new data that are simulated and judged anew."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on, evidence, net_of
from scipy import stats
from synthetic_study import Truth, synthetic_study, with_trials

from rankscope.advise import posterior as module
from rankscope.advise.evidence import Measured, Part
from rankscope.advise.posterior import UNIT, Changes, posterior
from rankscope.advise.value import (
    Untried,
    value_of_items,
    value_of_round,
    values_of_trials,
    with_untried,
)
from rankscope.config.objective import BudgetConfig
from rankscope.records import OVER_BUDGET, Status, TrialRecords

SEEDS = np.array([2.0, 4.0, 6.0])
CLOSE = evidence(
    [0.02, 0.0, -0.02], seeds=SEEDS, squares=(SEEDS - 1) * 0.04**2, item=0.004, ranks=(2, 32, 1024)
)


def test_seeds_are_worth_what_the_regret_falls_by_when_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more seed of an arm, or of two, 4,000 times: what models change on these items, in one
    draw, and the seed around it. Scales are known, so the new expected changes are a plain product
    of matrices."""
    scales = {"LEVELS": 2, "HEIGHTS": 2, "LENGTHS": 1.5, "ROUGHNESS": 1, "SEED_SPREADS": 2}
    for name, scale in scales.items():
        monkeypatch.setattr(module, name, (float(scale),))
    (kernel,) = module._kernels(CLOSE, module._all_scales(CLOSE))

    def expected(means: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        own = module._arm_variance(replace(CLOSE, seeds=seeds), (2 * UNIT) ** 2)
        return kernel @ np.linalg.inv(kernel + CLOSE.item_covariance + np.diag(own)) @ means

    net, now, rng = net_of(CLOSE), expected(CLOSE.means, SEEDS), np.random.default_rng(5)
    best = int(now.argmax())
    assert now[best] > 0
    alone = values_of_trials(net)
    for arms in ([0], [1], [0, 1]):
        luck = net.seed_variance[arms] ** 0.5 * rng.normal(size=(4000, len(arms)))
        moved = (net.on_items[:, arms] + luck - CLOSE.means[arms]) / (SEEDS[arms] + 1)
        more = np.eye(3)[arms]
        after = [expected(CLOSE.means + by @ more, SEEDS + more.sum(axis=0)) for by in moved]
        fall = np.mean([max(0.0, of.max()) - of[best] for of in after])
        assert value_of_round(net, arms) == pytest.approx(fall, rel=0.25)
        if len(arms) == 1:
            assert alone[arms[0]] == pytest.approx(fall, rel=0.25)


def test_the_value_of_a_seed_by_hand() -> None:
    """Fifty seeds apart by two points and hardly a gain: the mean moves by N(0, 1 / (50 x 51))
    times that, and what crosses 0 counts."""
    net = net_of(evidence([0.0], seeds=50, squares=49 * UNIT**2, item=0.001))
    move = UNIT / np.sqrt(50 * 51)
    z = abs(net.draws.mean()) / move
    by_hand = move * (stats.norm.pdf(z) - z * stats.norm.cdf(-z))
    assert values_of_trials(net) == pytest.approx([by_hand], rel=0.2)


def test_values_fall_with_seeds_and_items_and_are_never_negative() -> None:
    seeds, items = [], []
    for k in (1, 3, 9):
        more = replace(CLOSE, seeds=k * CLOSE.seeds, squares=k * CLOSE.squares)
        seeds.append(values_of_trials(net_of(more)).max())
        more = replace(CLOSE, item_covariance=16 * CLOSE.item_covariance / k**2)
        items.append(value_of_items(net_of(more)))
    assert seeds == sorted(seeds, reverse=True)
    assert seeds[-1] < 0.3 * seeds[0]
    assert items == sorted(items, reverse=True)
    assert items[0] > 0
    clear = net_of(evidence([0.0, 0.15], seeds=9))
    assert values_of_trials(clear) == pytest.approx([0, 0], abs=0.01 * UNIT)
    assert value_of_items(clear) == pytest.approx(0, abs=0.01 * UNIT)


def test_a_round_of_one_trial_is_worth_what_it_is_alone_and_of_more_no_less() -> None:
    net = net_of(CLOSE)
    alone = values_of_trials(net)
    for arm in range(3):
        assert value_of_round(net, [arm]) == pytest.approx(alone[arm], rel=0.2)
    two, all_three = value_of_round(net, [0, 1]), value_of_round(net, [0, 1, 2])
    assert alone[:2].max() < two < all_three < alone.sum() * 1.1


ENDS: tuple[Untried, ...] = (  # r=1 and r=256
    ("lora", (0.0, 10.0, -2.774)),
    ("lora", (8.0, 10.0, -0.968)),
)


def with_more(of: Changes, untried: Sequence[Untried] = ENDS) -> Changes:
    number = len(of.means)
    measured = Measured(Part("med", 1.0), of, tuple(range(number)), {})
    more = with_untried(measured, untried, number)
    assert more.places == tuple(range(number + len(untried)))
    return more.changes


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_an_untried_arm_takes_nothing_from_others_and_is_worth_most_where_ranks_rise(
    level: float,
) -> None:
    rising = evidence([level, level + 0.05, level + 0.1], seeds=5, item=0.003)
    more = net_of(with_more(rising), num_untried=2)
    before = posterior(rising).draws.mean(axis=0)
    assert more.draws.mean(axis=0)[:3] == pytest.approx(before, abs=0.1 * UNIT)
    below, above = values_of_trials(more)[3:]
    assert above > 3 * below
    assert 0.5 * UNIT < above < 5 * UNIT


def test_a_broken_arm_makes_an_untried_one_worth_no_less() -> None:
    """However much the answers of the broken one vary over items."""
    whole = evidence([0.0, 0.05, 0.1, 0.12], seeds=3)
    five = evidence([0.0, 0.05, 0.1, 0.12, -1.0], seeds=3, ranks=(4, 16, 64, 256, 8))
    broken = replace(five, item_covariance=np.diag([1e-4, 1e-4, 1e-4, 1e-4, 1.0]))
    alone, beside = (
        values_of_trials(net_of(with_more(e), num_untried=2))[-1] for e in (whole, broken)
    )
    assert beside == pytest.approx(alone, rel=0.15)


def test_errors_of_untried_arms_are_those_of_a_mean_arm() -> None:
    """Each as far as it is like the others: with the mean of all errors for every arm, that of an
    arm with few items would be no covariance."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.normal(size=(4, 6)) * rng.lognormal(0, 1.5, (4, 1))
        unequal = replace(evidence([0.0] * 4), item_covariance=rows @ rows.T)
        found = with_more(unequal).item_covariance
        assert np.linalg.eigvalsh(found)[0] > -1e-9
        assert found[4:, :4] == pytest.approx(np.tile((rows @ rows.T).mean(axis=0), (2, 1)))


def test_what_was_not_run_is_run_before_anything_else() -> None:
    study = synthetic_study(Truth(lrs=(3e-4, 1e-3, 3e-3), full_lrs=(), num_items=36, seeds=(0, 1)))
    config = study.config.model_copy(update={"budget": BudgetConfig(trials=10)})

    def first(status: Status, failure: str | None = None) -> str:
        def late(trial: TrialRecords) -> TrialRecords:
            return TrialRecords(trial.spec, status, failure=failure) if trial.spec.seed else trial

        return advice_on(replace(with_trials(study, late), config=config)).next_steps[0].text

    assert first("planned") == "Train the remaining 9 runs"
    assert first("skipped", OVER_BUDGET) == "Raise the budget for 9 runs that the answer asks for"
    assert "more" not in first("skipped", "not needed")


MEMORY = ["train.gradient_checkpointing: true", "train.max_length", "--retry oom"]


@pytest.mark.parametrize(
    ("status", "trained", "expected", "unexpected"),
    [
        ("diverged", False, ["9 runs diverged", "rate of 0.0001 or less"], ["memory", "--retry"]),
        ("oom", False, MEMORY, ["learning rate", "evaluate.batch_tokens"]),
        ("oom", True, ["try a smaller evaluate.batch_tokens", "--retry oom"], ["checkpointing"]),
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
    (step,) = advice_on(study).next_steps
    said = f"{step.text}: {step.command}"
    assert all(words in said for words in expected)
    assert not any(words in said for words in unexpected)
