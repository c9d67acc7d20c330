"""The records and the work of the analysis in ``more``."""

from collections.abc import Iterator, Sequence

from rankscope.models.base import Base
from rankscope.records import AnalysisRecord, TrialSpec
from rankscope.run.stages import Stage


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
