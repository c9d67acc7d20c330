"""Small, seeded forms of benchmarks/simulate_studies.py; the large one is in docs/findings.

Seeds are fixed, so nothing here passes or fails by chance; bounds are what a sample of this size
may show around the law that is tested (three standard errors).
"""

from math import sqrt

import numpy as np
import pytest

from rankscope.advise.statistics import Comparison, weighted_estimate
from rankscope.records import BASE
from simulate_studies import (
    SCENARIOS,
    TRUTHS,
    Scenario,
    coverage,
    draw,
    family_wise,
    judged,
    plain_coverage,
)
from synthetic_study import synthetic_study

STUDIES = 400
THREE_ERRORS = 3 * sqrt(0.05 * 0.95 / STUDIES)
NAMED = {s.name: s for s in SCENARIOS}


@pytest.mark.parametrize(
    "name",
    [
        "seeds alike",
        "usual",
        "seeds apart by 2 points",
        "seeds apart by 5 points",
        "10 seeds, apart by 2 points",
        "against 3 seeds of another arm",
        "mean of 3 tasks",
        "50 subjects, gains apart by 10 points",
        "nats",
    ],
)
def test_intervals_cover_the_truth(name: str) -> None:
    covered = coverage(NAMED[name], STUDIES).covered
    # The law is 93 to 97 %; the sample adds its own three errors.
    assert 0.93 - THREE_ERRORS <= covered <= 0.97 + THREE_ERRORS


def test_a_plain_bootstrap_of_three_seeds_does_not() -> None:
    apart = NAMED["seeds apart by 5 points, 1,500 items"]
    assert plain_coverage(apart, 100, nested=False) < 0.85
    assert coverage(apart, 200).covered > 0.92


def test_subjects_that_are_passed_over_make_intervals_too_narrow() -> None:
    """The same studies, their items taken as if each stood by itself."""
    clustered = Scenario("", clusters=12, cluster_spread=0.2, items=600)
    found = coverage(clustered, 200)
    assert found.covered > 0.91

    rng = np.random.default_rng([0, 1])
    covered = 0
    for _ in range(200):
        (rows,) = draw(rng, clustered)
        blind = weighted_estimate([Comparison(rows.tuned, rows.reference)])
        assert blind.low is not None
        assert blind.high is not None
        covered += blind.low <= clustered.gain <= blind.high
    assert covered / 200 < 0.8


def test_no_gain_is_called_one_no_more_often_than_said() -> None:
    found = coverage(NAMED["no gain"], STUDIES)
    assert found.called_different <= 0.05 + THREE_ERRORS
    assert found.called_better <= 0.025 + THREE_ERRORS


def test_holm_keeps_the_family_of_ranks_and_tasks() -> None:
    raw, adjusted = family_wise(100)
    assert raw > 0.15  # what twelve tests at .05 would otherwise do
    assert adjusted <= 0.05 + 3 * sqrt(0.05 * 0.95 / 100)


@pytest.mark.parametrize("name", TRUTHS)
def test_the_advice_on_a_known_truth_is_right_or_open(name: str) -> None:
    draws = 16
    found = judged(name, draws)
    assert found["wrong"] <= 1
    assert found["right"] + found["right, dearer"] >= draws // 2
    if name == "one seed":
        assert found["firm"] == 0


def test_the_truths_are_what_their_names_say() -> None:
    study = synthetic_study(TRUTHS["diverging at the high rate"][0])
    assert sum(t.status == "diverged" for t in study.trials) == 14
    assert study.items[BASE, "med", "report"].scores.size == 400
