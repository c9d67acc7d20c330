"""How the size of the update grows with the rank."""

import math
from collections.abc import Sequence
from statistics import fmean, linear_regression

from rankscope.analyses.spectra.record import STORED_SINGULAR_VALUES, SpectraRecord
from rankscope.models.methods import get_lora_method
from rankscope.records import Record, TrialRecords

FEWEST_RANKS = 3  # A line through two points always fits


class NormGrowth(Record):
    """Least-squares fit of |dW|_F against rank: a + b ln r (claimed by arXiv 2512.15634)."""

    ranks: tuple[int, ...]
    norms: tuple[float, ...]  # |dW|_F over all matrices, same order
    start: float  # a
    slope: float  # b, per unit of ln r
    rms: float  # Root mean square of the residual, in the norm's unit
    power: float  # Exponent p of c r^p, the alternative, fitted in logarithms
    power_rms: float

    @classmethod
    def fit(cls, ranks: Sequence[int], norms: Sequence[float]) -> "NormGrowth | None":
        """Fit both, with the residual of each, to |dW|_F of adapters trained alike but for the
        rank; None with fewer than three different ranks, or if an update is zero."""
        if len(set(ranks)) < FEWEST_RANKS or min(norms) <= 0:
            return None
        x = [math.log(rank) for rank in ranks]
        slope, start = linear_regression(x, norms)
        power, level = linear_regression(x, [math.log(norm) for norm in norms])

        def rms(fitted: Sequence[float]) -> float:
            return math.sqrt(fmean((a - b) ** 2 for a, b in zip(norms, fitted, strict=True)))

        return cls(
            ranks=tuple(ranks),
            norms=tuple(norms),
            start=start,
            slope=slope,
            rms=rms([start + slope * at for at in x]),
            power=power,
            power_rms=rms([math.exp(level + power * at) for at in x]),
        )


def growth_of_given(trials: Sequence[TrialRecords]) -> NormGrowth | None:
    """The fit over the largest set of adapters of one kind on the same matrices, of one rank each,
    with the same scaling or alpha."""
    groups: dict[tuple[object, ...], list[tuple[int, float]]] = {}
    for trial in trials:
        spec, spectra = trial.spec, trial.analysis(SpectraRecord)
        if spec.rank is None or spec.alpha is None or spectra is None:
            continue
        if get_lora_method(spec.method).delta_is_low_rank and not _has_one_rank(spectra, spec.rank):
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
    """Whether all updates have as many singular values beyond rounding, or ``rank`` as far as the
    matrix has and a record stores as many; PEFT's ``rank_pattern`` gives matrices others."""
    found = [
        (sum(s > 1e-6 * m.singular_values[0] for s in m.singular_values), m.shape)
        for m in spectra.matrices
    ]
    return len({count for count, _ in found}) == 1 or all(
        count in (0, min(rank, *shape, STORED_SINGULAR_VALUES)) for count, shape in found
    )
