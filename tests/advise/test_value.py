"""The worth of the next trial: against new data that are simulated and judged anew."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from advice import evidence, net_of

from rankscope.advise import posterior as module
from rankscope.advise.evidence import Measured, Part
from rankscope.advise.posterior import UNIT, Changes, posterior
from rankscope.advise.value import Untried, value_of_items, values_of_trials, with_untried

SEEDS = np.array([2.0, 4.0, 6.0])
CLOSE = evidence(
    [0.02, 0.0, -0.02], seeds=SEEDS, squares=(SEEDS - 1) * 0.04**2, item=0.004, ranks=(2, 32, 1024)
)


def test_a_seed_is_worth_what_the_regret_falls_by_when_it_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more seed, 4,000 times: what models change on these items, in one draw, and the seed
    around it. Scales are known, so the new expected changes are a plain product of matrices."""
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
    for arm, one in zip((0, 1), np.eye(3), strict=False):
        seen = net.on_items[:, arm] + net.seed_variance[arm] ** 0.5 * rng.normal(size=4000)
        moved = (seen - CLOSE.means[arm]) / (SEEDS[arm] + 1)
        after = np.array([expected(CLOSE.means + one * by, SEEDS + one) for by in moved])
        falls = after.max(axis=1, initial=0.0) - after[:, best]
        assert values_of_trials(net)[arm] == pytest.approx(falls.mean(), rel=0.25)


def test_the_value_of_a_seed_by_hand() -> None:
    """Fifty seeds apart by two points and no gain: the mean moves by N(0, 1 / (50 x 51)) times
    that, and the positive half counts."""
    known = evidence([0.0], seeds=50, squares=49 * UNIT**2, item=0.001)
    by_hand = UNIT / np.sqrt(50 * 51) / np.sqrt(2 * np.pi)
    assert values_of_trials(net_of(known)) == pytest.approx([by_hand], rel=0.1)


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
    more = net_of(with_more(rising))
    before = posterior(rising).draws.mean(axis=0)
    assert more.draws.mean(axis=0)[:3] == pytest.approx(before, abs=0.1 * UNIT)
    below, above = values_of_trials(more, 2)[3:]
    assert above > 3 * below
    assert 0.5 * UNIT < above < 5 * UNIT


def test_a_broken_arm_makes_an_untried_one_worth_no_less() -> None:
    """However much the answers of the broken one vary over items."""
    whole = evidence([0.0, 0.05, 0.1, 0.12], seeds=3)
    five = evidence([0.0, 0.05, 0.1, 0.12, -1.0], seeds=3, ranks=(4, 16, 64, 256, 8))
    broken = replace(five, item_covariance=np.diag([1e-4, 1e-4, 1e-4, 1e-4, 1.0]))
    alone, beside = (values_of_trials(net_of(with_more(e)), 2)[-1] for e in (whole, broken))
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
