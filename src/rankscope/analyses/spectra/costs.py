"""Seconds of spectra on a machine."""

from collections.abc import Collection

from rankscope.models.methods import get_lora_method
from rankscope.models.parameters import target_shapes
from rankscope.records import TrialSpec
from rankscope.run.costs import CostModel

DECOMPOSITION = 30  # Operations of a singular value decomposition of (m, n), times m n min(m, n)
UPDATED_VECTORS = 0.25
"""Of that, to update 500 leading vectors of 4096 by a low-rank change; see LOG.md, "spectra"."""


def comparison_seconds(costs: CostModel, trial: TrialSpec) -> float:
    """Of comparing a trial's matrices with the base's."""
    low_rank = trial.peft is None and not trial.is_full
    low_rank = low_rank and get_lora_method(trial.method).delta_is_low_rank
    names = trial.targets if low_rank else sorted(costs.compared)
    shapes = target_shapes(costs.shapes, names).values() if names else ()
    large = [shape for shape in shapes if low_rank and min(shape) >= 1024]
    others = [shape for shape in shapes if not low_rank or min(shape) < 1024]
    return UPDATED_VECTORS * _decompositions(costs, large) + _decompositions(costs, others)


def base_decomposition_seconds(costs: CostModel) -> float:
    """Of decomposing the base's matrices, if no cache holds them."""
    return _decompositions(costs, costs.compared.values())


def _decompositions(costs: CostModel, shapes: Collection[tuple[int, int]]) -> float:
    operations = sum(DECOMPOSITION * m * n * min(m, n) for m, n in shapes)
    rate = costs.machine.rates["float32"] * 1e12 * costs.machine.decomposition_share
    return operations / rate
