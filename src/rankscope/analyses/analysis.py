"""An analysis as a run sees it: its work, its costs, and the settings behind its results.

Results of analyses do not enter the decision, which rests on the scores of trials as trained.
"""

from typing import TYPE_CHECKING, Any

from rankscope.analyses import AnalysisKind, Settings, enabled_analyses

if TYPE_CHECKING:  # an analysis is known before records or torch are loaded
    from rankscope.config.study import StudyConfig
    from rankscope.records import EvalKey, TrialSpec
    from rankscope.run.context import RunContext
    from rankscope.run.costs import CostModel
    from rankscope.run.prepared import PreparedStudy
    from rankscope.run.stages import Stage


class Analysis(AnalysisKind[Settings]):
    """One analysis of trained models. A method that is not overridden adds nothing.

    The settings are a section of the study file, ``analyze.<name>``, with a key ``enabled``. The
    module of the subclass is read with every study file, so it must load neither torch nor records:
    its methods import what they need.
    """

    def check(self, study: "PreparedStudy") -> None:
        """Raise UserError for settings that do not suit the model or the trials."""

    def stage(self, context: "RunContext") -> "Stage[Any, Any]":
        """Return the stage that does its work in a run."""
        raise NotImplementedError

    def wanted_evals(self, study: "PreparedStudy", trial: "TrialSpec") -> list["EvalKey"]:
        """Return the scores of a trial that it adds to those that every trial has."""
        return []

    def record_settings(
        self, study: "PreparedStudy", kind: str, trial_id: str
    ) -> dict[str, object]:
        """Return the settings that stored records of a kind and model depend on besides the trial.

        Results made with other settings are refused.
        """
        return {}

    def trial_seconds(self, costs: "CostModel", trial: "TrialSpec") -> float:
        """Estimate the seconds for one trial, without its wanted scores."""
        return 0.0

    def base_seconds(self, costs: "CostModel") -> float:
        """Estimate the seconds for the base, once in a study."""
        return 0.0


def analyses_of_run(config: "StudyConfig") -> list[Analysis[Any]]:
    """Return the enabled analyses, in the order of their runs."""
    return [analysis for analysis in enabled_analyses(config) if isinstance(analysis, Analysis)]
