"""Records of how training changed the attention heads: change, importance, entropy, ablation."""

from collections.abc import Sequence

from rankscope.records.record import AnalysisRecord, Record


class HeadChange(Record):
    """The change of one attention matrix, head by head (docs/inspect.md, "Attention heads")."""

    layer: int
    module: str  # ``q_proj``, ``o_proj`` by query head; ``k_proj``, ``v_proj`` by key/value head
    frobenius: tuple[float, ...]  # |dW_h|_F of each head's rows (columns for o_proj)
    relative: tuple[float, ...]  # |dW_h|_F / |W0_h|_F


class LayerHeads(Record):
    layer: int
    importance: tuple[float, ...]  # E_x |z_h . dL/dz_h| over the layer's l2 norm, by query head
    group_importance: tuple[float, ...]  # By key/value head, from signed sums over query heads
    entropy: tuple[float | None, ...]
    """Entropy of the attention weights by query head, from 0 (one token) to 1 (uniform); None if no
    position sees more than one token."""


class HeadAblation(Record):
    """Each head removed on its own, before and after training, on one task.

    Lists are by layer, then by query head. Changes are those of the mean over items when the head's
    output is set to zero: negative for a useful head.
    """

    task: str
    items: int
    metric: str  # Primary metric of the task
    base_score: float  # Score of the intact base
    tuned_score: float  # Score of the intact tuned model
    base_change: tuple[tuple[float, ...], ...]  # Change of the primary score
    tuned_change: tuple[tuple[float, ...], ...]
    base_gold_change: tuple[tuple[float, ...], ...]  # Change of the gold log-probability, nats
    tuned_gold_change: tuple[tuple[float, ...], ...]
    gold_difference_error: tuple[tuple[float | None, ...], ...]  # Error of tuned minus base
    base_layer_gold_change: tuple[float, ...]  # By layer, all of its heads removed together
    tuned_layer_gold_change: tuple[float, ...]


class HeadsRecord(AnalysisRecord):
    task: str  # Task whose items give importance and entropy
    items: int
    dtype: str
    """Dtype of the models, such as ``float32``; in ``bfloat16``, rounding alone moves a head's cost
    by hundredths of a nat."""
    changes: tuple[HeadChange, ...]  # One entry per attention matrix that training changed
    base: tuple[LayerHeads, ...]  # By layer
    tuned: tuple[LayerHeads, ...]
    ablations: tuple[HeadAblation, ...] = ()  # By task, the training task first
    skill: tuple[tuple[float, ...], ...] = ()
    """Nats per item that removing a head costs the tuned model more than the base, on the trained
    task, by layer and query head. Empty if that task was not ablated on."""
    lost: tuple[tuple[float, ...], ...] = ()
    """Nats per item that removing a head costs the base more than the tuned model, mean over the
    other tasks. Empty without other tasks."""

    def energies(self, modules: Sequence[str]) -> list[float]:
        """Return the sum over ``modules`` of |dW_h|_F^2, by layer and head.

        Heads of unchanged modules are left out.
        """
        sums: dict[tuple[int, int], float] = {}
        for change in self.changes:
            for head, norm in enumerate(change.frobenius if change.module in modules else ()):
                place = change.layer, head
                sums[place] = sums.get(place, 0.0) + norm**2
        return list(sums.values())
