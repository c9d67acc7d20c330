"""The conductor, which brings every trial of a study to its end: train, evaluate, analyze."""

import gc
import re
from collections.abc import Callable
from typing import Literal

from rankscope.analyses.analysis import analyses_of_run
from rankscope.device import live_memory_bytes, release_freed_memory
from rankscope.errors import AGAIN, OutOfMemory, is_out_of_memory, out_of_memory_message
from rankscope.formatting import byte_size
from rankscope.records import WAITING, TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.groups import BASE_GROUP, Group, group_id
from rankscope.run.stages import run_stage, use_rows
from rankscope.run.stages.evaluate import EvaluateStage
from rankscope.run.stages.train import TrainStage
from rankscope.run.study_clock import StudyClock, training_work
from rankscope.run.trial_weights import model_with_weights
from rankscope.run.trials import ID_LENGTH
from rankscope.run.workers.attempts import IS_SMALLER
from rankscope.store import CHECKPOINTS, TrialFailure
from rankscope.train.checkpoint import GroupCheckpoint

GROUP_ID = re.compile(f"[0-9a-f]{{{ID_LENGTH}}}")
"""Name of a checkpoint folder; only folders with such a name may be removed."""
_Purpose = Literal["train", "score", "analyze"]
_LEAK_BYTES = 256 * 2**20
_LEAK_SHARE = 0.1
"""Memory that earlier groups kept is to blame above the larger of these limits: bytes, and a share
of the memory that groups are planned with. Libraries loaded late and a torn heap stay below."""


class Conductor:
    """Runs the stages of a study in order, each on what the ledger lacks."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.train_stage = TrainStage(context)
        self.evaluate_stage = EvaluateStage(context)
        enabled = analyses_of_run(context.study.config)
        self.analysis_stages = [analysis.stage(context) for analysis in enabled]

    def run_base(self) -> None:
        self.context.label = "base"
        work = self.evaluate_stage.missing_of_base()
        run_stage(self.context, self.evaluate_stage, work)
        use_rows(self.context)

    def run_groups(self) -> None:
        self.remove_orphans()
        if self.context.round.is_last:
            for stage in self.analysis_stages:
                stage.measure_base()
        context, groups = self.context, self.context.round.groups
        statuses, study = context.ledger.statuses(), context.study
        left = [t for group in groups for t in group if statuses[t.trial_id] in WAITING]
        context.memory_before_groups = 0
        clock = StudyClock({trial.trial_id: training_work(study, trial) for trial in left})
        if study.config.strategy == "grid":  # else nobody knows how much is left
            context.study_clock = clock
        for index, group in enumerate(groups, start=1):
            clock.begin_group(group)
            label = f"{context.round.label} group {index}/{len(groups)} {group[0].task}"
            self.run_group(group, label.strip())
            clock.end_group()

    def unfinished_groups(self) -> list[Group]:
        """List the groups with work left in this round, and the base if it lacks a score.

        The longest training comes first: a long unit that begins last would keep the other devices
        waiting.
        """
        study, current = self.context.study, self.context.round.groups
        groups = [g for g in current if self.train_stage.missing(g) or self.unfinished(g)]
        groups.sort(key=lambda g: -sum(training_work(study, trial) for trial in g))
        return [BASE_GROUP, *groups] if self.evaluate_stage.missing_of_base() else groups

    def run_group(self, group: Group, label: str) -> None:
        """Train, evaluate and analyze one group, as far as that is left.

        A trial that does not fit into memory alone for training or scoring is marked ``oom``. If
        only an analysis runs out of memory, a note is logged and the trial keeps its scores.
        """
        context, ledger = self.context, self.context.ledger
        context.label = label
        untrained = self.train_stage.missing(group)
        has_work = bool(untrained or self.unfinished(group))
        context.groups_worked_on += has_work
        if has_work and not context.memory_before_groups:
            context.memory_before_groups = live_memory_bytes(context.base.device)
        # Every attempt of _with_oom_backoff ends with a base without adapters.
        divide = self.train_stage.split  # The checkpoint, too
        for trials in untrained:
            _with_oom_backoff(context, "train", trials, self.train, self.give_up, divide)
        split = context.group_ledger.split
        # Trials that lack only an analysis are left out: it may have killed the process.
        unscored = tuple(t for t in self.unfinished(group) if self.evaluate_stage.missing((t,)))
        _with_oom_backoff(context, "score", unscored, self.score, self.give_up_scoring, split)
        if not context.round.is_last:
            return
        scored = self.unfinished(group)  # without those that failed
        analyzable = tuple(trial for trial in scored if self.lacks_analysis(trial))
        _with_oom_backoff(context, "analyze", analyzable, self.analyze, self.note_unfit, split)
        context.svd_cache.clear()  # the next group is planned without it
        ledger.finish_trials([trial.trial_id for trial in scored])

    def give_up(self, trial: TrialSpec, why: str) -> None:
        """Store at once that a trial does not fit: the rest of its group may take hours."""
        self.context.ledger.fail_trials([TrialFailure(trial.trial_id, "oom", why)])
        self.train_stage.checkpoint((trial,)).remove()

    def give_up_scoring(self, trial: TrialSpec, why: str) -> None:
        self.give_up(trial, f"scoring ran {why}")

    def note_unfit(self, trial: TrialSpec, why: str) -> None:
        self.context.reporter.note(f"{trial.label}: analyzing it ran {why}; its scores are kept")

    def train(self, group: Group) -> None:
        self.context.group_ledger.check_limit(group)
        run_stage(self.context, self.train_stage, [group])

    def score(self, group: Group) -> None:
        model = model_with_weights(self.context, group)
        if model is not None:
            work = self.evaluate_stage.missing(group)
            run_stage(self.context, self.evaluate_stage, work, model)

    def analyze(self, group: Group) -> None:
        model = model_with_weights(self.context, group)
        if model is not None:
            for stage in self.analysis_stages:
                run_stage(self.context, stage, stage.missing(group), model)

    def unfinished(self, group: Group) -> Group:
        """Return the trained trials that are not marked ``done``, or lack a score or an analysis.

        Done trials lack one if the study file now asks for more, or if an analysis ran out of
        memory. In a round before the last, the result is the trained trials that lack a validation
        score.
        """
        statuses, is_last = self.context.ledger.statuses(), self.context.round.is_last

        def is_left(trial: TrialSpec) -> bool:
            if is_last and (statuses[trial.trial_id] == "trained" or self.lacks_analysis(trial)):
                return True
            return bool(self.evaluate_stage.missing((trial,)))

        trained = [trial for trial in group if statuses[trial.trial_id] in ("trained", "done")]
        return tuple(filter(is_left, trained))

    def lacks_analysis(self, trial: TrialSpec) -> bool:
        wanted = self.context.round.analyzed
        is_wanted = trial.prompt is None and (wanted is None or trial.trial_id in wanted)
        stages = self.analysis_stages if is_wanted else ()
        return any(stage.missing((trial,)) for stage in stages)

    def remove_orphans(self) -> None:
        """Remove checkpoints that no remaining training would read, in the last round.

        A run that continues goes through the earlier rounds again, and needs the checkpoints of
        later ones.
        """
        if not self.context.round.is_last:
            return
        current = {group_id(self.train_stage.untrained(g)) for g in self.context.round.groups}
        for folder in (self.context.ledger.out / CHECKPOINTS).glob("*"):
            if GROUP_ID.fullmatch(folder.name) and folder.name not in current:
                GroupCheckpoint(folder).remove()


# --- a shortage of memory ----------------------------------------------------------------------


def _with_oom_backoff(
    context: RunContext,
    purpose: _Purpose,
    group: Group,
    work: Callable[[Group], None],
    give_up: Callable[[TrialSpec, str], None],
    split: Callable[[Group], tuple[Group, Group]],
) -> None:
    """Run ``work`` on a group. If memory runs out, try again in smaller passes, then in halves.

    Args:
        context: the run; afterwards no adapter is attached to its base.
        purpose: kind of work, for the note to the user; only passes of training can be smaller.
        group: trials to work on together.
        work: may raise an out-of-memory error.
        give_up: takes a trial that does not fit even alone, and the reason.
        split: cuts a group of at least two trials in two, for good. The process may end within a
            half, and the next one must not begin with the whole.

    Raises:
        OutOfMemory: earlier groups of this process did not return their memory.
    """
    if not group:
        return
    has_tried = not context.killed_for_memory
    shortage = _attempt(context, group, work)
    if shortage:
        context.reporter.finish(shortage)
        context.svd_cache.clear()
    release_freed_memory()  # training, scoring and analysis need blocks of other sizes
    if not shortage:
        return
    _check_returned(context)
    shards = context.base.shards
    before = _plan_of(context) if shards.size > 1 else None
    again: tuple[Group, ...] = (group,)
    if purpose == "train" and context.group_ledger.shrink(group):
        context.reporter.note("not enough memory: forward passes get fewer tokens")
    elif len(group) == 1:
        give_up(group[0], shortage)
        again = ()
    else:
        context.reporter.note(
            f"not enough memory to {purpose} {len(group)} trials together: the group is "
            "split in two"
        )
        again = split(group)
    if has_tried and shards.size > 1:  # the others are in the middle of a pass
        is_smaller = _plan_of(context) != before
        shards.break_off(f"{shortage}; {IS_SMALLER}" if is_smaller else shortage)
    for part in again:
        _with_oom_backoff(context, purpose, part, work, give_up, split)


def _plan_of(context: RunContext) -> object:
    """Return the state that the next process would find."""
    return context.ledger.groups(), context.ledger.statuses()


def _attempt(context: RunContext, group: Group, work: Callable[[Group], None]) -> str:
    """Run ``work`` once; return the message of an out-of-memory error, or ''.

    After the return, the error's traceback is gone, and with it the tensors of its frames.
    """
    if context.killed_for_memory:
        context.killed_for_memory = False
        return "out of memory: the system killed the processes that tried it"
    try:
        work(group)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return out_of_memory_message(error)
    finally:
        context.base.multi_lora.clear()
    return ""


def _check_returned(context: RunContext) -> None:
    """Raise OutOfMemory if earlier groups kept memory, so that no trial takes the blame.

    A new process has kept nothing yet, so the same command gets at least one group further.
    """
    gc.collect()
    kept = live_memory_bytes(context.base.device) - context.memory_before_groups
    limit = max(_LEAK_BYTES, _LEAK_SHARE * context.study.grouping.room_bytes)
    if context.groups_worked_on > 1 and kept > limit:
        found = f"{byte_size(kept)} that earlier groups did not return"
        expected, do = f"less than {byte_size(limit)}", f"end this process, {AGAIN}"
        raise OutOfMemory(f"{context.ledger.out}: out of memory", found, expected, do)
