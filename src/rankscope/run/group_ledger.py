"""Groups over the life of a study: cut once, kept in the ledger, changed by a shortage of memory.

How much memory is free differs from run to run, and groups decide how sums are rounded. So the first
run's groups are stored, and a run that continues trains the same ones.
"""

import dataclasses
from collections.abc import Sequence

from rankscope.run.groups import Group
from rankscope.run.prepare import PreparedStudy
from rankscope.store import Ledger
from rankscope.store.groups import StoredGroups
from rankscope.train.checkpoint import GroupCheckpoint, GroupState


def settled(ledger: Ledger, inputs: PreparedStudy) -> PreparedStudy:
    """The inputs with the groups that the study has; stored where it had none.

    Trials that the study gained are packed among themselves. A changed ``max_group_size`` or
    ``memory_limit`` cuts all groups anew; what is trained stays as it is.
    """
    config, stored = inputs.config, ledger.groups()
    groups = list(inputs.groups)
    budgets: dict[str, int] = {}
    if stored is not None and (stored.max_group_size, stored.memory_limit) == (
        config.max_group_size,
        config.memory_limit,
    ):
        known = {trial.trial_id: trial for trial in inputs.trials}
        kept = [tuple(known[i] for i in ids if i in known) for ids in stored.groups]
        groups = [group for group in kept if group]
        old = {trial.trial_id for group in groups for trial in group}
        new = [trial for trial in inputs.trials if trial.trial_id not in old]
        groups += inputs.grouping.groups(new, config)
        budgets = stored.batch_tokens
    store(ledger, inputs, groups, budgets)
    return dataclasses.replace(inputs, groups=tuple(groups))


def store(
    ledger: Ledger, inputs: PreparedStudy, groups: Sequence[Group], budgets: dict[str, int]
) -> None:
    """Write down groups and budgets."""
    ids = tuple(tuple(trial.trial_id for trial in group) for group in groups)
    config = inputs.config
    ledger.put_groups(
        StoredGroups(
            max_group_size=config.max_group_size,
            memory_limit=config.memory_limit,
            groups=ids,
            batch_tokens=budgets,
        )
    )


def budget_of(ledger: Ledger, inputs: PreparedStudy, group: Group) -> int:
    """Most tokens of one forward pass of a group: the study's, or fewer after a shortage."""
    stored = ledger.groups()
    found = stored.batch_tokens if stored is not None else {}
    study = inputs.config.train.batch_tokens
    return min(study, *(found.get(trial.trial_id, study) for trial in group))


def smaller_budget(inputs: PreparedStudy, group: Group, budget: int) -> int | None:
    """Half of a pass's tokens, where passes are what takes the memory and can be smaller.

    The gradient is the same sum however it is cut, so this comes before a group is halved.
    """
    train = inputs.config.train.model_copy(update={"batch_tokens": budget})
    counts = inputs.grouping.counts_of(group)
    takes = inputs.grouping.memory(group, train)
    tokens = takes.pass_tokens
    if tokens <= counts.longest or (len(group) > 1 and takes.pass_bytes < takes.state_bytes):
        return None
    return max(counts.longest, tokens // 2)


def shrink(ledger: Ledger, inputs: PreparedStudy, group: Group, budget: int) -> None:
    """Remember that a group's passes hold at most ``budget`` tokens from here on."""
    stored = ledger.groups()
    budgets = {} if stored is None else dict(stored.batch_tokens)
    budgets.update((trial.trial_id, budget) for trial in group)
    known = {trial.trial_id: trial for trial in inputs.trials}
    groups = inputs.groups
    if stored is not None:
        groups = tuple(tuple(known[i] for i in ids) for ids in stored.groups)
    store(ledger, inputs, groups, budgets)


def halves_of(group: Group) -> tuple[Group, Group]:
    """A group of at least two cut in two, the first half never the smaller one."""
    middle = (len(group) + 1) // 2
    return group[:middle], group[middle:]


def halve(ledger: Ledger, inputs: PreparedStudy, group: Group) -> tuple[Group, Group]:
    """The halves of a group, which take its place in the ledger."""
    halves = halves_of(group)
    stored = ledger.groups()
    assert stored is not None
    known = {trial.trial_id: trial for trial in inputs.trials}
    gone = {trial.trial_id for trial in group}
    groups: list[Group] = []
    for ids in stored.groups:
        rest = tuple(known[i] for i in ids if i not in gone)
        groups += [rest] if rest else []
        groups += list(halves) if gone & set(ids) else []
    store(ledger, inputs, groups, stored.batch_tokens)
    return halves


def hand_down(whole: GroupCheckpoint, group: Group, into: GroupCheckpoint) -> None:
    """Give a part of a group the state that the whole one had, if any.

    What it took in seconds goes with the tokens of the part's trials, of all that the state holds.
    """
    state = whole.load()
    if state is None:
        return
    ids = {trial.trial_id for trial in group}
    tensors = {n: tensor for n, tensor in state.tensors.items() if n.split("/")[0] in ids}
    meta = {name: value for name, value in state.meta.items() if name in ids}
    tokens = {n: trial["num_tokens"] for n, trial in state.meta.items() if isinstance(trial, dict)}
    share = sum(tokens.get(i, 0) for i in ids) / max(1, sum(tokens.values()))
    seconds = state.meta["seconds"]
    assert isinstance(seconds, float | int)
    into.save(GroupState(state.step, tensors, {**meta, "seconds": seconds * share}))
