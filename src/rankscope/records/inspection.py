"""What ``inspect`` measures in adapters and fine-tuned checkpoints."""

import math
from collections.abc import Sequence
from statistics import fmean, linear_regression

from rankscope.records.heads import HeadsRecord
from rankscope.records.record import MethodName, Record
from rankscope.records.spectra import SpectraRecord
from rankscope.records.study import Provenance

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


class TunedModel(Record):
    name: str  # Folder's name, made unique within the inspection
    path: str
    kind: MethodName
    rank: int | None  # None for a full checkpoint
    scaling: float | None  # s in W0 + s B A; None for a full checkpoint
    spectra: SpectraRecord
    heads: HeadsRecord | None = None  # Only if heads were requested
    other_base_forced: bool = False  # It records another base than this inspection's


class Inspection(Record):
    base: str
    base_path: str
    architecture: str
    quantized: str | None
    tuned: tuple[TunedModel, ...]
    growth: NormGrowth | None  # Over adapters of one kind, if there are three ranks
    cache_bytes: int  # Size of the base's decompositions on disk
    provenance: Provenance
    seconds: float


class MatrixChange(Record):
    name: str
    rank_before: int
    rank_after: int
    frobenius_before: float  # |dW|_F
    frobenius_after: float
    error: float  # |dW - dW'|_F
    intruders: int | None = None  # Scaled down; None if the action does not look for them


class AdapterChange(Record):
    source: str
    out: str
    action: str
    matrices: tuple[MatrixChange, ...]

    @property
    def frobenius(self) -> float:
        """|dW|_F of the adapter as it was, all matrices together."""
        return math.sqrt(sum(m.frobenius_before**2 for m in self.matrices))

    @property
    def error(self) -> float:
        """|dW - dW'|_F, all matrices together."""
        return math.sqrt(sum(m.error**2 for m in self.matrices))
