"""The module of another package: a method, a scorer and an analysis."""

from typing import Any

from rankscope.analyses.analysis import Analysis
from rankscope.config.section import ConfigSection
from rankscope.evaluate.scorers.exact_match import ExactMatchScorer
from rankscope.models.methods.lora import LoraMethod


class HalfMethod(LoraMethod):
    name, label, summary = "half", "LoRA / 2", "`lora` with half its scaling."

    def rank_scale(self, rank: int) -> float:
        return 2 * rank


class LetterScorer(ExactMatchScorer):
    name, summary = "letter", "1 if the first letter is right"

    def comparable(self, text: str) -> str:
        return text.strip()[:1]


class LargestConfig(ConfigSection):
    enabled: bool = False


class LargestAnalysis(Analysis[LargestConfig]):
    """The largest number of each trial's B."""

    name, place, settings_type = "largest", 40, LargestConfig

    def record_type(self) -> Any:
        from largest import LargestRecord

        return LargestRecord

    def stage(self, context: Any) -> Any:
        from largest import LargestStage

        return LargestStage(context)

    def tables(self, models: Any) -> Any:
        import pandas as pd

        return {"largest": pd.DataFrame(m | {"largest": r.largest} for m, r in models)}
