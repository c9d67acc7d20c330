"""What arms learn and forget when their update is scaled down, and mitigations against that."""

from rankscope.records.estimate import Estimate
from rankscope.records.record import Record
from rankscope.records.variants import VariantKind


class ScaledPoint(Record):
    """An arm with its update scaled to one strength; means over seeds, shares of 1 or nats."""

    strength: float  # 0 is the base and 1 the arm as trained
    gain: float  # In-domain: tuned minus base, test split
    forgetting: float  # Base minus tuned, mean over retention tasks, test split; positive = forgot
    validation_gain: float
    validation_forgetting: float
    seeds: int


class ScalingCurve(Record):
    """One arm from the base to the trained model, by increasing strength."""

    label: str  # Label of the arm
    kind: VariantKind
    points: tuple[ScaledPoint, ...]
    chosen_strength: float  # The strength of the highest utility on the validation split


class MitigationComparison(Record):
    """A mitigation compared with the plain arm scaled down to the same in-domain score."""

    label: str  # The mitigated arm, or the arm and how its update is scaled
    plain: str  # Label of the arm whose scaling curve is the baseline
    gain: float  # In-domain gain, mean over the compared seeds
    forgetting: float
    baseline: float  # Forgetting of the plain arm scaled to the same gain, interpolated
    difference: Estimate
    """Forgetting minus baseline; negative is better than scaling. No interval and p below three
    seeds; ``p_holm`` over all comparisons of the training task."""
    beyond: int
    """Seeds whose gain the plain arm reaches at no strength. Their baseline is its forgetting at
    its largest gain, which favours the plain arm."""


class TaskMitigation(Record):
    task: str
    curves: tuple[ScalingCurve, ...]
    comparisons: tuple[MitigationComparison, ...]
