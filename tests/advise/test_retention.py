"""How gain and forgetting become one net gain, whatever the units of the tasks; by hand."""

from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on, arms_by_label, chat_study, evidence
from synthetic_study import Truth, synthetic_study, with_objective, with_scores, with_tasks

from rankscope.advise.evidence import Measured, Part
from rankscope.advise.net_gains import net_gains
from rankscope.advise.posterior import Posterior
from rankscope.advise.retention import base_items, mean_fall, net_parts, retention_tasks
from rankscope.records import BASE

TRUTH = Truth(
    ranks=(8,), full_lrs=(), num_items=200, seed_spread=0.0, retention=("general", "more")
)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, (1.0, 0.5, 0.5)), ({"retention": 0.5}, (1.0, 0.25, 0.25)),
        ({"in_domain": 2.0, "retention": 4.0}, (0.5, 0.5, 0.5)),
        ({"in_domain": 0.0}, (0.0, 0.5, 0.5)), ({"retention": 0.0}, (1.0, 0.0, 0.0)),
    ],
)  # fmt: skip
def test_forgetting_is_the_mean_over_tasks_and_weights_are_relative(
    objective: dict[str, float], expected: tuple[float, ...]
) -> None:
    study = with_objective(synthetic_study(TRUTH), **objective)
    names = ("med", "general", "more")
    parts = tuple(Part(*pair) for pair in zip(names, expected, strict=True))
    assert net_parts(study, "med") == parts
    # One point is 0.01 nats: no unit changes a weight.
    assert net_parts(with_tasks(study, more={"score_unit": "log_probability"}), "med") == parts


def test_a_task_without_the_bases_scores_or_that_was_trained_on_is_no_retention() -> None:
    study = synthetic_study(TRUTH)
    lost = {k: v for k, v in study.items.items() if k[:2] != (BASE, "more")}
    assert net_parts(replace(study, items=lost), "med") == (Part("med", 1.0), Part("general", 1.0))
    assert base_items(replace(study, items=lost), "more") == []
    mixed = with_tasks(study, med={"parts": ("more", "other")})
    assert [t.name for t in retention_tasks(mixed, "med")] == ["general"]
    alone = synthetic_study(replace(TRUTH, retention=()))
    assert net_parts(alone, "med") == (Part("med", 1.0),)


def test_nats_gained_and_points_lost_are_one_unit_by_hand() -> None:
    """A gain of 0.30 nats less a fall of 16 points is 0.14; with half the weight, 0.22."""
    study = chat_study(accuracy_fall=0.16)
    fall = mean_fall(study, arms_by_label(study)["r=8 lr=0.001"].trials, study.tasks[-1:])
    assert fall is not None
    for weight in (1.0, 0.5):
        advice = advice_on(with_objective(study, retention=weight))
        (arm,) = advice.arms
        of = arm.expected
        assert of.changes["med"].value == pytest.approx(0.3, abs=0.01)
        assert of.forgetting.value == pytest.approx(0.16, abs=0.04)
        assert of.forgetting.value == -of.changes["general"].value
        net = of.changes["med"].value - weight * of.forgetting.value
        assert of.net.value == pytest.approx(net, abs=1e-9)
    assert fall.value == pytest.approx(0.16, abs=0.05)


def test_two_tasks_fall_by_their_mean_and_each_is_shown() -> None:
    """One loses 20 points, the other none; where forgetting alone counts, the net is its fall."""
    study = synthetic_study(replace(TRUTH, num_items=1000, forgetting=lambda rank, lr: 0.0))

    def fallen(key: tuple[str, str, str], old: np.ndarray) -> np.ndarray:
        is_lost = key[0] != BASE and key[1] == "more"
        return np.where(is_lost & (np.arange(len(old)) % 4 == 0), 0.0, old)

    (arm,) = advice_on(with_objective(with_scores(study, fallen), in_domain=0.0)).arms
    found = arm.expected
    assert found.changes["more"].value == pytest.approx(-0.2, abs=0.03)
    assert found.changes["general"].value == pytest.approx(0.0, abs=0.03)
    assert found.forgetting.value == pytest.approx(0.1, abs=0.02)
    assert found.net.value == pytest.approx(-found.forgetting.value)


def test_net_gains_are_those_of_arms_with_all_tasks_by_hand() -> None:
    """Arm 1 lacks the second task. Losses of three draws are counted against the best of two arms
    and the base, within a margin of 0.1."""
    draws = [np.array([[0.3, 9, 0.5], [0.2, 9, 0.1], [0.1, 9, 0.4]]), -np.full((3, 2), 0.2)]
    places = ((0, 1, 2), (0, 2))
    parts = [
        Measured(Part(name, weight), evidence([0.0] * len(of)), of, {})
        for name, weight, of in zip("ab", (1.0, 2.0), places, strict=True)
    ]
    found = [Posterior(of, of, np.full(of.shape[1], 0.01)) for of in draws]
    net, kept = net_gains(parts, found, 0.1)
    assert kept == (0, 2)
    assert net.draws == pytest.approx(np.array([[-0.1, 0.1], [-0.2, -0.3], [-0.3, 0.0]]))
    assert net.regret == pytest.approx(np.array([0.1, 0.7, 0.3]) / 3)
    assert net.p_within_margin == pytest.approx(np.array([3, 0, 2]) / 3)
    assert net.p_best == pytest.approx(np.array([2, 0, 1]) / 3)
    assert net.seed_variance == pytest.approx(np.full(2, 0.01 + 4 * 0.01))
