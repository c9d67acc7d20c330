"""What trained arms learn and forget when they are made milder, and mitigations beside that."""

from rankscope.records.record import Record
from rankscope.records.variants import VariantKind


class ScaledPoint(Record):
    """An arm at one strength of its update, means over its seeds; shares of 1 or nats."""

    strength: float
    """0 is the base and 1 the arm as trained."""
    gain: float
    """In-domain: tuned minus base, test split."""
    forgetting: float
    """Base minus tuned, mean over retention tasks, test split; positive = forgot."""
    validation_gain: float
    validation_forgetting: float
    seeds: int


class ScalingCurve(Record):
    """One arm from the base to what was trained, by rising strength."""

    label: str
    """Of the arm."""
    kind: VariantKind
    points: tuple[ScaledPoint, ...]
    chosen_strength: float
    """The strength of the highest utility on the validation split."""


class SeedMean(Record):
    """A mean over seeds with an interval over seeds and items."""

    value: float
    low: float | None
    """None below three seeds, whose spread is not known well enough."""
    high: float | None
    p: float | None
    """Two-sided, that it is zero."""
    p_holm: float | None = None
    """The same among all comparisons of the training task (Holm)."""
    seeds: int


class MitigationComparison(Record):
    """A way of forgetting less beside scaling the plain arm down to the same in-domain score."""

    label: str
    """The arm, or the arm and how its update is scaled."""
    plain: str
    """Label of the arm whose scaling curve it is compared with."""
    gain: float
    """In-domain, mean over the seeds compared."""
    forgetting: float
    baseline: float
    """What the plain arm forgets when it is scaled to the same gain, interpolated."""
    difference: SeedMean
    """Forgetting minus baseline. Below 0: better than scaling."""
    beyond: int
    """Seeds whose gain the plain arm does not reach at any strength: its baseline is then what it
    forgets at the most it learned, which grants it the rest for nothing."""


class TaskMitigation(Record):
    """Of one training task."""

    task: str
    curves: tuple[ScalingCurve, ...]
    comparisons: tuple[MitigationComparison, ...]
