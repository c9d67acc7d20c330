"""What spectra are planned to take."""

import dataclasses

import pytest

from rankscope.extensions.spectra import SPECTRA
from rankscope.run.costs import CostModel
from rankscope.run.prepared import PreparedStudy

from ...run.test_costs import H100, trial_of


def test_each_matrix_is_compared_by_its_own_size(inputs: PreparedStudy) -> None:
    """A small matrix beside a large one, whose vectors are updated, leaves that as it is."""
    shapes = dataclasses.replace(
        inputs.base.shapes, linear_shapes={"q_proj": (3584, 3584), "k_proj": (512, 3584)}
    )
    base = dataclasses.replace(inputs.base, shapes=shapes)
    costs, lora = CostModel(dataclasses.replace(inputs, base=base), H100), inputs.trials[0]

    def seconds(*targets: str) -> float:
        return SPECTRA.trial_seconds(costs, lora.model_copy(update={"targets": targets}))

    assert seconds("q_proj", "k_proj") == pytest.approx(seconds("q_proj") + seconds("k_proj"))


def test_units_on_several_devices_share_whole_models(inputs: PreparedStudy) -> None:
    train = inputs.config.train.model_copy(update={"devices": 2})
    config = inputs.config.model_copy(update={"train": train})
    costs = CostModel(inputs, H100), CostModel(dataclasses.replace(inputs, config=config), H100)
    for method, times in (("full", 2), ("lora", 1)):
        on_one, on_two = (SPECTRA.trial_seconds(c, trial_of(inputs, method)) for c in costs)
        assert on_one == pytest.approx(times * on_two)
