"""Written answers on tasks that are scored by likelihood alone: conversations and texts.

They are for people to read: no score and no decision rests on them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rankscope.analyses.analysis import Analysis
from rankscope.config.section import ConfigSection

if TYPE_CHECKING:
    import pandas as pd

    from rankscope.config.study import StudyConfig
    from rankscope.extensions.answers.record import AnswersRecord
    from rankscope.extensions.answers.stage import AnswersStage
    from rankscope.records import TrialSpec
    from rankscope.run.context import RunContext
    from rankscope.run.costs import CostModel
    from rankscope.run.prepared import PreparedStudy

MAX_ANSWER_TOKENS = 128  # Tokens of an answer, or ``evaluate.max_new_tokens`` if that is less


class AnswersConfig(ConfigSection):
    """Written answers of the base and of every trial, on tasks scored by log probability."""

    enabled: bool = True
    """Let the base and every trial write greedy answers to a few test items; ``false`` saves the
    time."""


class AnswersAnalysis(Analysis[AnswersConfig]):
    """Analysis of the texts that models write, for people to read."""

    name = "answers"
    place = 5
    settings_type = AnswersConfig
    runs_models = True

    def is_enabled(self, config: "StudyConfig") -> bool:
        """Whether the analysis runs: not beside given models, nor if shards would have to write
        together."""
        is_apt = bool(config.arms) and not config.given and config.train.devices == 1
        return is_apt and super().is_enabled(config)

    def applies_to(self, study: "PreparedStudy", trial: "TrialSpec") -> bool:
        """Whether a trial's task, or a part of its mixture, is scored by its loss."""
        if trial.task not in study.data.tasks:
            return False
        task = study.data.tasks[trial.task]
        return any(part.spec.scorer == "loss" for part in task.parts or (task,))

    def max_new_tokens(self, config: "StudyConfig") -> int:
        return min(MAX_ANSWER_TOKENS, config.evaluate.max_new_tokens)

    def record_settings(
        self, study: "PreparedStudy", kind: str, trial_id: str
    ) -> dict[str, object]:
        is_own = kind == self.name
        return {"max_new_tokens": self.max_new_tokens(study.config)} if is_own else {}

    def trial_seconds(self, costs: "CostModel", trial: "TrialSpec") -> float:
        """Estimate the seconds of one model's answers, each at its full length."""
        if not self.applies_to(costs.inputs, trial):
            return 0.0
        from rankscope.evaluate.scorers.scorer import ItemTokens
        from rankscope.extensions.answers.stage import questions

        written = self.max_new_tokens(costs.inputs.config)
        asked = [ids for _, of_task in questions(costs.inputs, trial.task) for _, ids in of_task]
        return costs.scoring([ItemTokens(len(ids), 1, written) for ids in asked])

    def base_seconds(self, costs: "CostModel") -> float:
        by_task = {trial.task: trial for trial in costs.inputs.trials}
        return sum(self.trial_seconds(costs, trial) for trial in by_task.values())

    def tables(self, models: Sequence[tuple[dict[str, object], Any]]) -> "dict[str, pd.DataFrame]":
        import pandas as pd

        rows = [
            {**model, **answer.model_dump(exclude={"schema_version"})}
            for model, record in models
            for answer in record.answers
        ]
        return {"answers": pd.DataFrame(rows)}

    def record_type(self) -> "type[AnswersRecord]":
        from rankscope.extensions.answers.record import AnswersRecord

        return AnswersRecord

    def stage(self, context: "RunContext") -> "AnswersStage":
        from rankscope.extensions.answers.stage import AnswersStage

        return AnswersStage(context)


WRITTEN_ANSWERS = AnswersAnalysis()
