"""Records of how training changed the weight matrices, and of the update's growth with the rank."""

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean, linear_regression
from typing import Any

from rankscope.models.methods import get_method
from rankscope.records import AnalysisRecord, Record, TrialRecords


@cache
def _expected_largest(count: int) -> float:
    """Return the expected largest of ``count`` independent |standard normal| values.

    It is the integral over x > 0 of 1 - P(|z| < x)^count, by the trapezoid rule.
    """
    step = 0.01
    return step * (
        0.5 + sum(1 - math.erf(i * step / math.sqrt(2)) ** count for i in range(1, 1000))
    )


def chance_levels(k: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Return expected similarities of k unrelated vectors, left and right.

    They are the mean |cosine| in m dimensions, sqrt(2 / (pi m)) for large m; the largest of k; and
    k/m for two spans.
    """
    largest = _expected_largest(k)
    return {
        "chance_index": tuple(math.sqrt(2 / (math.pi * size)) for size in shape),
        "chance_max": tuple(min(1.0, largest / math.sqrt(size)) for size in shape),
        "chance_subspace": tuple(k / size for size in shape),
    }


STORED_SINGULAR_VALUES = 128


class MatrixSpectrum(Record):
    """The change of one weight matrix (docs/methods.md, "Spectra")."""

    name: str  # Module path in the base, such as ``model.layers.3.self_attn.q_proj``
    layer: int | None
    module: str  # Last part of the name, such as ``q_proj``
    shape: tuple[int, int]  # (out, in)
    frobenius: float  # |dW|_F
    relative: float  # |dW|_F / |W0|_F
    singular_values: tuple[float, ...]  # Leading singular values of dW, largest first, at most 128
    effective_rank: float  # exp of the entropy of sigma / sum(sigma)
    stable_rank: float  # |dW|_F^2 / sigma_1^2
    top_k: int  # Number of vectors that the similarities below compare
    similarity_index: tuple[float, float]  # Index-matched mean |C_ii| of left and right vectors
    similarity_max: tuple[float, float]  # Mean over tuned vectors of max |C_ij|, left and right
    similarity_subspace: tuple[float, float]  # |C|_F^2 / k, left and right
    chance_index: tuple[float, float]  # ``index`` of unrelated vectors, see :func:`chance_levels`
    chance_max: tuple[float, float]
    chance_subspace: tuple[float, float]
    intruders: int  # Leading left vectors of W with every |cosine| below epsilon
    intruder_energy: float  # Their share in the squared values of the examined vectors
    intruder_positions: tuple[int, ...] = ()  # Their positions among the leading vectors, from 0
    tuned_singular_values: tuple[float, ...] = ()  # Values of W, as many as were examined
    largest_cosines: tuple[float, ...] = ()  # From each examined vector to any base vector
    residual: float = 0.0  # Largest |W^T u - sigma v| of the leading vectors over sigma_1
    ill_conditioned: int = 0  # Vectors that rounding to float32 may turn by a sine above .01


class SpectraRecord(AnalysisRecord):
    intruder_k: int
    intruder_epsilon: float
    matrices: tuple[MatrixSpectrum, ...]

    @property
    def frobenius(self) -> float:
        """|dW|_F over all analyzed matrices together."""
        return math.sqrt(sum(m.frobenius**2 for m in self.matrices))

    @property
    def intruders(self) -> int:
        return sum(m.intruders for m in self.matrices)

    def energies(self, part: Callable[[MatrixSpectrum], object]) -> list[float]:
        """Sum |dW|_F^2 by part of the model: matrices with the same value of ``part`` are added."""
        sums: dict[object, float] = {}
        for matrix in self.matrices:
            sums[part(matrix)] = sums.get(part(matrix), 0.0) + matrix.frobenius**2
        return list(sums.values())


# --- growth with the rank -------------------------------------------------------------------------

FEWEST_RANKS = 3  # A line through two points always fits


class NormGrowth(Record):
    """Least-squares fit of |dW|_F against rank: a + b ln r (claimed by arXiv 2512.15634)."""

    ranks: tuple[int, ...]
    start: float  # a
    slope: float  # b, per unit of ln r
    rms: float  # Root mean square of the residual, in the norm's unit
    power: float  # Exponent p of c r^p, the alternative, fitted in logarithms
    power_rms: float

    @classmethod
    def fit(cls, ranks: Sequence[int], norms: Sequence[float]) -> "NormGrowth | None":
        """Fit both laws, with the residual of each, to |dW|_F of adapters that differ only in the
        rank.

        None with fewer than three different ranks, or if an update is zero.
        """
        if len(set(ranks)) < FEWEST_RANKS or min(norms) <= 0:
            return None
        x = [math.log(rank) for rank in ranks]
        slope, start = linear_regression(x, norms)
        power, level = linear_regression(x, [math.log(norm) for norm in norms])

        def rms(fitted: Sequence[float]) -> float:
            return math.sqrt(fmean((a - b) ** 2 for a, b in zip(norms, fitted, strict=True)))

        return cls(
            ranks=tuple(ranks),
            start=start,
            slope=slope,
            rms=rms([start + slope * at for at in x]),
            power=power,
            power_rms=rms([math.exp(level + power * at) for at in x]),
        )


def growth_of_given(trials: Sequence[TrialRecords]) -> NormGrowth | None:
    """Fit the growth over the largest set of comparable adapters.

    They have one kind, the same matrices, one rank each, and the same scaling or alpha.
    """
    groups: dict[tuple[object, ...], list[tuple[int, float]]] = {}
    for trial in trials:
        spec, spectra = trial.spec, trial.analysis(SpectraRecord)
        if spec.rank is None or spec.alpha is None or spectra is None:
            continue
        if get_method(spec.method).delta_is_low_rank and not _has_one_rank(spectra, spec.rank):
            continue
        names = tuple(matrix.name for matrix in spectra.matrices)
        for rule, value in (("scaling", spec.scaling), ("alpha", spec.alpha)):
            key = (spec.method, names, rule, float(f"{value:.6g}"))  # ignore rounding
            groups.setdefault(key, []).append((spec.rank, spectra.frobenius))
    if not groups:
        return None
    largest = max(groups.values(), key=lambda group: len({rank for rank, _ in group}))
    return NormGrowth.fit(*zip(*largest, strict=True))


def _has_one_rank(spectra: SpectraRecord, rank: int) -> bool:
    """Whether all updates have equally many singular values beyond rounding.

    It also holds if each has ``rank`` of them, as far as the matrix has and a record stores as
    many. PEFT's ``rank_pattern`` gives matrices other ranks.
    """
    found = [
        (sum(s > 1e-6 * m.singular_values[0] for s in m.singular_values), m.shape)
        for m in spectra.matrices
    ]
    return len({count for count, _ in found}) == 1 or all(
        count in (0, min(rank, *shape, STORED_SINGULAR_VALUES)) for count, shape in found
    )


def layer_index(name: str) -> int | None:
    """Return the layer number in a module or parameter path, from 0; None outside the layers."""
    match = re.search(r"(?:^|\.)([0-9]+)\.", name)
    return int(match[1]) if match else None


def module_kind(name: str) -> str:
    """Return a module's path within its layer, such as ``self_attn.q_proj``."""
    return re.split(r"(?:^|\.)[0-9]+\.", name, maxsplit=1)[-1]
