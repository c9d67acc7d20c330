"""Scores of models on the tasks of the study: one split of one task at a time, many models at
once."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rankscope.errors import NotFiniteError, reporting_shortages
from rankscope.evaluate.engines.engine import OWN_ENGINE, Engine
from rankscope.evaluate.evaluator import Evaluation, evaluate_task
from rankscope.models.base import Base
from rankscope.records import BASE, EvalKey, ScoredModel, Split, trial_of, write_items, write_table
from rankscope.run.groups import Group
from rankscope.run.stages import Stage
from rankscope.store import Artifact, TrialFailure, items_path, weights_path

EvalBatch = tuple[str, Split, Mapping[str | None, ScoredModel]]
"""Task, split, and models by adapter name; the name None means no adapter."""
Scored = tuple[Sequence[Evaluation], Sequence[TrialFailure]]
"""Evaluations of a batch, and the trials that failed, for the reasons of ``evaluate_task``."""


class EvaluateStage(Stage[EvalBatch, Scored]):
    """Scores the trials themselves, and the base."""

    name = "evaluate"
    engine: Engine = OWN_ENGINE
    noted: frozenset[str] = frozenset()  # Notes of the engine that were shown

    def missing(self, group: Group) -> list[EvalBatch]:
        study, with_tests = self.context.study, self.context.round.is_last
        wanted = [
            key
            for trial in group
            for key in study.wanted_evals(trial.trial_id, trial.task)
            if with_tests or key[2] == "validation"
        ]
        models = {(None if t.trains_alone else t.trial_id): t.trial_id for t in group}
        return self.missing_batches(models, wanted)

    def missing_of_base(self) -> list[EvalBatch]:
        return self.missing_batches({None: BASE}, self.context.study.wanted_evals(BASE, None))

    def missing_batches(
        self, models: Mapping[str | None, ScoredModel], wanted: Sequence[EvalKey]
    ) -> list[EvalBatch]:
        """Return batches of the ``wanted`` scores of these models that the ledger lacks, in
        order."""
        missing = dict.fromkeys(self.context.ledger.missing_evals(wanted))
        own = set(models.values())
        splits = dict.fromkeys((task, split) for i, task, split in missing if i in own)
        return [
            (task, split, {n: i for n, i in models.items() if (i, task, split) in missing})
            for task, split in splits
        ]

    def run(self, model: Base, work: Sequence[EvalBatch]) -> Iterator[Scored]:
        study = self.context.study
        self.context.begin_stage(self.name, len(work))
        if (engine := study.config.evaluate.engine) != self.engine.name:
            self.engine = Engine.of(engine)
        ids = {n: i for _, _, of in work for n, i in of.items()}
        self.engine.begin(lambda name: self.weights_folder(ids[name]))
        try:
            yield from self.score_batches(model, work)
        finally:
            self.engine.close()
            for note in self.engine.notes():
                if note not in self.noted:
                    self.context.reporter.note(note)
                    self.noted |= {note}

    def score_batches(self, model: Base, work: Sequence[EvalBatch]) -> Iterator[Scored]:
        """Score batch by batch; a failed trial is left out of the later ones."""
        failed: set[str] = set()
        for task, split, models in work:
            self.context.begin_piece(f"{task} {split}")
            alive = {n: i for n, i in models.items() if trial_of(i) not in failed}
            batch = task, split, alive
            is_base = BASE in alive.values()
            scored = self.score_base(batch) if is_base else self.score_trials(model, batch)
            failed |= {failure.trial_id for failure in scored[1]}
            yield scored

    def score_trials(self, model: Base, batch: EvalBatch) -> Scored:
        study, (name, split, models) = self.context.study, batch
        data = study.data
        for scored in models.values():  # a prompt is scored alone
            data = data.seen_by(study.trial(scored))
        settings = study.config.evaluate
        evaluations, reasons = evaluate_task(
            model, data.encoder, data.tasks[name], split, models, settings, self.engine
        )
        failures = [
            TrialFailure(trial_of(models[adapter]), "failed", f"{name} {split}: {reason}")
            for adapter, reason in reasons.items()
        ]
        return list(evaluations.values()), failures

    def score_base(self, batch: EvalBatch) -> Scored:
        """Score the untuned base. A failure is an error: without the base no gain can be
        measured."""
        study, (name, split, models) = self.context.study, batch
        data, settings, where = study.data, study.config.evaluate, f"{name} {split}"
        do = f"free memory, or lower evaluate.batch_tokens (now {settings.batch_tokens})"
        with reporting_shortages(f"{where}: scoring the base", do=do):
            base, task = self.context.base, data.tasks[name]
            evaluations, failures = evaluate_task(
                base, data.encoder, task, split, models, settings, self.engine
            )
        for reason in failures.values():
            expected = f"a model that runs in {study.config.dtype}"
            do = "try 'dtype: float32', or another model"
            raise NotFiniteError(f"{where}: the base cannot be scored", reason, expected, do)
        return list(evaluations.values()), ()

    def weights_folder(self, model: ScoredModel) -> Path:
        """Return the weights' folder of a trial, a given model or the base, which prompts share."""
        trial = None if model == BASE else self.context.study.trial(model)
        if trial is None or trial.prompt is not None:
            return self.context.base.folder
        if trial.given is not None:
            return Path(trial.given.folder)
        return self.context.ledger.checked_path(weights_path(trial))

    def commit(self, result: Scored) -> None:
        ledger, (evaluations, failures) = self.context.ledger, result
        artifacts: list[Artifact] = []
        with ledger.stage() as folder:
            for record, items in evaluations:
                key = record.key
                file = folder / f"{key[0]}.parquet"
                write_items(file, items)
                artifacts += ledger.publish(file, items_path(*key))
                tables = self.engine.tables
                # A model without an adapter's name is scored by itself.
                name = record.trial_id if record.trial_id in tables else None
                if (of_engine := tables.pop(name, None)) is not None:
                    write_table(file, of_engine)
                    artifacts += ledger.publish(file, items_path(*key, self.engine.name))
        records = [record for record, _ in evaluations]
        settings = self.context.study.settings_of("eval", [r.trial_id for r in records])
        ledger.commit(records, artifacts, settings)
        ledger.fail_trials(failures)
