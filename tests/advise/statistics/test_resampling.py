"""The bootstrap and the sign flips against slow, obvious forms of themselves."""

import numpy as np
import pytest

from rankscope.advise.statistics.resampling import (
    MOST_KEPT,
    NUM_DRAWS,
    kept_signs,
    resampled_means,
)
from rankscope.advise.statistics.significance import sign_flip


def drawn_one_by_one(sums: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """The definition: pick as many units as there are, add up what they hold."""
    rng = np.random.default_rng([seed, 1])
    picked = rng.integers(len(sums), size=(NUM_DRAWS, len(sums)))
    return np.array([sums[p].sum() / sizes[p].sum() for p in picked])


@pytest.mark.parametrize("sizes", ["ones", "fives", "unequal"])
def test_the_product_of_counts_and_sums_is_the_bootstrap(sizes: str) -> None:
    rng = np.random.default_rng(0)
    items = {"ones": np.ones(60), "fives": np.full(60, 5.0), "unequal": rng.integers(1, 9, 60)}
    sums, sizes_ = rng.normal(size=60), items[sizes].astype(float)
    found = resampled_means(sums, sizes_, seed=3)
    assert found == pytest.approx(drawn_one_by_one(sums, sizes_, seed=3), abs=1e-6)


@pytest.mark.parametrize("kinds", [5, MOST_KEPT + 1])
def test_many_units_are_drawn_alike_whether_they_are_of_few_kinds_or_of_many(kinds: int) -> None:
    """Closed form of a bootstrapped mean of equal units: its mean and sqrt(variance / N)."""
    units = MOST_KEPT + 1
    values = np.random.default_rng(1).normal(size=kinds)[np.arange(units) % kinds]
    found = resampled_means(values, np.ones(units), seed=0)
    error = values.std() / np.sqrt(units)
    # Four standard errors of the mean, and of the standard deviation, of D normal draws.
    assert found.mean() == pytest.approx(values.mean(), abs=4 * error / np.sqrt(NUM_DRAWS))
    assert found.std() == pytest.approx(error, rel=4 / np.sqrt(2 * NUM_DRAWS))


def test_drawn_flips_are_counted_as_the_definition_says() -> None:
    rng = np.random.default_rng(2)
    parts = rng.normal(0.1, 1.0, size=90)
    signs = kept_signs(90, seed=0).astype(float)
    further = sum(
        abs(sum(s * abs(x) for s, x in zip(signs[:, draw], parts, strict=True))) >= abs(parts.sum())
        for draw in range(NUM_DRAWS)
    )
    assert sign_flip(parts) == (further + 1) / (NUM_DRAWS + 1)
