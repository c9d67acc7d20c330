"""An analysis from one file: the largest number of each trial's adapter."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from rankscope.analyses import register_analysis
from rankscope.analyses.analysis import Analysis
from rankscope.config.section import ConfigSection
from rankscope.models.base import Base
from rankscope.records import AnalysisRecord, TrialSpec
from rankscope.run.context import RunContext
from rankscope.run.stages import Stage


class LargestConfig(ConfigSection):
    enabled: bool = False


class LargestRecord(AnalysisRecord):
    largest: float


class LargestStage(Stage[TrialSpec, LargestRecord]):
    name = "largest"

    def run(self, model: Base, work: Sequence[TrialSpec]) -> Iterator[LargestRecord]:
        self.context.begin_stage(self.name, len(work))
        for trial in work:
            adapter = model.multi_lora.adapters[trial.trial_id]
            largest = max(float(b.abs().max()) for b in adapter.b.values())
            yield LargestRecord(trial_id=trial.trial_id, seconds=0, largest=largest)


class LargestAnalysis(Analysis[LargestConfig]):
    """The largest number of B."""

    name = "largest"
    place = 40
    settings_type = LargestConfig

    def record_type(self) -> type[LargestRecord]:
        return LargestRecord

    def stage(self, context: RunContext) -> LargestStage:
        return LargestStage(context)

    def tables(self, models: Sequence[tuple[dict[str, object], Any]]) -> dict[str, pd.DataFrame]:
        return {"largest": pd.DataFrame(m | {"largest": r.largest} for m, r in models)}


register_analysis(LargestAnalysis())
