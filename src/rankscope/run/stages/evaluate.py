"""Score models on the tasks of the study: one split of one task at a time, many models at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rankscope.device import out_of_memory_message
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import evaluate_task, evaluate_with_failures
from rankscope.evaluate.mixtures import Evaluation
from rankscope.models.base import Base
from rankscope.records import BASE, EvalKey, Split, trial_of, write_items
from rankscope.run.context import RunContext
from rankscope.run.groups import Group
from rankscope.store import Artifact, TrialFailure, items_path


@dataclass(frozen=True, slots=True)
class EvalBatch:
    """Models to score on one split of one task."""

    task: str
    split: Split
    models: Mapping[str | None, str]
    """Adapter name -> model id; the name None is the model without an adapter."""


@dataclass(frozen=True, slots=True)
class EvalOutcome:
    """What scoring one batch gave."""

    batch: EvalBatch
    evaluations: Mapping[str | None, Evaluation]
    """By adapter name."""
    failures: Sequence[TrialFailure] = ()
    """Trials whose likelihoods are not finite."""


class EvaluateStage:
    """Scores of the trials themselves, and of the base."""

    name = "evaluate"

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def missing(self, group: Group) -> list[EvalBatch]:
        study = self.context.study
        wanted = [key for t in group for key in study.wanted_evals(t.trial_id, t.task)]
        names = {(None if t.trains_alone else t.trial_id): t.trial_id for t in group}
        return self.missing_batches(names, wanted)

    def missing_of_base(self) -> list[EvalBatch]:
        return self.missing_batches({None: BASE}, self.context.study.base_evals())

    def missing_batches(
        self, models: Mapping[str | None, str], wanted: Sequence[EvalKey]
    ) -> list[EvalBatch]:
        """The missing ones of ``wanted`` that belong to ``models``, in the order of ``wanted``."""
        missing = dict.fromkeys(self.context.ledger.missing_evals(wanted))
        ids = set(models.values())
        splits = dict.fromkeys((task, split) for model, task, split in missing if model in ids)
        return [
            EvalBatch(
                task,
                split,
                {name: model for name, model in models.items() if (model, task, split) in missing},
            )
            for task, split in splits
        ]

    def run(self, model: Base, work: Sequence[EvalBatch]) -> Iterator[EvalOutcome]:
        self.context.begin_stage(self.name, len(work))
        yield from self.score_batches(model, work)

    def score_batches(self, model: Base, work: Sequence[EvalBatch]) -> Iterator[EvalOutcome]:
        """Score batch by batch; a trial that failed is left out of the later ones."""
        failed: set[str] = set()
        for batch in work:
            self.context.begin_step(f"{batch.task} {batch.split}")
            alive = {n: i for n, i in batch.models.items() if trial_of(i) not in failed}
            outcome = self.score(model, replace(batch, models=alive))
            failed |= {failure.trial_id for failure in outcome.failures}
            yield outcome

    def score(self, model: Base, batch: EvalBatch) -> EvalOutcome:
        """Score one batch.

        Raises:
            UserError: not enough memory for the base.
            IntegrityError: the untuned base has no finite likelihoods.
        """
        study = self.context.study
        encoder, settings, task = study.encoder, study.config.evaluate, study.tasks[batch.task]
        if BASE not in batch.models.values():
            evaluations, reasons = evaluate_with_failures(
                model, encoder, task, batch.split, batch.models, settings
            )
            failures = [
                TrialFailure(
                    trial_of(batch.models[name]), "failed", f"{batch.task} {batch.split}: {reason}"
                )
                for name, reason in reasons.items()
            ]
            return EvalOutcome(batch, evaluations, failures)
        try:
            return EvalOutcome(
                batch, evaluate_task(model, encoder, task, batch.split, batch.models, settings)
            )
        except (MemoryError, RuntimeError) as error:
            raise UserError(
                f"{batch.task} {batch.split}: scoring the base ran {out_of_memory_message(error)}; "
                f"lower evaluate.batch_tokens (now {settings.batch_tokens}) in a study with an "
                "--out folder of its own"
            ) from error

    def commit(self, result: EvalOutcome) -> None:
        """Store records with their item tables, and failures."""
        ledger, batch = self.context.ledger, result.batch
        artifacts: list[Artifact] = []
        with ledger.stage() as folder:
            for name, (_, items) in result.evaluations.items():
                file = folder / f"{batch.models[name]}.parquet"
                write_items(file, items)
                place = items_path(batch.models[name], batch.task, batch.split)
                artifacts += ledger.publish(file, place)
        records = [record for record, _ in result.evaluations.values()]
        settings = self.context.study.settings_of("eval", [r.trial_id for r in records])
        ledger.commit(records, artifacts, settings)
        ledger.fail_trials(result.failures)
