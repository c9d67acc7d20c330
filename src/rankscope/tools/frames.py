"""A finished study as pandas DataFrames, one row per thing, and its answer for a notebook."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from rankscope.advise.recommend import recommend
from rankscope.filesystem import user_path
from rankscope.formatting import safe_text
from rankscope.records import (
    BASE,
    Recommendation,
    ScoredModel,
    StudyRecords,
    TrialRecords,
    TrialSpec,
    trial_of,
    variant_label,
)
from rankscope.report.analysis_tables import TableRow, analysis_tables
from rankscope.report.answer import answer_html, answer_lines
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table
from rankscope.report.tables import arms_table, study_tables
from rankscope.store import Ledger

_EVAL_COLUMNS = {"task", "split", "metric", "score", "standard_error"}
_ITEM_COLUMNS = ("subject", "score", "gold", "prediction", "gold_logprob", "generated")


@dataclass(frozen=True)
class StudyFrames:
    """A study read from its folder; every table is made at its first use.

    Scores are shares of 1 (or log probabilities in nats), times are seconds, sizes are bytes.
    """

    folder: Path
    records: StudyRecords = field(repr=False)

    @cached_property
    def recommendation(self) -> Recommendation:
        return recommend(self.records)

    @cached_property
    def answer(self) -> "_AnswerText":
        """The answers; a notebook shows them as a card, ``print`` as text."""
        return _AnswerText(StudyView(self.records, self.recommendation))

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of ``rankscope report --tables`` by name; a table may be empty."""
        return study_tables(StudyView(self.records, self.recommendation))

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial: its settings, its status, and the costs of training it."""
        return table([trial_row(trial) for trial in self.records.trials])

    @cached_property
    def arms(self) -> pd.DataFrame:
        """One row per arm: means over seeds with 95 % intervals, as in the report's table."""
        return arms_table(StudyView(self.records, self.recommendation))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per model, task and split; ``trial`` is ``base`` for the untuned model.

        ``change`` is the score minus the base's. ``standard_error`` is over items.
        """
        evals = self.records.evals
        rows: list[TableRow] = []
        for (model, task, split), record in evals.items():
            base = evals.get((BASE, task, split))
            change = None if base is None else record.score - base.score
            scored = record.model_dump(include=_EVAL_COLUMNS) | {"items": record.n}
            own = {"change": change, "seconds": record.seconds}
            rows.append(self._model_row(model) | scored | own)
        return table(rows)

    @cached_property
    def items(self) -> pd.DataFrame:
        """One row per model and item: score, answers and log probabilities.

        ``item`` is ``TASK/FILE/ROW``, such as ``arc_easy/test/17`` (rows count from 1), or for
        rows of your own ``TASK/FILE/HASH``, a hash of the content (``HASH.2`` for a second copy).
        """
        prompts = {
            (task, split, item.item_id): item.prompt
            for (model, task, split) in self.records.results
            if model == BASE
            for item in self.records.results[model, task, split]
        }
        rows = [
            self._model_row(model)
            | {
                "task": task,
                "split": split,
                "item": item.item_id,
                **{name: getattr(item, name) for name in _ITEM_COLUMNS},
                "prompt": prompts.get((task, split, item.item_id)),
            }
            for (model, task, split) in self.records.results
            for item in self.records.results[model, task, split]
        ]
        return table(rows)

    @cached_property
    def analyses(self) -> dict[str, pd.DataFrame]:
        """Results of the analyses by table. ``matrices``, for example, has one row per trial and
        weight matrix, with size, ranks, similarity and intruders."""
        return analysis_tables(
            [(self._model_row(t.spec.trial_id), r) for t in self.records.trials for r in t.analyses]
        )

    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row per trial and optimizer step: loss in nats, learning rate, gradient norm."""
        rows = [
            self._model_row(trial.spec.trial_id)
            | {"step": p.step, "loss": p.loss, "lr": p.lr, "grad_norm": p.grad_norm}
            for trial in self.records.trials
            if trial.train is not None
            for p in trial.train.losses
        ]
        return table(rows)

    def _model_row(self, model: ScoredModel) -> TableRow:
        """Return the columns that tell models apart; ``variant`` is a trial's change at
        inference."""
        spec = self._specs.get(trial_of(model))
        return {
            "trial": trial_of(model),
            "variant": variant_label(model) or None,
            "trained_on": spec.task if spec else None,
            "arm": spec.arm_label if spec else BASE,
            "rank": spec.rank if spec else None,
            "seed": spec.seed if spec else None,
        }

    @cached_property
    def _specs(self) -> dict[str, TrialSpec]:
        return {trial.spec.trial_id: trial.spec for trial in self.records.trials}


class _AnswerText:
    def __init__(self, view: StudyView) -> None:
        self.view = view

    def __repr__(self) -> str:
        answers = [answer_lines(a, with_reasons=True) for a in self.view.recommendation.advice]
        text = "\n\n".join("\n".join(lines) for lines in answers)
        return safe_text(text or "The study has no training task, so there is no answer.", 20_000)

    def _repr_html_(self) -> str:
        return answer_html(self.view)


def load(folder: str | Path) -> StudyFrames:
    """Read the study in ``folder``.

    Raises UserError: there is no study. Raises IntegrityError: a stored record or table was
    altered.
    """
    folder = user_path(folder)
    return StudyFrames(folder, Ledger.read(folder))


TRAINING_COLUMNS = (
    *("trainable_parameters", "steps", "rows", "num_tokens", "num_label_tokens"),
    *("peak_memory_bytes", "seconds"),
)
"""Fields of a training record that are columns of ``trials``."""


def trial_row(trial: TrialRecords) -> TableRow:
    """Return a trial's settings, its status, and the costs of training it; unknown is None."""
    spec, train = trial.spec, trial.train
    return {
        "trial": spec.trial_id,
        "task": spec.task,
        "arm": spec.arm_label,
        **{name: getattr(spec, name) for name in ("method", "rank", "alpha")},
        "lr": spec.lr or None,
        "dropout": spec.dropout,
        "targets": ", ".join(spec.targets) or None,
        **spec.overrides,
        **spec.mitigations,
        "seed": spec.seed,
        "status": trial.status,
        "failure": trial.failure,
        "final_loss": train.losses[-1].loss if train and train.losses else None,
        **{name: getattr(train, name, None) for name in TRAINING_COLUMNS},
    }
