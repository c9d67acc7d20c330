"""Changes of the weight matrices by training: their spectra before and after.

Read ``record`` (the measures), ``spectra`` (of one matrix), then ``leading_vectors`` with
``subspace_iteration`` (the computation, without decomposing W). ``stage`` and ``stored_models``
call these for models in memory and on disk.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rankscope.analyses.analysis import Analysis
from rankscope.config.section import ConfigSection

if TYPE_CHECKING:
    import pandas as pd

    from rankscope.extensions.spectra.record import SpectraRecord
    from rankscope.extensions.spectra.stage import SpectraStage
    from rankscope.records import TrialSpec
    from rankscope.run.context import RunContext
    from rankscope.run.costs import CostModel
    from rankscope.run.prepared import PreparedStudy

DECOMPOSITION = 30  # Operations of a singular value decomposition of (m, n), times m n min(m, n)
CPU_RATE, CUDA_RATE = 2e11, 5e11
"""Operations per second of a decomposition. Two cores of an EPYC reach 1.7e11 in matrices of 576
and 2.2e11 in matrices of 4096; a GPU's rate is assumed."""
UPDATED_VECTORS = 0.25
"""Share of these operations that updates 500 leading vectors of 4096 by a low-rank change; see
LOG.md, "spectra"."""


class SpectraConfig(ConfigSection):
    """Weight spectra of every trial."""

    enabled: bool = True
    """Analyze every trial's weights; ``false`` saves the time."""
    top_k: int | None = Field(None, ge=1)
    """Singular vectors to compare, at most the smaller dimension of each compared matrix; by
    default min(500, a quarter of it). With all of them the subspaces are always equal."""
    intruder_k: int = Field(10, ge=1)
    """Leading vectors of the tuned matrix to examine for intruder dimensions."""
    intruder_epsilon: float = Field(0.5, gt=0, lt=1)
    """A vector is an intruder if its |cosine| to every base vector is below this."""


class SpectraAnalysis(Analysis[SpectraConfig]):
    """Analysis of the weights."""

    name = "spectra"
    place = 20
    settings_type = SpectraConfig
    absence = "No run has a spectra record: the weights were not analyzed."

    def check(self, study: "PreparedStudy") -> None:
        from rankscope.extensions.spectra.spectra import check_spectra_settings
        from rankscope.models.parameters import compared_matrices

        matrices = compared_matrices(study.base.shapes, study.trials)
        check_spectra_settings(self.settings(study.config), matrices)

    def record_settings(
        self, study: "PreparedStudy", kind: str, trial_id: str
    ) -> dict[str, object]:
        from rankscope.extensions.spectra.spectra import num_compared_vectors

        if kind != self.name:
            return {}
        settings = self.settings(study.config)
        shapes = sorted(set(study.base.shapes.linear_shapes.values()))
        return {
            "intruder_k": settings.intruder_k,
            "intruder_epsilon": settings.intruder_epsilon,
            **{
                f"top_k of {m} x {n} matrices": num_compared_vectors((m, n), settings)
                for m, n in shapes
            },
        }

    def trial_seconds(self, costs: "CostModel", trial: "TrialSpec") -> float:
        """Estimate the seconds of comparing a trial's matrices with the base's.

        Shards share those of full fine-tuning.
        """
        from rankscope.models.methods import get_method
        from rankscope.models.parameters import target_shapes

        low_rank = trial.peft is None and not trial.is_full
        low_rank = low_rank and get_method(trial.method).delta_is_low_rank
        names = trial.targets if low_rank else sorted(costs.compared)
        shapes = target_shapes(costs.shapes, names).values() if names else ()
        large = [shape for shape in shapes if low_rank and min(shape) >= 1024]
        others = [shape for shape in shapes if not low_rank or min(shape) < 1024]
        seconds = UPDATED_VECTORS * _decompositions(costs, large) + _decompositions(costs, others)
        is_shared = trial.is_full and trial.given is None
        return seconds / costs.inputs.config.train.devices if is_shared else seconds

    def base_seconds(self, costs: "CostModel") -> float:
        """Estimate the seconds of decomposing the base's matrices, if no cache holds them."""
        return _decompositions(costs, costs.compared.values())

    def tables(self, models: Sequence[tuple[dict[str, object], Any]]) -> "dict[str, pd.DataFrame]":
        from rankscope.extensions.spectra.tables import spectra_tables

        return spectra_tables(models)

    def record_type(self) -> "type[SpectraRecord]":
        from rankscope.extensions.spectra.record import SpectraRecord

        return SpectraRecord

    def stage(self, context: "RunContext") -> "SpectraStage":
        from rankscope.extensions.spectra.stage import SpectraStage

        return SpectraStage(context)


def _decompositions(costs: "CostModel", shapes: Collection[tuple[int, int]]) -> float:
    operations = sum(DECOMPOSITION * m * n * min(m, n) for m, n in shapes)
    return operations / (CUDA_RATE if costs.machine.device.type == "cuda" else CPU_RATE)


SPECTRA = SpectraAnalysis()
