"""Groups: the trials that train together on one copy of the frozen base."""

import itertools
import math
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rankscope.config.study import StudyConfig, TrainConfig
from rankscope.errors import UserError
from rankscope.hashing import sha256_json
from rankscope.models.attention.kernel import kernel_takes
from rankscope.records import TrialSpec
from rankscope.run.trials import ID_LENGTH
from rankscope.train.memory import GroupMemory, MemoryModel, RowCounts

DEFAULT_MAX_GROUP_SIZE = 16
"""Most adapters in a group, unless the study file sets ``max_group_size``."""

USABLE_SHARE = 0.9
"""Share of the free memory that plans use; estimates are off by less than the rest."""

Group = tuple[TrialSpec, ...]
BASE_GROUP: Group = ()
"""The empty group: it stands for the base, which is scored and writes rows that arms replay."""

GroupLimit = Literal["all trials of the task", "size limit", "memory", "method"]


def make_groups(
    trials: Sequence[TrialSpec],
    max_group_size: int | None = None,
    fits: Callable[[Group], bool] = lambda group: True,
) -> list[Group]:
    """Form the groups of trials that train together: LoRA groups by task, all other trials alone.

    The LoRA trials of a task are cut, in trial order, into few groups. Limits are
    ``max_group_size`` (by default ``DEFAULT_MAX_GROUP_SIZE``) and the memory (``fits``); a trial
    that does not fit alone is still a group. Sizes differ by at most one if only ``max_group_size``
    limits.

    Pass all trials of a study, done or not: groups, and with them the arithmetic, then do not
    depend on where a run was stopped.
    """
    limit = DEFAULT_MAX_GROUP_SIZE if max_group_size is None else max_group_size
    groups: list[Group] = []
    for task in dict.fromkeys(trial.task for trial in trials):
        of_task = [trial for trial in trials if trial.task == task]
        adapters = [trial for trial in of_task if not trial.trains_alone]
        groups += _cut_to_fit(adapters, limit, fits)
        groups += [(trial,) for trial in of_task if trial.trains_alone]
    return groups


def group_id(group: Sequence[TrialSpec]) -> str:
    """Return the id of a group: a hash of its trial ids in their order."""
    return sha256_json([trial.trial_id for trial in group])[:ID_LENGTH]


def group_label(group: Group) -> str:
    """Return a short name, such as ``12 adapters r 2-128`` or ``full lr=0.0005``."""
    if len(group) == 1:
        return group[0].arm_label
    ranks = [trial.rank for trial in group if trial.rank is not None]
    return f"{len(group)} adapters r {min(ranks)}-{max(ranks)}"


def halves_of(group: Group) -> tuple[Group, Group]:
    """Cut a group of at least two trials in two; the first half gets an odd trial."""
    middle = (len(group) + 1) // 2
    return group[:middle], group[middle:]


def _cut_to_fit(
    trials: Sequence[TrialSpec], limit: int, fits: Callable[[Group], bool]
) -> list[Group]:
    """Cut trials, in order, into groups of at most ``limit`` that fit.

    If memory does not limit them, sizes differ by at most one. Otherwise each group takes as many
    as it can, so that a large trial does not shrink the groups of others. If a group fits, so do
    fewer of its trials. ``fits`` counts a pass on shapes, so it is called a logarithmic number of
    times.
    """
    if not trials:
        return []
    count = math.ceil(len(trials) / limit)
    cuts = [len(trials) * i // count for i in range(count + 1)]
    groups = [tuple(trials[start:end]) for start, end in itertools.pairwise(cuts)]
    if all(map(fits, groups)):
        return groups
    groups, rest = [], tuple(trials)
    while rest:
        sizes = range(2, len(rest[:limit]) + 1)
        size = 1 + bisect(sizes, False, key=lambda size: not fits(rest[:size]))
        groups.append(rest[:size])
        rest = rest[size:]
    return groups


def what_limits(
    group: Group, groups: Sequence[Group], max_group_size: int | None = None
) -> GroupLimit:
    """Return what keeps a group from having more trials."""
    if group[0].trains_alone:
        return "method"
    alike = [p for p in groups if p[0].task == group[0].task and not p[0].trains_alone]
    if len(alike) == 1:
        return "all trials of the task"
    count = sum(map(len, alike))
    fewest = math.ceil(count / (max_group_size or DEFAULT_MAX_GROUP_SIZE))
    return "size limit" if len(alike) <= fewest else "memory"


@dataclass(frozen=True, slots=True)
class Grouping:
    """Cuts trials into groups that fit into ``room_bytes``."""

    model: MemoryModel
    counts: Mapping[str, RowCounts]  # By training task, and by replayed task
    room_bytes: int

    def counts_of(self, group: Group) -> RowCounts:
        """Return the counts of a group's rows; with replay, the larger counts of both kinds."""
        counts = [self.counts[group[0].task]]
        counts += [self.counts[trial.replay] for trial in group if trial.replay is not None]
        return RowCounts.longer(counts)

    def memory(self, group: Group, train: TrainConfig) -> GroupMemory:
        if not group or not group[0].trains:  # a prompt holds nothing besides the base
            return self.model.of_scored(() if not group or group[0].prompt else group, train)
        return self.model.of_group(group, self.counts_of(group), train)

    def groups(self, trials: Sequence[TrialSpec], config: StudyConfig) -> list[Group]:
        """Cut trials into groups, limited by ``max_group_size`` and memory."""

        def fits(group: Group) -> bool:
            return self.memory(group, config.train).total_bytes <= self.room_bytes

        before, self.model.replicates = self.model.replicates, False
        groups = make_groups(trials, config.max_group_size, fits)
        self.model.replicates = before  # which other groups decided
        return groups

    def notes(self, config: StudyConfig, trials: Sequence[TrialSpec]) -> list[str]:
        """Note layers that the base's architecture leaves out, and slowness on this device.

        Raises UserError: its rows cannot be shared among devices.
        """
        notes = _experts_notes(self.model, trials) + _attention_notes(self.model)
        return notes if self.model.packs else notes + _rows_alone_notes(config, self)


def _experts_notes(memory: MemoryModel, trials: Sequence[TrialSpec]) -> list[str]:
    """Note that adapters leave experts alone, if each layer holds them in one tensor."""
    names = [
        f"{name}.{key}"
        for name, module in memory.base.named_modules()
        if "Experts" in type(module).__name__
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]
    if not names or not any(trial.rank and not trial.peft for trial in trials):
        return []
    short = names[0].split(".layers.")[-1].partition(".")[2]
    return [
        f"{type(memory.base).__name__}: adapters leave its experts, no linear layers, as they "
        f"are; method {{peft: {{peft_type: LORA, target_parameters: [{short}]}}}} trains them"
    ]


def _attention_notes(memory: MemoryModel) -> list[str]:
    """Note the cost of attention on CUDA without the kernel for rows of any length."""
    if not memory.packs or memory.device.type != "cuda":
        return []
    sizes = {
        getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None) or 64
        for module in memory.base.modules()
    }
    sizes = {size for size in sizes if not kernel_takes(size, memory.dtype)}
    if not memory.passes.has_kernel:
        why = "a GPU below compute capability 8.0"
    elif memory.dtype == torch.float32:
        why = "float32"
    elif sizes:
        why = f"heads of {max(sizes)}"
    else:
        return []
    return [
        f"{why}: attention without FlashAttention, so rows are padded to the longest of their pass "
        "and key heads repeated; the plan counts their memory, not their time"
    ]


def _rows_alone_notes(config: StudyConfig, grouping: Grouping) -> list[str]:
    """Note the cost of rows that cannot share a pass."""
    architecture = type(grouping.model.base).__name__
    if config.train.devices > 1:
        found = f"{config.train.devices}, with {architecture}, whose rows run alone"
        raise UserError("train.devices", found, "1 (docs/your-model-and-data.md)")
    shortest = min((of.mean_tokens for of in grouping.counts.values()), default=1.0)
    times = max(1.0, config.train.batch_tokens / shortest)
    return [
        f"{architecture}: rows cannot share a pass (docs/your-model-and-data.md), so each row, "
        f"and each answer of a question, runs alone: exact, in up to {times:,.0f} times as many "
        f"passes as train.batch_tokens={config.train.batch_tokens:,} allows; beginnings run again"
    ]
