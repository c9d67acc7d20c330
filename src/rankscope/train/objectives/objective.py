"""The base class of objectives, which define a step's rows and their loss. It is SFT itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from rankscope.errors import UserError
from rankscope.train.objectives import SFT, ObjectiveKind, objectives

if TYPE_CHECKING:
    from torch import Tensor

    from rankscope.config.study import TrainConfig
    from rankscope.data.encode import EncodedRow, EncodedRows
    from rankscope.data.registry import TaskSpec
    from rankscope.data.tasks import LoadedTask
    from rankscope.evaluate.scorers.generation import GenerationScorer
    from rankscope.models.base import Base
    from rankscope.train.trial_state import TrialState


class Objective(ObjectiveKind):
    """Supervised fine-tuning: mean cross-entropy over the labeled tokens of a step.

    A subclass sets ``by_row`` and implements :meth:`loss`. Its module imports torch inside methods
    only, because the configuration imports every objective.
    """

    name = SFT
    by_row: ClassVar[bool] = False
    """Whether :meth:`loss` maps the summed log-probabilities of rows to the loss."""
    needs_pairs: ClassVar[bool] = False  # Rows have a rejected answer, too
    rows_each: int = 1  # Rows that run for each row of the task
    temperature: float = 1.0  # Divides logits before log-probabilities
    max_new_tokens: int = 0  # Longest answer that models write, and learn from

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def check_task(self, task: LoadedTask, train: TrainConfig) -> None:
        """Raise UserError for a task, or a protocol, that the objective cannot be trained with."""
        where = f"task {task.spec.name!r}, objective {self.name!r}"
        if self.needs_pairs and any(item.contexts for item in task.train):
            raise UserError(where, "options inside the sentence", "options that follow a prompt")
        if self.needs_pairs and not all(item.choices for item in task.train):
            raise UserError(
                where,
                f"rows of the shape {task.row_shape!r}, with one answer",
                "a preferred and a rejected one (prompt, chosen, rejected), or multiple choice",
                "give such rows, or choose another objective",
            )
        if self.by_row and train.tokens is not None:
            found = "'train.tokens', which counts the rows' own answers"
            raise UserError(where, found, "'epochs' or 'max_steps'")

    def scorers(self, spec: TaskSpec) -> dict[GenerationScorer, float]:
        """Return the scorers that judge written answers, with weights; empty if no answers are
        written."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Return the settings that enter a trial's id."""
        return {self.name: self.settings.model_dump(mode="json")}

    def num_tokens(self, rows: EncodedRows) -> int:
        """Return the most tokens that train in one epoch."""
        return rows.num_tokens

    def begin_step(self, model: Base, states: Sequence[TrialState], step: int) -> None:
        """Called before each step of these trials, for work that needs the current weights.

        Answers that models write go into ``written`` of their states, their figures into
        ``rewards``.
        """

    def step_rows(self, state: TrialState, step: int) -> list[EncodedRow]:
        """Return the rows of a trial's step, in order; the two rows of a pair are neighbors."""
        return [state.rows[i] for micro in state.sampler.step(step) for i in micro]

    def why_hopeless(self, state: TrialState) -> str:
        """Return why a trial cannot learn any more; empty if it can."""
        return ""

    def loss(
        self, losses: Tensor, rows: Sequence[EncodedRow], of_step: Sequence[EncodedRow]
    ) -> Tensor:
        """Return the share of some rows in the loss of a step: a scalar, with gradient.

        Args:
            losses: (rows,) float32, -log p of each row's labels, summed, nats.
            of_step: all rows of the trial's step.
        """
        raise NotImplementedError


@lru_cache
def objective_of(text: str) -> Objective:
    """Return the objective that a text of ``parse_objective`` names."""
    name, given = next(iter(json.loads(text).items())) if text.startswith("{") else (text, {})
    kind = objectives()[name]
    assert issubclass(kind, Objective)
    return kind(kind.settings_type.model_validate(given))
