"""Scores of trained models whose update is scaled down or truncated, without training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rankscope.analyses.analysis import Analysis
from rankscope.config.section import ConfigSection, ZeroOrMore

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig
    from rankscope.extensions.variants.stage import VariantsStage
    from rankscope.records import EvalKey, TrialSpec, Variant
    from rankscope.run.context import RunContext
    from rankscope.run.prepared import PreparedStudy

Scale = Annotated[float, Field(gt=0, lt=1)]


class VariantsConfig(ConfigSection):
    scales: ZeroOrMore[Scale] = []
    """Evaluate every trial again, without training, with its whole update scaled by each of these,
    between 0 and 1: W0 + scale (W - W0)."""
    truncated_ranks: ZeroOrMore[Annotated[int, Field(ge=1)]] = []
    """Evaluate again with every matrix truncated to each of these ranks by its singular values: the
    adapters of the largest rank among those that differ in rank, learning rate and alpha alone, and
    every fully fine-tuned model, as an adapter on its linear layers."""


class VariantsAnalysis(Analysis[VariantsConfig]):
    name = "variants"
    place = 10
    settings_type = VariantsConfig
    section = "evaluate"
    runs_models = True

    def is_enabled(self, config: "StudyConfig") -> bool:
        own = self.settings(config)
        return any((own.scales, own.truncated_ranks))

    def needs_one_device(self, config: "StudyConfig", trials: Sequence["TrialSpec"]) -> str:
        return "variants of full fine-tuning" if any(trial.is_full for trial in trials) else ""

    def variants(self, study: "PreparedStudy", trial: "TrialSpec") -> "list[Variant]":
        """Return the variants of a trial to score; none for a method of the PEFT library."""
        from rankscope.records import Variant

        own = self.settings(study.config)
        variants = [Variant(trial.trial_id, "scale", strength) for strength in own.scales]
        if own.truncated_ranks:
            line = [
                t.rank or 0 for t in study.trials if t.arm_without_rank == trial.arm_without_rank
            ]
            ranks = [r for r in own.truncated_ranks if r < (trial.rank or 0) == max(line)]
            ranks = own.truncated_ranks if trial.is_full else ranks
            variants += [Variant(trial.trial_id, "truncated", rank) for rank in ranks]
        return list(dict.fromkeys(variants)) if trial.peft is None else []

    def wanted_evals(self, study: "PreparedStudy", trial: "TrialSpec") -> "list[EvalKey]":
        """Return the variants' in-domain and retention scores, on the splits of the trial
        itself."""
        tasks = set(study.curve_tasks(trial.task))
        return [
            (variant, task, split)
            for variant in self.variants(study, trial)
            for _, task, split in study.wanted_evals(trial.trial_id, trial.task)
            if task in tasks
        ]

    def stage(self, context: "RunContext") -> "VariantsStage":
        from rankscope.extensions.variants.stage import VariantsStage

        return VariantsStage(context)


VARIANTS = VariantsAnalysis()
