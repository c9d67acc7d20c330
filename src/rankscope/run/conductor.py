"""Bring every trial of a study to its end, group by group: train, evaluate, analyze."""

import re
import shutil
from dataclasses import dataclass, field

from rankscope.records import TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.groups import Group, group_id
from rankscope.run.oom import with_oom_backoff
from rankscope.run.stages import run_stage
from rankscope.run.stages.evaluate import EvaluateStage
from rankscope.run.stages.heads import HeadsStage
from rankscope.run.stages.spectra import SpectraStage
from rankscope.run.stages.train import TrainStage
from rankscope.run.stages.variants import VariantsStage
from rankscope.run.trial_weights import model_with_weights
from rankscope.store import CHECKPOINTS, TrialFailure

GROUP_ID = re.compile(r"[0-9a-f]{16}")
"""Only folders with such a name are ours to remove."""


@dataclass(slots=True)
class Conductor:
    """Runs the stages of a study in order, each on what the ledger lacks."""

    context: RunContext
    train: TrainStage = field(init=False)
    evaluate: EvaluateStage = field(init=False)
    variants: VariantsStage = field(init=False)
    spectra: SpectraStage = field(init=False)
    heads: HeadsStage = field(init=False)

    def __post_init__(self) -> None:
        self.train = TrainStage(self.context)
        self.evaluate = EvaluateStage(self.context)
        self.variants = VariantsStage(self.context)
        self.spectra = SpectraStage(self.context)
        self.heads = HeadsStage(self.context)

    def run_base(self) -> None:
        self.context.label = "base"
        work = self.evaluate.missing_of_base()
        run_stage(self.context, self.evaluate, self.context.base, work)

    def run_groups(self) -> None:
        self.remove_orphans()
        self.heads.measure_base()
        groups = self.context.study.groups
        for index, group in enumerate(groups, start=1):
            self.run_group(group, f"group {index}/{len(groups)} {group[0].task}")

    def unfinished_groups(self) -> list[Group]:
        """The groups with something left to do."""
        groups = self.context.study.groups
        return [group for group in groups if self.train.missing(group) or self.unfinished(group)]

    def run_group(self, group: Group, label: str) -> None:
        """Train, evaluate and analyze one group, as far as that is not done.

        A trial that does not fit into memory alone for training or scoring is marked ``oom``. If
        only an analysis runs out of memory, a note is logged and the trial keeps its scores.
        """
        context, ledger = self.context, self.context.ledger
        context.label = label
        for planned in self.train.missing(group):
            shortages = with_oom_backoff(
                context,
                planned,
                self.train_together,
                "train",
                context.groups.shrink,
                self.train.split,
            )
            ledger.fail_trials([TrialFailure(i, "oom", why) for i, why in shortages.items()])
            for trial in planned:
                if trial.trial_id in shortages:
                    self.train.checkpoint((trial,)).remove()
        shortages = with_oom_backoff(context, self.unfinished(group), self.score, "score")
        ledger.fail_trials(
            [TrialFailure(i, "oom", f"scoring ran {why}") for i, why in shortages.items()]
        )
        scored = self.unfinished(group)
        analyzable = tuple(trial for trial in scored if self.lacks_analysis(trial))
        shortages = with_oom_backoff(context, analyzable, self.analyze, "analyze")
        for trial in scored:
            if trial.trial_id in shortages:
                why = shortages[trial.trial_id]
                context.reporter.note(f"{trial.label}: analyzing it ran {why}; its scores are kept")
        ledger.finish_trials([trial.trial_id for trial in scored])

    def train_together(self, group: Group) -> None:
        run_stage(self.context, self.train, self.context.base, [group])

    def score(self, group: Group) -> None:
        """Score trials with their stored weights."""
        model = model_with_weights(self.context, group)
        if model is not None:
            run_stage(self.context, self.evaluate, model, self.evaluate.missing(group))

    def analyze(self, group: Group) -> None:
        model = model_with_weights(self.context, group)
        if model is not None:
            run_stage(self.context, self.variants, model, self.variants.missing(group))
            run_stage(self.context, self.spectra, model, self.spectra.missing(group))
            run_stage(self.context, self.heads, model, self.heads.missing(group))

    def unfinished(self, group: Group) -> Group:
        """The trained trials of a group that are not ``done`` or lack a result."""
        statuses = self.context.ledger.statuses()
        return tuple(
            trial
            for trial in group
            if statuses[trial.trial_id] == "trained"
            or (
                statuses[trial.trial_id] == "done"
                and (self.evaluate.missing((trial,)) or self.lacks_analysis(trial))
            )
        )

    def lacks_analysis(self, trial: TrialSpec) -> bool:
        """Whether results other than scores and training are missing."""
        return any(stage.missing((trial,)) for stage in (self.variants, self.spectra, self.heads))

    def remove_orphans(self) -> None:
        """Remove checkpoints of groups that the study does not have any more."""
        planned = [
            part for group in self.context.study.groups for part in self.train.missing(group)
        ]
        current = {group_id(group) for group in planned}
        for folder in (self.context.ledger.out / CHECKPOINTS).glob("*"):
            if GROUP_ID.fullmatch(folder.name) and folder.name not in current:
                shutil.rmtree(folder, ignore_errors=True)
