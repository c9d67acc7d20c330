"""What an analysis is: its settings, records, work, costs and what its results depend on.

Results of analyses do not enter the decision: it rests on the scores of trials as trained.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from rankscope.config.section import ConfigSection

if TYPE_CHECKING:  # an analysis is known before records or torch are loaded
    import pandas as pd

    from rankscope.config.study import StudyConfig
    from rankscope.records import AnalysisRecord, EvalKey, TrialSpec
    from rankscope.run.context import RunContext
    from rankscope.run.costs import CostModel
    from rankscope.run.prepared import PreparedStudy
    from rankscope.run.stages import Stage

Settings = TypeVar("Settings", bound=ConfigSection)


class Analysis(Generic[Settings]):
    """One analysis of trained models. A method that is not overridden adds nothing.

    The settings are a section of the study file, ``analyze.<name>``, with a key ``enabled``. The
    module of the subclass is read with every study file, so it must load neither torch nor records:
    its methods import what they need.
    """

    name: ClassVar[str]
    """Key in the study file, kind of the records in the ledger, and name of the stage."""
    place: ClassVar[float]  # Analyses run in this order
    settings_type: type[Settings]
    section: ClassVar[str] = "analyze"
    """Section of the study file with the settings; those of another section are keys of its own."""
    absence: ClassVar[str] = ""  # Sentence for the page if no trial of the study was analyzed
    runs_models: ClassVar[bool] = False  # Whether reading stored weights is not enough

    def settings(self, config: "StudyConfig") -> Settings:
        section: Any = getattr(config, self.section)
        if self.section != "analyze":
            return section  # type: ignore[no-any-return]
        settings: Settings = getattr(section, self.name)
        return settings

    def is_enabled(self, config: "StudyConfig") -> bool:
        """Whether a study asks for it."""
        enabled: bool = getattr(self.settings(config), "enabled", True)
        return enabled

    def check_config(self, config: "StudyConfig") -> None:
        """Raise ValueError for settings that contradict the rest of the study file."""

    def check(self, study: "PreparedStudy") -> None:
        """Raise UserError for settings that do not suit the model or the trials."""

    def needs_one_device(self, config: "StudyConfig", trials: Sequence["TrialSpec"]) -> str:
        """What of an enabled analysis cannot run on a sharded model, as the study file says it."""
        return ""

    # --- work

    def record_type(self) -> "type[AnalysisRecord] | None":
        """Class of its records, one for each trial; None if its results are scores."""
        return None

    def stage(self, context: "RunContext") -> "Stage[Any, Any]":
        """Its work in a run."""
        raise NotImplementedError

    def wanted_evals(self, study: "PreparedStudy", trial: "TrialSpec") -> list["EvalKey"]:
        """Scores of a trial that it adds to those that every trial has."""
        return []

    def record_settings(
        self, study: "PreparedStudy", kind: str, model_id: str
    ) -> dict[str, object]:
        """What stored records of a kind and model depend on besides the trial. Results made with
        other settings are refused."""
        return {}

    # --- costs

    def trial_seconds(self, costs: "CostModel", trial: "TrialSpec") -> float:
        """Seconds for one trial, its wanted scores not counted."""
        return 0.0

    def base_seconds(self, costs: "CostModel") -> float:
        """Seconds for the base, once in a study."""
        return 0.0

    # --- results

    def tables(self, models: Sequence[tuple[dict[str, object], Any]]) -> dict[str, "pd.DataFrame"]:
        """Tables by name, of pairs of a model's columns and its record; each row of a model begins
        with its columns."""
        return {}
