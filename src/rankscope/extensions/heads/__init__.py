"""Changes of the attention heads by training: importance, entropy, size of change, ablation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rankscope.analyses.analysis import Analysis
from rankscope.config.section import ConfigSection, Name, Unfit
from rankscope.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from rankscope.config.study import StudyConfig
    from rankscope.evaluate.scorers.scorer import ItemTokens
    from rankscope.extensions.heads.record import HeadsRecord
    from rankscope.extensions.heads.stage import HeadsStage
    from rankscope.records import TrialSpec
    from rankscope.run.context import RunContext
    from rankscope.run.costs import CostModel
    from rankscope.run.prepared import PreparedStudy


class HeadsConfig(ConfigSection):
    """Attention heads of every trial, compared with those of the base."""

    enabled: bool = False
    """Analyze every trial's heads: their change, importance and attention entropy."""
    task: Name | None = None
    """Task whose test items measure importance and entropy; by default the trial's own."""
    items: int = Field(64, ge=1)
    """At most this many items of a task, the first of its test split."""
    ablate: list[Name] = []
    """Tasks to evaluate again with each head removed in turn, for the base and every trial. With
    the trial's own task among them, the report names the heads of skill and loss."""


class HeadsAnalysis(Analysis[HeadsConfig]):
    """Analysis of the attention heads."""

    name = "heads"
    place = 30
    settings_type = HeadsConfig
    runs_models = True

    def check_config(self, config: "StudyConfig") -> None:
        heads, known = self.settings(config), config.evaluation_tasks()
        if heads.enabled and not known:
            raise Unfit(found="analyze.heads without a task", expected="a task to measure them on")
        for name in [*([] if heads.task is None else [heads.task]), *heads.ablate]:
            if name not in known:
                found = f"task {name!r} in analyze.heads, which the study does not have"
                raise Unfit(found=found, expected=f"one of {', '.join(known)}")

    def check(self, study: "PreparedStudy") -> None:
        from rankscope.extensions.heads.layout import HeadLayout
        from rankscope.models.parameters import model_on_meta

        model = model_on_meta(study.base.config)
        HeadLayout.of(model)
        if not study.grouping.model.packs:
            found = "rows that run alone (docs/your-model-and-data.md)"
            raise UserError(f"heads of {type(model).__name__}", found, "a model whose rows pack")

    def needs_one_device(self, config: "StudyConfig", trials: Sequence["TrialSpec"]) -> str:
        return "analyze.heads.enabled"

    def record_settings(
        self, study: "PreparedStudy", kind: str, trial_id: str
    ) -> dict[str, object]:
        if kind != self.name:
            return {}
        heads, task = self.settings(study.config), self.task_of(study, study.trial(trial_id))
        return {"task": task, "items": heads.items, "ablate": sorted(set(heads.ablate))}

    def task_of(self, study: "PreparedStudy", trial: "TrialSpec") -> str:
        """Return the task on whose items a trial's heads are measured."""
        return self.settings(study.config).task or trial.task or study.task_records[0].name

    def trial_seconds(self, costs: "CostModel", trial: "TrialSpec") -> float:
        return self._seconds(costs, self.task_of(costs.inputs, trial))

    def base_seconds(self, costs: "CostModel") -> float:
        tasks = {self.task_of(costs.inputs, trial) for trial in costs.inputs.trials}
        return sum(self._seconds(costs, task) for task in sorted(tasks))

    def _seconds(self, costs: "CostModel", task: str) -> float:
        """Estimate the seconds of measuring one model's heads.

        They are a forward and a backward pass. Each task in ``ablate`` adds the intact model, with
        logits after each layer, and the removal of every head and every whole layer, from its own
        layer on.
        """
        heads = self.settings(costs.inputs.config)
        layers = sum(name.endswith(".o_proj") for name in costs.shapes.linear_shapes)
        removals = int(costs.inputs.base.config.get_text_config().num_attention_heads) + 1
        walks, outputs = removals * (layers + 1) / 2 + 1, (removals + 1) * layers

        def asked(name: str) -> "list[ItemTokens]":  # Gold answers are scored, none is written
            items = costs.inputs.items.get((name, "test"), ())[: heads.items]
            return [item._replace(written=0) for item in items]

        def ablating(name: str) -> float:
            items = asked(name)
            logits = 2 * costs.head * sum(item.predicted for item in items)
            return walks * costs.scoring(items) + (outputs - walks) * costs.computing(logits)

        return 3 * costs.scoring(asked(task)) + sum(map(ablating, set(heads.ablate)))

    def tables(self, models: Sequence[tuple[dict[str, object], Any]]) -> "dict[str, pd.DataFrame]":
        from rankscope.extensions.heads.tables import head_tables

        return head_tables(models)

    def record_type(self) -> "type[HeadsRecord]":
        from rankscope.extensions.heads.record import HeadsRecord

        return HeadsRecord

    def stage(self, context: "RunContext") -> "HeadsStage":
        from rankscope.extensions.heads.stage import HeadsStage

        return HeadsStage(context)


HEADS = HeadsAnalysis()
