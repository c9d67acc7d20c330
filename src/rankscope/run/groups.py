"""Which trials train together, on one copy of the frozen base."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

from rankscope.config.study import TrainConfig
from rankscope.errors import BadInput
from rankscope.provenance import sha256_json
from rankscope.records import TrialSpec
from rankscope.run.trials import ID_LENGTH, unique
from rankscope.train.step_schedule import ALONE, own_protocol, planned_steps

DEFAULT_MAX_PACK = 16
"""Most LoRA trials in a pack where the study file names no ``max_pack``."""


Pack = tuple[TrialSpec, ...]


PackLimit = Literal["all trials of the task", "max_pack", "memory", "method"]


def make_packs(
    trials: Sequence[TrialSpec],
    max_pack: int | None = None,
    fits: Callable[[Pack], bool] = lambda pack: True,
) -> list[Pack]:
    """Trials that are trained together: per task its LoRA packs, then each other trial alone.

    The LoRA trials of a task are cut, in trial order, into as few packs as ``max_pack`` (by
    default ``DEFAULT_MAX_PACK``) and the memory (``fits``) allow; a trial that does not fit alone
    is a pack all the same. Sizes differ by at most one where ``max_pack`` alone limits. Give all
    trials of a study, done or not: packs, and with them the arithmetic, then do not depend on where
    a run was stopped.
    """
    limit = DEFAULT_MAX_PACK if max_pack is None else max_pack
    if limit < 1:
        raise BadInput(f"max_pack is {limit}: expected at least 1")
    packs: list[Pack] = []
    for task in unique([trial.task for trial in trials]):
        of_task = [trial for trial in trials if trial.task == task]
        packs += cut_to_fit([t for t in of_task if t.method not in ALONE], limit, fits)
        packs += [(trial,) for trial in of_task if trial.method in ALONE]
    return packs


def pack_id(pack: Sequence[TrialSpec]) -> str:
    """Content id of a pack: hash of its trial ids in their order."""
    return sha256_json([trial.trial_id for trial in pack])[:ID_LENGTH]


def described(pack: Pack) -> str:
    """A pack for one line of the screen: ``12 adapters r 2-128``, or ``full lr=0.0005``."""
    if len(pack) == 1:
        return pack[0].arm_label
    ranks = [trial.rank for trial in pack if trial.rank is not None]
    return f"{len(pack)} adapters r {min(ranks)}-{max(ranks)}"


def pack_steps(pack: Pack, num_rows: int, num_tokens: int, train: TrainConfig) -> int:
    """Optimizer steps of the pack's longest trial; arguments as of ``planned_steps``."""
    return max(planned_steps(num_rows, num_tokens, own_protocol(t, train)) for t in pack)


def cut_to_fit(
    trials: Sequence[TrialSpec], limit: int, fits: Callable[[Pack], bool] = lambda pack: True
) -> list[Pack]:
    """Cut into runs of at most ``limit`` that fit, in order.

    Sizes differ by at most one where the memory does not matter. Where it does, each run takes all
    that it can, so that a large trial costs its neighbours nothing. A run that fits is taken to fit
    with fewer trials too: ``fits`` costs a pass on shapes, and is asked a logarithm of times a run.
    """
    if not trials:
        return []
    packs = cut_into(trials, math.ceil(len(trials) / limit))
    if all(map(fits, packs)):
        return packs
    packs, rest = [], tuple(trials)
    while rest:
        size = most_that_fit(rest[:limit], fits)
        packs.append(rest[:size])
        rest = rest[size:]
    return packs


def most_that_fit(trials: Pack, fits: Callable[[Pack], bool]) -> int:
    """How many of the first trials fit together; one is taken in any case."""
    fewest, most = 1, len(trials)
    size = most
    while fewest < most:
        if fits(trials[:size]):
            fewest = size
        else:
            most = size - 1
        size = (fewest + most + 1) // 2
    return fewest


def cut_into(trials: Sequence[TrialSpec], count: int) -> list[Pack]:
    """``count`` runs whose sizes differ by at most one."""
    cuts = [len(trials) * i // count for i in range(count + 1)]
    return [tuple(trials[start:end]) for start, end in itertools.pairwise(cuts)]


def what_limits(pack: Pack, packs: Sequence[Pack], max_pack: int | None = None) -> PackLimit:
    """What keeps a pack from holding more trials."""
    if pack[0].method in ALONE:
        return "method"
    alike = [p for p in packs if p[0].task == pack[0].task and p[0].method not in ALONE]
    if len(alike) == 1:
        return "all trials of the task"
    fewest = math.ceil(sum(map(len, alike)) / (max_pack or DEFAULT_MAX_PACK))
    return "max_pack" if len(alike) <= fewest else "memory"
