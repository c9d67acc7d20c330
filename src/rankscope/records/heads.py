"""What the attention heads became: how far each moved, what it is worth, where it looks."""

from rankscope.records.record import Record


class HeadChange(Record):
    """One attention matrix cut into heads: docs/science.md, "Heads"."""

    layer: int
    module: str
    """``q_proj`` or ``o_proj``, by query head; ``k_proj`` or ``v_proj``, by key/value head."""
    frobenius: tuple[float, ...]
    """|dW_h|_F of every head's rows (of o_proj: columns)."""
    relative: tuple[float, ...]
    """|dW_h|_F / |W0_h|_F."""


class LayerHeads(Record):
    """The heads of one layer of one model on the items of one task."""

    layer: int
    importance: tuple[float, ...]
    """E_x |z_h . dL/dz_h| by query head, divided by the layer's l2 norm."""
    group_importance: tuple[float, ...]
    """The same by key/value head, its query heads summed with their signs first."""
    entropy: tuple[float | None, ...]
    """Of the attention weights by query head, from 0 (one token) to 1 (all alike); None where no
    position has a choice."""


class HeadAblation(Record):
    """Every head removed by itself, before and after training, on one task.

    Lists by layer, then by query head. Changes are those of the mean over items when the head's
    output is set to zero: negative where it was of use.
    """

    task: str
    items: int
    metric: str
    """Headline metric of the task."""
    base_score: float
    """Of the untouched base."""
    tuned_score: float
    """Of the untouched tuned model."""
    base_change: tuple[tuple[float, ...], ...]
    """Of the primary score."""
    tuned_change: tuple[tuple[float, ...], ...]
    base_gold_change: tuple[tuple[float, ...], ...]
    """Of the gold answer's log-probability, nats per item."""
    tuned_gold_change: tuple[tuple[float, ...], ...]
    gold_difference_error: tuple[tuple[float | None, ...], ...]
    """Standard error of tuned_gold_change minus base_gold_change over the items."""
    base_layer_gold_change: tuple[float, ...] = ()
    """By layer, with all its heads removed together; empty in records of before."""
    tuned_layer_gold_change: tuple[float, ...] = ()


class HeadRole(Record):
    """What one head carries: see ``analyze.heads.roles``."""

    layer: int
    head: int
    skill: float
    """Nats per item that removing it costs the tuned model on the training task, more than it costs
    the base."""
    lost: float | None
    """Nats per item that removing it costs the base on the other tasks, more than it costs the
    tuned model; the mean over tasks. None where there is no other task."""


class HeadsRecord(Record):
    """The heads of one trial, beside those of its base."""

    trial_id: str
    task: str
    """Whose items importance and entropy are of."""
    items: int
    items_asked: int
    """The most that there might have been, of every task."""
    dtype: str | None = None
    """What the models ran in, such as ``float32``; in ``bfloat16`` rounding alone moves a head's
    cost by hundredths of a nat. None in records of before."""
    changes: tuple[HeadChange, ...]
    """Of the attention matrices that training changed."""
    base: tuple[LayerHeads, ...]
    """By layer."""
    tuned: tuple[LayerHeads, ...]
    ablations: tuple[HeadAblation, ...] = ()
    """By task, the training task first; empty where none was asked for."""
    roles: tuple[HeadRole, ...] = ()
    """From the ablations, where the training task's is among them."""
    seconds: float
