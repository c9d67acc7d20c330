"""Analyses, which measure more of each model than its scores; the registry finds them.

The study file, the ledger, the tables and the pages ask here. Import it freely: it loads neither
torch nor records.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from rankscope.config.section import ConfigSection
from rankscope.registry import parts

if TYPE_CHECKING:
    import pandas as pd

    from rankscope.config.study import StudyConfig
    from rankscope.records import AnalysisRecord, TrialSpec

Settings = TypeVar("Settings", bound=ConfigSection)


class AnalysisKind(Generic[Settings]):
    """An analysis as study files, ledgers and pages know it; ``analysis.py`` adds its work."""

    name: ClassVar[str]
    """Key in the study file, kind of the records in the ledger, and name of the stage."""
    place: ClassVar[float]  # Analyses run in this order
    settings_type: type[Settings]
    section: ClassVar[str] = "analyze"
    """Section of the study file with the settings; settings of another section are its own keys."""
    absence: ClassVar[str] = ""  # Sentence for the page if no trial of the study was analyzed
    runs_models: ClassVar[bool] = False  # Whether reading stored weights is not enough

    def settings(self, config: "StudyConfig") -> Settings:
        section: Any = getattr(config, self.section)
        if self.section != "analyze":
            return section  # type: ignore[no-any-return]
        settings: Settings = getattr(section, self.name)
        return settings

    def is_enabled(self, config: "StudyConfig") -> bool:
        """Whether a study asks for the analysis."""
        enabled: bool = getattr(self.settings(config), "enabled", True)
        return enabled

    def check_config(self, config: "StudyConfig") -> None:
        """Raise ValueError for settings that contradict the rest of the study file."""

    def needs_one_device(self, config: "StudyConfig", trials: Sequence["TrialSpec"]) -> str:
        """Name the settings, as the study file writes them, that need the model on one device."""
        return ""

    # --- results

    def record_type(self) -> "type[AnalysisRecord] | None":
        """Return the class of its records, one for each trial; None if its results are scores."""
        return None

    def tables(self, models: Sequence[tuple[dict[str, object], Any]]) -> dict[str, "pd.DataFrame"]:
        """Make tables by name from pairs of a model's columns and its record.

        Each row of a model begins with the model's columns.
        """
        return {}


@cache
def all_analyses() -> tuple[AnalysisKind[Any], ...]:
    """Return all analyses in the order of their runs."""
    kinds: dict[str, type[AnalysisKind[Any]]] = parts(AnalysisKind)
    return tuple(sorted((kind() for kind in kinds.values()), key=lambda analysis: analysis.place))


def enabled_analyses(config: "StudyConfig") -> tuple[AnalysisKind[Any], ...]:
    return tuple(analysis for analysis in all_analyses() if analysis.is_enabled(config))
