"""The groups of a study in its ledger.

Free memory differs from run to run, and the composition of a group decides how sums are rounded. So
the first run's groups are stored, and a run that continues trains the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rankscope.formatting import byte_size
from rankscope.records import TrialSpec
from rankscope.run.groups import Group, halves_of
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger, StoredGroups
from rankscope.train.memory import GroupMemory


def resolve_groups(
    ledger: Ledger, study: PreparedStudy, trials: Sequence[TrialSpec]
) -> tuple[Group, ...]:
    """Return the groups of some trials of a study, and store new ones.

    Trials without a group are grouped among themselves. A changed ``max_group_size`` or
    ``memory_limit`` cuts all groups anew; trained trials stay unchanged.
    """
    config, stored = study.config, ledger.groups()
    groups: list[Group] = []
    budgets: dict[str, int] = {}
    limits = (config.max_group_size, config.memory_limit)
    if stored is not None and (stored.max_group_size, stored.memory_limit) == limits:
        groups = known_groups(stored, study)
        budgets = stored.batch_tokens
    grouped = {trial.trial_id for group in groups for trial in group}
    new = [trial for trial in trials if trial.trial_id not in grouped]
    groups += study.grouping.groups(new, config)
    store_groups(ledger, study, groups, budgets)
    wanted = {trial.trial_id for trial in trials}
    of_trials = (tuple(t for t in group if t.trial_id in wanted) for group in groups)
    return tuple(group for group in of_trials if group)


def known_groups(stored: StoredGroups, study: PreparedStudy) -> list[Group]:
    """Return stored groups without the trials that the study no longer has."""
    trials = {trial.trial_id: trial for trial in study.candidates}
    groups = [tuple(trials[i] for i in ids if i in trials) for ids in stored.groups]
    return [group for group in groups if group]


def store_groups(
    ledger: Ledger, study: PreparedStudy, groups: Sequence[Group], batch_tokens: dict[str, int]
) -> None:
    ledger.put_groups(
        StoredGroups(
            max_group_size=study.config.max_group_size,
            memory_limit=study.config.memory_limit,
            groups=tuple(tuple(trial.trial_id for trial in group) for group in groups),
            batch_tokens=batch_tokens,
        )
    )


@dataclass(frozen=True, slots=True)
class GroupLedger:
    """Changes of a study's groups while it runs, each stored at once."""

    ledger: Ledger
    study: PreparedStudy

    def stored(self) -> StoredGroups:
        stored = self.ledger.groups()
        assert stored is not None
        return stored

    def reduced(self, group: Group) -> dict[str, int]:
        """Return the limits of tokens in a forward pass that a shortage of memory set, by trial."""
        reduced, ids = self.stored().batch_tokens, {trial.trial_id for trial in group}
        return {trial_id: tokens for trial_id, tokens in reduced.items() if trial_id in ids}

    def batch_tokens(self, group: Group) -> int:
        """Return the most tokens of one forward pass: the study's, or fewer after a shortage."""
        return min([self.study.config.train.batch_tokens, *self.reduced(group).values()])

    def memory(self, group: Group) -> GroupMemory:
        """Estimate the memory of training a group in passes of their current size."""
        limit = self.batch_tokens(group)
        train = self.study.config.train.model_copy(update={"batch_tokens": limit})
        return self.study.grouping.memory(group, train)

    def check_limit(self, group: Group) -> None:
        """Raise MemoryError if a group needs more than the ``memory_limit`` of the study file.

        Without that limit, free memory is known only roughly, so a trial is tried.
        """
        limit = self.study.config.memory_limit
        if limit is not None and (needed := self.memory(group).total_bytes) > limit:
            raise MemoryError(
                f"training needs about {byte_size(needed)}, memory_limit is {byte_size(limit)}"
            )

    def shrink(self, group: Group) -> bool:
        """Halve the passes of a group if they take most of its memory; return False otherwise.

        The gradient is the same sum however it is cut, so this comes before a group is split.
        """
        counts, memory = self.study.grouping.counts_of(group), self.memory(group)
        tokens = memory.pass_tokens
        if tokens <= counts.longest or (len(group) > 1 and memory.pass_bytes < memory.state_bytes):
            return False
        smaller, stored = max(counts.longest, tokens // 2), self.stored()
        budgets = stored.batch_tokens | {trial.trial_id: smaller for trial in group}
        self.ledger.put_groups(stored.model_copy(update={"batch_tokens": budgets}))
        return True

    def split(self, group: Group) -> tuple[Group, Group]:
        halves = halves_of(group)
        ids = [trial.trial_id for trial in group]
        self._put(ids, [tuple(trial.trial_id for trial in half) for half in halves], {})
        return halves

    def replace(self, trial_ids: Sequence[str], unit: StoredGroups) -> None:
        """Take over the groups and budgets that a unit ended with.

        The ledger may have lost its last transactions when the machine lost power. Then there may
        be units but no groups, and it gets those of the first round again.
        """
        if self.ledger.groups() is None:
            is_search = self.study.config.strategy == "search"
            first = self.study.first if is_search else self.study.trials
            resolve_groups(self.ledger, self.study, first)
        self._put(trial_ids, unit.groups, unit.batch_tokens)

    def _put(
        self, trial_ids: Sequence[str], parts: Sequence[tuple[str, ...]], budgets: dict[str, int]
    ) -> None:
        """Put groups in place of those that have some of these trials."""
        stored, gone = self.stored(), set(trial_ids)
        groups: list[tuple[str, ...]] = []
        for ids in stored.groups:
            rest = tuple(i for i in ids if i not in gone)
            groups += [rest] if rest else []
            groups += parts if gone & set(ids) else []
        changes = {
            "groups": tuple(dict.fromkeys(groups)),
            "batch_tokens": stored.batch_tokens | budgets,
        }
        self.ledger.put_groups(stored.model_copy(update=changes))
