"""Which heads carry what training taught, and which carried what training cost.

Removing a head costs a model c = -(change of the gold answer's log-probability). On the trained
task c_tuned - c_base is the head's *skill*, on another task c_base - c_tuned what it *lost*. Costs
do not add up over heads, and small ones are noise: see ``HeadAblation.gold_difference_error``.
"""

from collections.abc import Sequence

from rankscope.records import HeadAblation, HeadRole


def head_roles(trained: HeadAblation, others: Sequence[HeadAblation]) -> tuple[HeadRole, ...]:
    """Roles of every head, layer by layer, from ablations on the trained task and on others,
    equally weighted."""
    shape = [len(heads) for heads in trained.base_gold_change]
    for ablation in (trained, *others):
        for changes in (ablation.base_gold_change, ablation.tuned_gold_change):
            if [len(heads) for heads in changes] != shape:
                raise ValueError(f"{ablation.task}: other heads than {trained.task}'s")
    skill = added_cost(trained)
    added_elsewhere = [added_cost(other) for other in others]
    return tuple(
        HeadRole(
            layer=layer,
            head=head,
            skill=skill[layer][head],
            lost=-sum(task[layer][head] for task in added_elsewhere) / len(others)
            if others
            else None,
        )
        for layer, heads in enumerate(shape)
        for head in range(heads)
    )


def added_cost(ablation: HeadAblation) -> list[list[float]]:
    """By layer and head: c_tuned - c_base, nats."""
    pairs = zip(ablation.base_gold_change, ablation.tuned_gold_change, strict=True)
    return [[b - t for b, t in zip(base, tuned, strict=True)] for base, tuned in pairs]
