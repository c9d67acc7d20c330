"""Mixtures: several tasks as one, trained on together and evaluated together."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from rankscope.config.task import TaskConfig
from rankscope.data.contamination import Contamination, find_contamination
from rankscope.data.items import Item
from rankscope.data.splits import first_of_order
from rankscope.data.tasks import LoadedTask
from rankscope.errors import UserError
from rankscope.hashing import sha256_json


def mix_tasks(
    config: TaskConfig, parts: Sequence[LoadedTask], data_seed: int, compare: bool = True
) -> LoadedTask:
    """One training task with all rows of its parts, scored by the mean over all their items.

    Items alternate between the parts, so that a limit on items covers all parts.
    ``max_train_rows`` limits the rows of all parts together.
    """
    for part in parts:
        if not part.train:
            raise UserError(
                f"task {config.name!r} mixes {part.spec.name!r}, which has no training rows"
            )
    if len({part.spec.score_unit for part in parts}) > 1:
        raise UserError(
            f"task {config.name!r} mixes tasks scored by accuracy and by log probability, which "
            "have no common mean; mix tasks of one kind"
        )
    train = tuple(chain.from_iterable(part.train for part in parts))
    train = first_of_order(train, config.max_train_rows, data_seed, config.name, "train")
    test = interleave([part.test for part in parts])
    contamination = find_contamination(train, test) if compare else Contamination()
    names = ", ".join(part.spec.name for part in parts)
    chances = [(part.spec.chance, len(part.test)) for part in parts]
    known = [chance * items for chance, items in chances if chance is not None]
    return LoadedTask(
        spec=replace(
            parts[0].spec,
            name=config.name,
            description=f"Rows and items of {names} together.",
            chance=sum(known) / len(test) if len(known) == len(parts) else None,
            hub=None,
            folder=None,
        ),
        train=train,
        validation=interleave([part.validation for part in parts]),
        test=test,
        sha256=sha256_json([[part.spec.name, part.sha256] for part in parts] + [len(train)]),
        dropped=sum(part.dropped for part in parts),
        source=f"{names} together",
        contamination=contamination.counts,
        notes=(f"{config.name}: {len(train)} training rows of {names} together",),
        contaminated_ids=contamination.item_ids,
        row_shape=", ".join(dict.fromkeys(part.row_shape for part in parts)),
        parts=tuple(parts),
    )


def interleave(splits: Sequence[Sequence[Item]]) -> tuple[Item, ...]:
    """One item of each part in turn until all are used."""
    return tuple(item for turn in zip_longest(*splits) for item in turn if item is not None)
