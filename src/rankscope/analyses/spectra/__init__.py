"""How training changed the weight matrices: their spectra before and after."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rankscope.analyses import register_analysis
from rankscope.analyses.analysis import Analysis
from rankscope.config.section import ConfigSection

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

    from rankscope.analyses.spectra.record import SpectraRecord
    from rankscope.records import StudyRecords, TrialSpec
    from rankscope.run.context import RunContext
    from rankscope.run.costs import CostModel
    from rankscope.run.prepared import PreparedStudy
    from rankscope.run.stages import Stage


class SpectraConfig(ConfigSection):
    """Weight spectra of every trial."""

    enabled: bool = True
    """Analyze every trial's weights; ``false`` saves the time."""
    top_k: int | None = Field(None, ge=1)
    """Singular vectors to compare; by default min(500, smaller dimension / 4)."""
    intruder_k: int = Field(10, ge=1)
    """Leading vectors of the tuned matrix to examine for intruder dimensions."""
    intruder_epsilon: float = Field(0.5, gt=0, lt=1)
    """A vector is an intruder if its |cosine| to every base vector is below this."""

    @property
    def of_intruders(self) -> dict[str, object]:
        """The settings that decide what is an intruder, by name."""
        return {"intruder_k": self.intruder_k, "intruder_epsilon": self.intruder_epsilon}


class SpectraAnalysis(Analysis[SpectraConfig]):
    """Analysis of the weights."""

    name = "spectra"
    place = 20
    settings_type = SpectraConfig
    absence = "No trial has a spectra record: the weights were not analyzed."

    def check(self, study: "PreparedStudy") -> None:
        from rankscope.analyses.spectra.spectra import check_spectra_settings
        from rankscope.models.parameters import compared_matrices

        matrices = compared_matrices(study.base.shapes, study.trials)
        check_spectra_settings(self.settings(study.config), matrices)

    def record_type(self) -> "type[SpectraRecord]":
        from rankscope.analyses.spectra.record import SpectraRecord

        return SpectraRecord

    def stage(self, context: "RunContext") -> "Stage[Any, Any]":
        from rankscope.analyses.spectra.stage import SpectraStage

        return SpectraStage(context)

    def record_settings(
        self, study: "PreparedStudy", kind: str, model_id: str
    ) -> dict[str, object]:
        from rankscope.analyses.spectra.spectra import num_compared_vectors

        if kind != self.name:
            return {}
        settings = self.settings(study.config)
        shapes = sorted(set(study.base.shapes.linear_shapes.values()))
        return settings.of_intruders | {
            f"top_k of {m} x {n} matrices": num_compared_vectors((m, n), settings)
            for m, n in shapes
        }

    def trial_seconds(self, costs: "CostModel", trial: "TrialSpec") -> float:
        from rankscope.analyses.spectra.costs import comparison_seconds

        return comparison_seconds(costs, trial)

    def base_seconds(self, costs: "CostModel") -> float:
        from rankscope.analyses.spectra.costs import base_decomposition_seconds

        return base_decomposition_seconds(costs)

    def tables(self, models: Sequence[tuple[dict[str, object], Any]]) -> "dict[str, pd.DataFrame]":
        from rankscope.analyses.spectra.tables import spectra_tables

        return spectra_tables(models)

    def terminal(self, study: "StudyRecords") -> "tuple[list[RenderableType], list[str]]":
        from rankscope.analyses.spectra.terminal import spectra_terminal

        return spectra_terminal(study)

    def summary(self, study: "StudyRecords") -> dict[str, object]:
        from rankscope.analyses.spectra.growth import growth_of_given
        from rankscope.models.svd_cache import cache_bytes, svd_cache_folder

        return {
            "growth": growth_of_given(study.trials),
            "cache_bytes": cache_bytes(svd_cache_folder()),
        }


SPECTRA = SpectraAnalysis()
register_analysis(SPECTRA)
