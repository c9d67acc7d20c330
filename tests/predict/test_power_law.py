"""The power law: planted parameters come back, and noise is called noise."""

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study

from rankscope.advise.statistics.estimates import Comparison
from rankscope.predict.predictors import PowerLaw, ScreenCurve, fit_curve, fit_power_law
from rankscope.predict.screens import measured_curves

RANKS = (2, 8, 32, 128)


@pytest.mark.parametrize(
    ("c", "a", "d"), [(-0.5, -0.5, 0.6), (-0.8, -1.5, 0.4), (0.1, 0.3, -0.05), (0.02, 0.7, 0.2)]
)
def test_planted_parameters_are_recovered(c: float, a: float, d: float) -> None:
    """Without noise the exponent is off by at most half a step of those tried, .01."""
    gains = c * np.array(RANKS, float) ** a + d
    fitted = fit_power_law(RANKS, gains[None], np.full(4, 0.01))
    assert fitted.a[0] == pytest.approx(a, abs=0.0101)
    assert fitted.c[0] == pytest.approx(c, rel=0.1)
    assert fitted.d[0] == pytest.approx(d, abs=0.02)
    assert [fitted.gain(r)[0] for r in RANKS] == pytest.approx(gains, abs=2e-3)


def test_each_curve_is_fitted_by_itself_and_by_its_errors() -> None:
    """The last point, with a large error, is off the law of the others, and hardly moves it."""
    law = PowerLaw(np.array([-0.5]), np.array([-0.5]), np.array([0.6]))
    gains = np.array([law.gain(r)[0] for r in (1, 2, 8, 32, 128)])
    both = np.stack([gains, gains + np.array([0, 0, 0, 0, 0.2])])
    fitted = fit_power_law((1, 2, 8, 32, 128), both, np.array([1e-3] * 4 + [10.0]))
    assert fitted.a == pytest.approx([-0.5, -0.5], abs=0.011)
    assert fitted.d == pytest.approx([0.6, 0.6], abs=0.02)


def curve(truth: Truth) -> ScreenCurve:
    return measured_curves(synthetic_study(truth), "med")["trained"]


def law(rank: int | None, lr: float) -> float:
    return 0.9 if rank is None else 0.9 - 0.8 / rank


def test_simulated_points_give_the_law_and_the_rank_from_which_doubling_is_idle() -> None:
    """.9 - .8 / r: doubling gains .4 / r, less than .02 from r = 32 on (.0125), not at 8 (.05)."""
    truth = Truth(ranks=RANKS, accuracy=law, num_items=20_000, seed_spread=0.001, agreement=1.0)
    fitted = fit_curve(curve(truth))
    # Errors of a gain are below .004 (20,000 items, three seeds), a tenth of the spread of .4.
    assert fitted.law.a[0] == pytest.approx(-1, abs=0.15)
    assert fitted.law.d[0] == pytest.approx(0.6, abs=0.02)  # above the base, which has .3
    assert "from r = 32 on" in fitted.doubling_sentence(0.02)
    assert "still gains more than the margin" in fitted.doubling_sentence(0.001)


def test_few_items_of_a_flat_curve_cannot_tell() -> None:
    """Fifty items know a gain to 14 points: a doubling could gain more than 2."""
    flat = Truth(ranks=RANKS, accuracy=lambda rank, lr: 0.5, num_items=50, seeds=(0, 1))
    assert fit_curve(curve(flat)).doubling_sentence(0.02).startswith("cannot tell")


def test_equal_answers_and_a_single_seed_have_a_fit() -> None:
    """All items right at two ranks, one seed: no spread, no error, and no weight without end."""
    right, wrong = np.ones((1, 50)), np.zeros((1, 50))
    half = np.arange(50)[None] % 2.0
    found = fit_curve({r: Comparison(s, wrong[0]) for r, s in ((2, half), (8, right), (32, right))})
    assert [found.law.gain(r)[0] for r in (2, 8, 32)] == pytest.approx([0.5, 1, 1], abs=0.01)


def test_a_doubling_gains_no_more_than_every_answer_right() -> None:
    """.5, .7 and .9 rise for ever on paper, but only .1 is left above the last."""
    items = np.arange(2000)[None] / 2000
    points = ((2, 0.5), (8, 0.7), (32, 0.9))
    found = fit_curve({r: Comparison((items < p) * 1.0, np.zeros(2000)) for r, p in points})
    assert found.ceiling == 1
    assert found.law.gain(64)[0] - found.law.gain(32)[0] == pytest.approx(0.1, abs=0.01)
    assert "still gains more than the margin" in found.doubling_sentence(0.05)
    right = fit_curve({r: Comparison((items < p + 0.09) * 1.0, np.zeros(2000)) for r, p in points})
    assert "from r = 32 on" in right.doubling_sentence(0.05)  # .01 is left above .99
