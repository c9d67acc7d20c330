"""Which heads carry what training taught, and which carried what it cost.

Removing a head costs a model c = -(change of the gold answer's log-probability). What training
added to a head's part in the task it trained on is c_tuned - c_base there, its *skill*; what
training took from a head's part in another task is c_base - c_tuned there, what was *lost*. Pure
functions of per-head changes: nothing is run.

A head's cost is not additive over heads, since others may stand in for it, and a cost of a few
hundredths of a nat on a few dozen items is noise: ``HeadAblation.gold_difference_error`` tells.
"""

from collections.abc import Sequence

from rankscope.records import HeadAblation, HeadRole


def head_roles(in_domain: HeadAblation, others: Sequence[HeadAblation]) -> tuple[HeadRole, ...]:
    """Roles of every head, layer by layer.

    Args:
        in_domain: ablations on the task that was trained on.
        others: on cross-domain or retention tasks; each weighs the same.

    Raises:
        ValueError: ablations of models of different shapes.
    """
    shape = [len(heads) for heads in in_domain.base_gold_change]
    for ablation in (in_domain, *others):
        for field in (ablation.base_gold_change, ablation.tuned_gold_change):
            if [len(heads) for heads in field] != shape:
                raise ValueError(f"{ablation.task}: other heads than {in_domain.task}'s")
    gained = _more_costly(in_domain)
    lost = [_more_costly(other) for other in others]
    return tuple(
        HeadRole(
            layer=layer,
            head=head,
            skill=gained[layer][head],
            lost=-sum(task[layer][head] for task in lost) / len(lost) if lost else None,
        )
        for layer, heads in enumerate(shape)
        for head in range(heads)
    )


def _more_costly(ablation: HeadAblation) -> list[list[float]]:
    """By layer and head: how much more its removal costs the tuned model than the base, nats."""
    pairs = zip(ablation.base_gold_change, ablation.tuned_gold_change, strict=True)
    return [[b - t for b, t in zip(base, tuned, strict=True)] for base, tuned in pairs]
