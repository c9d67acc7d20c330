"""The stage that looks at attention heads: the base's first, then those of every trained trial."""

from collections.abc import Callable, Sequence

from rankscope.analyze.heads.layout import HeadLayout, HeadModel
from rankscope.analyze.heads.tasks import head_task, related_tasks
from rankscope.analyze.heads.trial_heads import HeadAnalysis, measure_heads
from rankscope.evaluate.context_window import context_length
from rankscope.models.base import Base
from rankscope.progress import ProgressReporter
from rankscope.records import TrialSpec
from rankscope.run.prepare import PreparedStudy
from rankscope.store import Ledger


class HeadStage:
    """What is missing of the heads of a study's trials, and how to get it."""

    def __init__(
        self,
        ledger: Ledger,
        inputs: PreparedStudy,
        base: Base,
        reporter: ProgressReporter,
        check_stop: Callable[[], None],
    ) -> None:
        self.ledger = ledger
        self.inputs = inputs
        self.base = base
        self.reporter = reporter
        self.check_stop = check_stop
        self.settings = inputs.config.analyze.heads
        self._studies: dict[str, HeadAnalysis] = {}

    def missing(self) -> set[str]:
        """Ids of the trained trials whose heads were not looked at; none where not asked for."""
        if not self.settings.enabled:
            return set()
        return {trial.trial_id for trial in self.ledger.missing_heads()}

    def measure_base(self) -> bool:
        """Look at the base's heads, once for each task whose trials will be compared with them, as
        long as nothing is on it; whether there was anything to do.

        Raises:
            UserError: an architecture whose heads cannot be told apart.
        """
        if not self.settings.enabled:
            return False
        layout = HeadLayout.of(self.base.model)
        statuses, missing = self.ledger.statuses(), self.missing()
        tasks = {
            trial.task: self.settings.task or trial.task
            for trial in self.inputs.trials
            if trial.trial_id in missing or statuses[trial.trial_id] == "planned"
        }
        if not tasks:
            return False
        encoder, loaded = self.inputs.encoder, self.inputs.tasks
        most, evaluate = self.settings.items, self.inputs.config.evaluate
        context = context_length(self.base.model.config)
        ablated_on = tuple(
            head_task(context, encoder, loaded[name], most, evaluate)
            for name in dict.fromkeys(self.settings.ablate)
        )
        self.reporter.stage("base heads", len(tasks))
        for done, (trained_on, name) in enumerate(tasks.items()):
            self.check_stop()
            self.reporter.advance(done, name)
            task = head_task(context, encoder, loaded[name], most, evaluate)
            model = HeadModel(self.base, layout, batch_tokens=evaluate.batch_tokens)
            measured = measure_heads(model, task, ablated_on)
            self._studies[trained_on] = HeadAnalysis(
                layout,
                task,
                ablated_on,
                most,
                evaluate.batch_tokens,
                measured,
                related_tasks(loaded, trained_on),
            )
        self.reporter.finish()
        return True

    def run(self, tuned: Base, trials: Sequence[TrialSpec], name: str) -> bool:
        """Look at the heads of the trials that lack it; whether there were any.

        Args:
            tuned: the base with their weights on it, or a full trial's own model.
            trials: of one group.
            name: of the stage.
        """
        missing = self.missing()
        todo = [trial for trial in trials if trial.trial_id in missing]
        if not todo:
            return False
        self.reporter.stage(name, len(todo))
        for done, trial in enumerate(todo):
            self.check_stop()
            self.reporter.advance(done, trial.arm_label)
            study = self._studies[trial.task]
            found = study.record(trial.trial_id, trial.task, self.base, tuned)
            self.ledger.commit_heads([found])
        self.reporter.finish()
        return True
