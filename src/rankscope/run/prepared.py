"""A study file resolved on one machine: everything that is known before weights are loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from statistics import fmean

import torch

from rankscope.analyses import all_analyses
from rankscope.analyses.analysis import Analysis, analyses_of_run
from rankscope.config.objective import BudgetConfig
from rankscope.config.section import Interval
from rankscope.config.study import EvaluateConfig, StudyConfig
from rankscope.data.study_data import StudyData
from rankscope.errors import UserError
from rankscope.evaluate.continuous_batching import writing_bytes
from rankscope.evaluate.evaluator import wanted_splits
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.evaluate.token_trees import most_kept
from rankscope.hashing import canonical_json
from rankscope.models.parameters import nbytes
from rankscope.models.study_base import StudyBase
from rankscope.records import BASE, EvalKey, ScoredModel, Split, TaskRecord, TrialSpec, trial_of
from rankscope.run.groups import Group, Grouping
from rankscope.train.memory import GroupMemory, MemoryModel
from rankscope.train.objectives.objective import objective_of
from rankscope.train.pass_memory import PassShape, spread
from rankscope.train.step_schedule import due_steps, rows_per_step, trial_protocol, trial_steps

GRID_SHARE, LEAST_TRIALS = 0.25, 12  # Without a budget: share of all trials, least by task
SPLITS: tuple[Split, ...] = ("validation", "test")
Items = Mapping[tuple[str, Split], Sequence[ItemTokens]]
"""Work of a model for each item, by task and scored split."""


@dataclass(frozen=True)
class PreparedStudy:
    config: StudyConfig  # The study file with ``auto`` resolved
    base: StudyBase
    device: torch.device
    dtype: torch.dtype
    data: StudyData
    items: Items
    task_records: tuple[TaskRecord, ...]  # One per task, as stored
    trials: tuple[TrialSpec, ...]
    first: tuple[TrialSpec, ...]  # Trials that a search begins with
    grouping: Grouping
    notes: tuple[str, ...]  # Facts for a reader of the results
    beyond: tuple[TrialSpec, ...] = ()
    """Trials beyond the ends of the lists of rates and ranks, which a search may train."""
    prompted: Mapping[str, Items] = field(default_factory=dict)
    """Items as read after a prompt, by prompt trial."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All trials, in groups that train together. Forming them runs passes on shapes."""
        return self.placed(self.grouping.groups(self.trials, self.config))

    def placed(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Return the groups as they run on the study's devices.

        Each device holds the frozen base whole if all groups then fit.
        """
        if self.config.train.devices > 1:
            self.grouping.model.replicates = True
            self.grouping.model.replicates = all(map(self._fits, ((), *groups)))
        return tuple(groups)

    def _fits(self, group: Group) -> bool:
        """Whether a group can be trained and scored; without trials, whether the base can be
        scored."""
        train, scoring = self.config.train, self.scoring_bytes(group)
        memory = self.grouping.memory(group, train)
        peak = memory.with_pass(max(memory.pass_bytes, scoring))
        if group and group[0].is_full:  # scored as it was stored, by shard 0 alone
            peak = max(peak, self.grouping.model.of_scored(group, train).with_pass(scoring))
        return peak <= self.grouping.room_bytes

    @cached_property
    def candidates(self) -> tuple[TrialSpec, ...]:
        """Every trial that may be trained."""
        return (*self.trials, *self.beyond)

    @cached_property
    def search_budget(self) -> BudgetConfig:
        """Limit of a search: by default a quarter of the grid, at least 12 trials a task."""
        if self.config.budget is not None:
            return self.config.budget
        trained = sum(trial.trains for trial in self.trials)
        least = LEAST_TRIALS * len(self.data.rows)
        return BudgetConfig(trials=min(trained, max(least, ceil(GRID_SHARE * trained))))

    @cached_property
    def _by_id(self) -> dict[str, TrialSpec]:
        return {trial.trial_id: trial for trial in self.candidates}

    def items_of(self, trial: TrialSpec) -> Items:
        """Return the items as a trial is scored on them, after its prompt if it has one."""
        return self.prompted.get(trial.trial_id, self.items)

    @cached_property
    def _scoring(self) -> list[Callable[[Group], int]]:
        """Memory of scoring each split, by group."""
        model, settings = self.grouping.model, self.config.evaluate
        return [_scoring_memory(model, of_split, settings) for of_split in self.items.values()]

    def host_bytes(self, group: Group, memory: GroupMemory | None = None) -> int:
        """Estimate the memory that the worker of a group, or of the base, takes on its machine.

        ``memory`` is that of training; by default the planned one.
        """
        if memory is None:
            of_base = self.grouping.model.of_scored((), self.config.train)
            memory = self.grouping.memory(group, self.config.train) if group else of_base
        return memory.host_bytes(self.device, self.scoring_bytes(group))

    def scoring_bytes(self, group: Group) -> int:
        """Estimate the memory of scoring a group's trials, or the base, besides their weights."""
        needed, model, settings = self._scoring, self.grouping.model, self.config.evaluate
        if group and group[0].prompt is not None:
            prompted = self.items_of(group[0]).values()
            return max(_scoring_memory(model, items, settings)(()) for items in prompted)
        return max((of_split(group) for of_split in needed), default=0)

    def trial(self, model: ScoredModel) -> TrialSpec:
        """Return the trial of a trial id or of a variant."""
        return self._by_id[trial_of(model)]

    def wanted_evals(self, trial_id: str, trained_on: str | None) -> list[EvalKey]:
        """List the evaluations of one model, in order (see :func:`wanted_splits`)."""
        wanted = wanted_splits(self.config.evaluate.split, self.task_records, trained_on)
        return [(trial_id, task, split) for task, split in wanted]

    def analysis_evals(self, trial: TrialSpec) -> list[EvalKey]:
        """List the further evaluations that the study's analyses need, in order."""
        enabled = analyses_of_run(self.config) if trial.prompt is None else ()
        return [key for analysis in enabled for key in analysis.wanted_evals(self, trial)]

    def num_steps(self, trial: TrialSpec) -> int:
        """Count the optimizer steps of its training; 0 for a trial that does not train."""
        if not trial.trains:
            return 0
        rows = self.data.rows_of(trial)
        return trial_steps(trial, len(rows.rows), rows.num_tokens, self.config.train)

    def curve_steps(self, trial: TrialSpec) -> tuple[int, ...]:
        """Return the optimizer steps after which its learning curve has a point."""
        return self.due_steps(trial, self.config.train.evaluate_every)

    def own_tokens(self, trial: TrialSpec) -> int:
        """Count the tokens of its own task that a trial trains on, if every row has the mean
        length."""
        if not trial.trains:
            return 0
        rows, protocol = self.data.rows_of(trial), trial_protocol(trial, self.config.train)
        of_epoch = objective_of(protocol.objective).num_tokens(rows)
        return round(self.own_rows(trial) * of_epoch / len(rows.rows))

    def own_rows(self, trial: TrialSpec) -> int:
        """Count the rows of its own task that a trial draws in all steps; a pair or a prompt is
        one."""
        num_rows = len(self.data.rows_of(trial).rows)
        of_step = rows_per_step(num_rows, trial_protocol(trial, self.config.train))
        return self.num_steps(trial) * of_step

    def training_tokens(self, trial: TrialSpec) -> int:
        """Count the tokens that a trial trains on, replayed ones included."""
        own_tokens = self.own_tokens(trial)
        if trial.replay is None or not trial.replay_share:
            return own_tokens
        general = self.data.replay_rows[trial.replay]
        beside = self.own_rows(trial) * trial.replay_share / (1 - trial.replay_share)
        return own_tokens + round(beside * general.num_tokens / len(general.rows))

    def snapshot_steps(self, trial: TrialSpec) -> tuple[int, ...]:
        """Return the optimizer steps after which its weights are stored, except the last step."""
        return self.due_steps(trial, self.config.train.checkpoint_every)[:-1]

    def due_steps(self, trial: TrialSpec, every: Interval) -> tuple[int, ...]:
        """Return the steps of a trial at an interval, see ``step_schedule.due_steps``."""
        if every is None or not trial.trains:
            return ()
        rows, train = self.data.rows_of(trial), self.config.train
        return due_steps(every, len(rows.rows), rows.num_tokens, trial_protocol(trial, train))

    def curve_tasks(self, trained_on: str) -> list[str]:
        """List the tasks of its learning curve: those whose validation split it is scored on in the
        end."""
        wanted = self.wanted_evals("", trained_on)
        return [task for _, task, split in wanted if split == "validation"]

    def record_settings(self, kind: str, trial_id: str) -> dict[str, object]:
        """Return the settings that a stored record of a kind depends on besides its trial.

        A run refuses to continue if they differ from the stored ones.
        """
        settings: dict[str, object] = {}
        for analysis in all_analyses():
            if isinstance(analysis, Analysis):
                settings |= analysis.record_settings(self, kind, trial_id)
        return settings

    def settings_of(self, kind: str, trial_ids: Iterable[str]) -> dict[str, str]:
        """Return :meth:`record_settings` of several trials as canonical JSON, '' for none."""
        settings = {i: self.record_settings(kind, i) for i in trial_ids if i != BASE}
        return {i: canonical_json(values) if values else "" for i, values in settings.items()}

    def check(self) -> None:
        """Raise UserError for a search whose budget is too small for one trial.

        Settings of an analysis that do not suit the study raise it, too.
        """
        if self.config.strategy == "search" and self.first:
            tokens = self.training_tokens(self.first[0])
            if not self.search_budget.pays_for(1, tokens):
                raise UserError("budget", "less than one trial", f"at least {tokens:,} tokens")
        for analysis in analyses_of_run(self.config):
            analysis.check(self)


def tokens_note(trial: TrialSpec, items: Items, prompted: Items) -> str:
    """Write how many tokens a prompt adds to the items that a model reads."""
    own, base = (fmean(i.read for i in of[trial.task, "validation"]) for of in (prompted, items))
    return f"{trial.task} {trial.arm_label}: reads {own:,.0f} tokens an item, the base {base:,.0f}"


def _scoring_memory(
    model: MemoryModel, items: Sequence[ItemTokens], settings: EvaluateConfig
) -> Callable[[Sequence[TrialSpec]], int]:
    """Return a function that estimates the bytes of scoring a split by a group of trials.

    The split has at least one item. The states of trials and their base do not count. Models are
    scored one after another, but the answers of all of them are written together. Without trials
    the base is scored.
    """
    lengths = [max(ceil(item.read / item.rows), item.gold) for item in items]
    labels = [ceil(item.predicted / item.rows) for item in items]
    num_rows = sum(item.rows for item in items)
    total = sum(length * item.rows for length, item in zip(lengths, items, strict=True))
    tokens = min(total, max(settings.batch_tokens, *lengths))
    config = model.base.config.get_text_config()
    together = max(most_kept(config.vocab_size, model.device), *labels)
    kept = min(sum(item.predicted for item in items), together)
    rows = ceil(tokens * num_rows / total)
    # Close to the largest forward pass that the items are cut into.
    fullest = PassShape(spread(tokens, rows), min(kept, tokens - rows))
    written = [item for item in items if item.written]
    answer = max(settings.max_new_tokens, *(item.written for item in items))
    longest = max((item.read for item in written), default=0) + answer

    def needed(group: Sequence[TrialSpec]) -> int:
        adapter = None
        if group and not group[0].is_full:
            adapter = model.stand_in(max(group, key=lambda trial: trial.rank or 0))
        in_pass = model.passes.scoring_bytes(adapter, fullest)
        if group and group[0].is_full and model.dtype != torch.float32:
            in_pass += nbytes(model.base)  # scored as a copy in the base's dtype
        if not written:
            return in_pass
        num_rows = max(1, len(group)) * len(written)
        peak = writing_bytes(model.base, num_rows, longest, settings.batch_tokens, in_pass)
        return peak + model.fixed_bytes(group)

    return needed
