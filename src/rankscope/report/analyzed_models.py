"""Models whose analyses a page draws: the arms of a training task, or given models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from rankscope.formatting import number
from rankscope.records import Analyzed, StudyRecords, TrialRecords
from rankscope.report.charts.figure import range_cells
from rankscope.report.charts.rank_lines import RankAxis, RankLine, RankPoint
from rankscope.report.study_view import StudyView
from rankscope.report.style import DASHES, SYMBOLS, rank_colors
from rankscope.report.table_formats import shown, table


@dataclass(frozen=True, slots=True)
class AnalyzedModel:
    """One arm over its seeds, or one given model."""

    label: str
    kind: str
    rank: int | None
    trials: tuple[TrialRecords, ...]  # One per seed

    def records(self, kind: type[Analyzed]) -> list[Analyzed]:
        return [record for t in self.trials if (record := t.analysis(kind)) is not None]

    def mean(
        self, kind: type[Analyzed], measure: Callable[[Analyzed], float | None]
    ) -> float | None:
        values = [v for record in self.records(kind) if (v := measure(record)) is not None]
        return fmean(values) if values else None


@dataclass(frozen=True)
class AnalyzedModels:
    """The models that figures of analyses draw."""

    models: tuple[AnalyzedModel, ...]
    rank_axis: RankAxis
    focus: tuple[str, ...]  # Labels of the models that figures of single models show
    best: tuple[str, ...]  # Labels of those that are compared in detail
    task: str = ""  # The training task of a study
    place: int | None = None  # Its place in the study; None for given models

    def names(self, key: str, title: str) -> dict[str, Any]:
        """Return key and title of a figure, to be unpacked into it."""
        if self.place is None:
            return {"key": key, "title": title}
        return {"key": f"{key}-{self.place}", "title": f"{title}, {self.task}"}

    def over_seeds(
        self,
        kind: type[Analyzed],
        measures: Mapping[str, Callable[[Analyzed], float | None]],
    ) -> pd.DataFrame:
        """Return one row per model: mean, smallest and largest value of each measure over seeds."""
        rows = []
        for model in self.models:
            cells: dict[str, Any] = {"arm": model.label, "rank": model.rank}
            for title, measure in measures.items():
                cells |= range_cells(title, map(measure, model.records(kind)))
            if model.records(kind):
                rows.append(cells)
        return shown(table(rows))

    def by_rank(
        self,
        kind: type[Analyzed],
        measure: Callable[[Analyzed], float | None],
        digits: int | None = None,
        preposition: str = "at",
    ) -> str:
        """Write ``0.9 at r=8, 0.8 at r=32``: means over seeds on the focus line; empty if
        unknown."""
        models = {model.label: model for model in self.models}
        points = [(p.rank, models[p.arm].mean(kind, measure)) for p in self.rank_axis.focus_points]
        known = [(rank, value) for rank, value in points if value is not None]
        return ", ".join(f"{number(v, digits)} {preposition} r={rank}" for rank, v in known[:8])

    def full(
        self, kind: type[Analyzed], measure: Callable[[Analyzed], float | None]
    ) -> float | None:
        model = next((m for m in self.models if m.label == self.rank_axis.full), None)
        return model.mean(kind, measure) if model else None


def arms_analyzed(view: StudyView, task: str) -> AnalyzedModels:
    """Return the arms of one training task; the best LoRA and full arms are compared in detail."""
    models = tuple(
        AnalyzedModel(arm.label, arm.method, arm.rank, tuple(view.trials(arm)))
        for arm in view.arms(task)
    )
    focus = tuple(arm.label for arm in view.focus_arms(task))
    best = tuple(arm.label for arm in (view.best_lora(task), view.best_full(task)) if arm)
    place = view.training_tasks.index(task)
    return AnalyzedModels(models, view.rank_axis(task), focus, best, task, place)


def given_analyzed(study: StudyRecords) -> AnalyzedModels:
    """Return the given models of a study; adapters of one kind form a line over rank."""
    models = tuple(
        AnalyzedModel(t.spec.arm_label, t.spec.method, t.spec.rank, (t,))
        for t in study.trials
        if t.spec.given is not None
    )
    ranked = [(m.kind, m.rank, m.label) for m in models if m.rank is not None]
    colors = rank_colors(rank for _, rank, _ in ranked)
    lines = []
    for place, kind in enumerate(dict.fromkeys(kind for kind, _, _ in ranked)):
        of_kind = sorted((rank, label) for other, rank, label in ranked if other == kind)
        points = tuple(RankPoint(label, rank, colors[rank]) for rank, label in of_kind)
        lines.append(RankLine(kind, DASHES[place % 5], SYMBOLS[place % 5], points))
    if len(ranked) < 2:  # A single adapter is no line over rank.
        lines = []
    longest = max(lines, key=lambda line: len(line.points)).label if lines else None
    full = next((m.label for m in models if m.rank is None), None)
    labels = tuple(model.label for model in models)
    return AnalyzedModels(models, RankAxis(tuple(lines), longest, full), labels, labels)
