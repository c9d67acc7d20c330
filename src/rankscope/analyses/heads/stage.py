"""Measure attention heads: the base's once per training task, then those of every trial."""

from collections.abc import Iterator, Sequence

from rankscope.analyses.heads import HEADS
from rankscope.analyses.heads.layout import HeadLayout, HeadModel
from rankscope.analyses.heads.record import HeadsRecord
from rankscope.analyses.heads.tasks import HeadTask, head_task, related_tasks
from rankscope.analyses.heads.trial_heads import HeadAnalysis
from rankscope.errors import reporting_shortages
from rankscope.evaluate.context_window import context_length
from rankscope.formatting import count, join_names
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.records import TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.run.stages import Stage


class HeadsStage(Stage[TrialSpec, HeadsRecord]):
    """Importance, entropy, change and ablation of the attention heads of trained trials."""

    name = "heads"

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.settings = HEADS.settings(context.study.config)
        self.analyses: dict[str, HeadAnalysis] = {}
        """By training task, what its trials are compared with; filled by :meth:`measure_base`."""

    def missing(self, group: Group) -> list[TrialSpec]:
        return self.context.ledger.without_record("heads", group)

    def measure_base(self) -> None:
        """Measure the base's heads for every training task that still has trials to measure.

        Call it while no adapter is attached.
        """
        context, study = self.context, self.context.study
        layout = HeadLayout.of(context.base.model)
        statuses = context.ledger.statuses()
        trials = tuple(trial for group in study.groups for trial in group)
        missing = {trial.trial_id for trial in self.missing(trials)}
        missing |= {trial_id for trial_id, status in statuses.items() if status == "planned"}
        tasks = {t.task: HEADS.task_of(study, t) for t in trials if t.trial_id in missing}
        if not tasks:
            return
        context.label = "base"
        context.begin_stage(self.name, len(tasks))
        batch_tokens = study.config.evaluate.batch_tokens
        model = HeadModel(context.base, layout, batch_tokens=batch_tokens)
        ablated_on = tuple(map(self.head_task, dict.fromkeys(self.settings.ablate)))
        if ablated_on:
            self.note_ablations(layout, ablated_on)
        for trained_on, name in tasks.items():
            task = self.head_task(name)
            context.begin_piece(task.name)
            do = "free some memory, lower evaluate.batch_tokens, or set analyze.heads.enabled=false"
            with reporting_shortages("analyze.heads: measuring the base", do=do):
                self.analyses[trained_on] = HeadAnalysis(
                    model,
                    task,
                    ablated_on,
                    self.settings.items,
                    related_tasks(study.tasks, trained_on or name),
                )
            context.pieces_done += 1
        context.finish_stage()

    def note_ablations(self, layout: HeadLayout, ablated_on: Sequence[HeadTask]) -> None:
        """Say how much is removed, and what is left out."""
        tasks = [f"{count(len(task.trees), 'item')} of {task.name}" for task in ablated_on]
        note = self.context.reporter.note
        note(
            f"ablation: {count(layout.num_heads, 'head')} and {count(len(layout), 'layer')} are "
            f"removed one by one and {join_names(tasks)} scored each time, in the base and again "
            "in every tuned model; this may take hours on a large one"
        )
        study, names = self.context.study, {task.name for task in ablated_on}
        trained = dict.fromkeys(t.task or HEADS.task_of(study, t) for t in study.trials)
        if missing := [task for task in trained if task not in names]:
            note(
                "head roles (skill gained, skill lost) are left out: they need heads removed on "
                f"{join_names(missing)} too"
            )

    def head_task(self, name: str) -> HeadTask:
        study = self.context.study
        return head_task(
            context_length(self.context.base.model.config),
            study.encoder,
            study.tasks[name],
            self.settings.items,
            study.config.evaluate,
        )

    def run(self, model: Base, work: Sequence[TrialSpec]) -> Iterator[HeadsRecord]:
        self.context.begin_stage(self.name, len(work))
        for trial in work:
            self.context.begin_piece(trial.arm_label)
            stored_base = None
            if trial.given is not None:  # changes are of stored weights, whatever the dtype
                stored_base = CheckpointReader.open(self.context.base.folder).weight
            trained_on = trial.task or HEADS.task_of(self.context.study, trial)
            analysis = self.analyses[trial.task]
            yield analysis.record(trial.trial_id, trained_on, model, stored_base)

    def commit(self, result: HeadsRecord) -> None:
        settings = self.context.study.settings_of("heads", [result.trial_id])
        self.context.ledger.commit([result], settings=settings)
