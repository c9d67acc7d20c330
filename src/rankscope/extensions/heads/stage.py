"""The stage that measures attention heads: the base's once per training task, then each trial's."""

import time
from collections.abc import Iterator, Sequence

from rankscope.errors import reporting_shortages
from rankscope.evaluate.context_window import context_length
from rankscope.extensions.heads import HEADS
from rankscope.extensions.heads.layout import HeadLayout, HeadModel
from rankscope.extensions.heads.measures import (
    Measurements,
    ablation_record,
    added_cost,
    lost_elsewhere,
    measure_heads,
    trial_changes,
)
from rankscope.extensions.heads.record import HeadsRecord
from rankscope.extensions.heads.tasks import HeadTask, head_task, related_tasks
from rankscope.formatting import count, join_names
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.records import TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.stages import Stage


class HeadsStage(Stage[TrialSpec, HeadsRecord]):
    """Measures importance, entropy, change and ablation of the attention heads of trained
    trials."""

    name = "heads"

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.settings = HEADS.settings(context.study.config)
        self.measured: dict[str, tuple[HeadTask, Measurements]] = {}
        """Items and the base's heads by training task; filled by :meth:`measure_base`."""
        self.ablated_on: tuple[HeadTask, ...] = ()

    def measure_base(self) -> None:
        """Measure the base's heads for every training task that still has trials to measure.

        Call it while no adapter is attached.
        """
        context, study = self.context, self.context.study
        tasks = {t.task: HEADS.task_of(study, t) for t in self.left_to_measure()}
        if not tasks:
            return
        context.label = "base"
        context.begin_stage(self.name, len(tasks))
        model = self.head_model(context.base, None)
        self.ablated_on = tuple(map(self.head_task, dict.fromkeys(self.settings.ablate)))
        if self.ablated_on:
            self.note_ablations(model.layout)
        for trained_on, name in tasks.items():
            task = self.head_task(name)
            context.begin_piece(task.name)
            do = "free some memory, lower evaluate.batch_tokens, or set analyze.heads.enabled=false"
            with reporting_shortages("analyze.heads: measuring the base", do=do):
                self.measured[trained_on] = task, measure_heads(model, task, self.ablated_on)
            context.pieces_done += 1
        context.finish_stage()

    def head_model(self, model: Base, adapter_name: str | None) -> HeadModel:
        layout = HeadLayout.of(self.context.base.model)
        batch_tokens = self.context.study.config.evaluate.batch_tokens
        return HeadModel(model, layout, adapter_name, batch_tokens)

    def note_ablations(self, layout: HeadLayout) -> None:
        """Note how much is removed, and what is left out."""
        tasks = [f"{count(len(task.trees), 'item')} of {task.name}" for task in self.ablated_on]
        note = self.context.reporter.note
        note(
            f"ablation: {count(layout.num_heads, 'head')} and {count(len(layout), 'layer')} are "
            f"removed one by one and {join_names(tasks)} scored each time, in the base and again "
            "in every tuned model; this may take hours on a large one"
        )
        study, names = self.context.study, {task.name for task in self.ablated_on}
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
            study.data.encoder,
            study.data.tasks[name],
            self.settings.items,
            study.config.evaluate,
        )

    def run(self, model: Base, work: Sequence[TrialSpec]) -> Iterator[HeadsRecord]:
        self.context.begin_stage(self.name, len(work))
        for trial in work:
            self.context.begin_piece(trial.arm_label)
            yield self.measure(trial, model)

    def measure(self, trial: TrialSpec, tuned: Base) -> HeadsRecord:
        """Measure the heads of one trial, whose id is its adapter's name if it has one."""
        started, base = time.perf_counter(), self.context.base
        study = self.context.study
        trained_on = trial.task or HEADS.task_of(study, trial)
        stored_base = None
        if trial.given is not None:  # changes are of stored weights, whatever the dtype
            stored_base = CheckpointReader(base.folder).weight
        is_adapter = trial.trial_id in tuned.multi_lora.adapters
        model = self.head_model(tuned, trial.trial_id if is_adapter else None)
        task, (before, base_ablated) = self.measured[trial.task]
        after, ablated = measure_heads(model, task, self.ablated_on)
        of_tasks = zip(self.ablated_on, base_ablated, ablated, strict=True)
        ablations = [ablation_record(model.layout, *of_task) for of_task in of_tasks]
        ablations.sort(key=lambda ablation: ablation.task != trained_on)
        skill: tuple[tuple[float, ...], ...] = ()
        lost: tuple[tuple[float, ...], ...] = ()
        if ablations and ablations[0].task == trained_on:
            # Tasks that share items with the trained one show nothing of what heads lost elsewhere.
            related = related_tasks(study.data.tasks, trained_on)
            others = [a for a in ablations[1:] if a.task not in related]
            skill, lost = added_cost(ablations[0]), lost_elsewhere(others)
        return HeadsRecord(
            trial_id=trial.trial_id,
            task=task.name,
            items=len(task.trees),
            dtype=base.record.dtype,
            changes=trial_changes(model, base, stored_base),
            base=before,
            tuned=after,
            ablations=tuple(ablations),
            skill=skill,
            lost=lost,
            seconds=time.perf_counter() - started,
        )
