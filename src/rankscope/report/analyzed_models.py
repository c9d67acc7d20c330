"""Models with analyzed weights and heads: arms of a study, or the models of an inspection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import pandas as pd

from rankscope.analyses.heads.record import HeadsRecord
from rankscope.analyses.inspection import Inspection
from rankscope.analyses.spectra.record import MatrixSpectrum, NormGrowth, SpectraRecord
from rankscope.formatting import number
from rankscope.report.charts.figure import Names, range_cells
from rankscope.report.charts.rank_lines import RankAxis, RankLine, RankPoint
from rankscope.report.study_view import StudyView
from rankscope.report.style import DASHES, SYMBOLS, rank_colors
from rankscope.report.table_formats import table_from_rows

Measure = Callable[[SpectraRecord], float | None]

MATRIX_COLUMNS: Mapping[str, Callable[[MatrixSpectrum], float]] = {
    "|dW|_F / |W0|_F": lambda m: m.relative,
    "effective rank": lambda m: m.effective_rank,
    "stable rank": lambda m: m.stable_rank,
    "index-matched similarity": lambda m: fmean(m.similarity_index),
    "max-matched similarity": lambda m: fmean(m.similarity_max),
    "subspace similarity": lambda m: fmean(m.similarity_subspace),
    "chance, index-matched": lambda m: fmean(m.chance_index),
    "chance, max-matched": lambda m: fmean(m.chance_max),
    "chance, subspace": lambda m: fmean(m.chance_subspace),
    "intruders": lambda m: m.intruders,
    "energy share": lambda m: m.intruder_energy,
    "k": lambda m: m.top_k,
    "chance of the left subspace": lambda m: m.chance_subspace[0],
    "chance of the right subspace": lambda m: m.chance_subspace[1],
    "ill-conditioned vectors": lambda m: m.ill_conditioned,
}
"""What is shown of one matrix; similarities are means of left and right vectors."""


def total_norm(spectra: SpectraRecord) -> float | None:
    return spectra.frobenius if spectra.matrices else None


def mean_over_matrices(column: str) -> Measure:
    """The mean of one of ``MATRIX_COLUMNS`` over the matrices of a trial."""
    value = MATRIX_COLUMNS[column]
    return lambda spectra: fmean(map(value, spectra.matrices)) if spectra.matrices else None


@dataclass(frozen=True, slots=True)
class _AnalyzedModel:
    """One arm over its seeds, or one model of an inspection."""

    label: str
    kind: str
    rank: int | None
    spectra: tuple[SpectraRecord, ...]  # One per seed
    heads: HeadsRecord | None  # The mean over seeds

    def mean(self, measure: Measure) -> float | None:
        values = [v for spectra in self.spectra if (v := measure(spectra)) is not None]
        return fmean(values) if values else None


@dataclass(frozen=True)
class AnalyzedModels:
    """What the figures of weights and heads draw."""

    models: tuple[_AnalyzedModel, ...]
    rank_axis: RankAxis
    growth: NormGrowth | None  # The fit of the norm over ranks, for the models on the focus line
    focus: tuple[str, ...]  # Labels of the models that figures of single models show
    task: str = ""  # The training task of a study
    place: int | None = None  # Its place in the study

    def names(self, key: str, title: str) -> Names:
        if self.place is None:
            return Names(key=key, title=title)
        return Names(key=f"{key}-{self.place}", title=f"{title}, {self.task}")

    @cached_property
    def shown(self) -> tuple[_AnalyzedModel, ...]:
        """The focus models with analyzed matrices."""
        return tuple(
            m for m in self.models if m.label in self.focus and any(s.matrices for s in m.spectra)
        )

    @cached_property
    def with_heads(self) -> list[tuple[str, HeadsRecord]]:
        return [(model.label, model.heads) for model in self.models if model.heads is not None]

    def over_seeds(self, measures: Mapping[str, Measure]) -> pd.DataFrame:
        """One row per model: mean, smallest and largest of each measure over seeds."""
        rows = []
        for model in self.models:
            cells: dict[str, Any] = {"arm": model.label, "rank": model.rank}
            for title, measure in measures.items():
                cells |= range_cells(title, map(measure, model.spectra))
            if model.spectra:
                rows.append(cells)
        return table_from_rows(rows)

    def by_rank(self, measure: Measure, digits: int | None = None, preposition: str = "at") -> str:
        """``0.9 at r=8, 0.8 at r=32``: means over seeds on the focus line; empty if unknown."""
        models = {model.label: model for model in self.models}
        points = [(p.rank, models[p.arm].mean(measure)) for p in self.rank_axis.focus_points]
        known = [(rank, value) for rank, value in points if value is not None]
        return ", ".join(f"{number(v, digits)} {preposition} r={rank}" for rank, v in known[:8])

    def full(self, measure: Measure) -> float | None:
        model = next((m for m in self.models if m.label == self.rank_axis.full), None)
        return model.mean(measure) if model else None

    @cached_property
    def matrices(self) -> pd.DataFrame:
        """One row per shown model and matrix, means over seeds; layer -1 is outside the layers."""
        rows = [
            {
                "model": model.label,
                "kind": model.kind,
                "matrix": m.name,
                "layer": -1 if m.layer is None else m.layer,
                "module": m.module,
                **{title: float(value(m)) for title, value in MATRIX_COLUMNS.items()},
            }
            for model in self.shown
            for spectra in model.spectra
            for m in spectra.matrices
        ]
        identity = ["model", "kind", "matrix", "layer", "module"]
        frame = pd.DataFrame(rows, columns=[*identity, *MATRIX_COLUMNS])
        return frame.groupby(identity, sort=False, as_index=False).mean()


def arms_analyzed(view: StudyView, task: str) -> AnalyzedModels:
    """The arms of one training task; heads are those of the best LoRA and the best full arm."""
    heads = {
        arm.label: _mean_heads(
            [h for t in view.trials(arm) if (h := t.analysis(HeadsRecord)) is not None]
        )
        for arm in view.arms(task)
    }
    best = [arm.label for arm in (view.best_lora(task), view.best_full(task)) if arm]
    known = [label for label, record in heads.items() if record is not None]
    shown = [label for label in best if label in known] or known[:1]
    models = tuple(
        _AnalyzedModel(
            label=arm.label,
            kind=arm.method,
            rank=arm.rank,
            spectra=tuple(s for t in view.trials(arm) if (s := t.analysis(SpectraRecord))),
            heads=heads[arm.label] if arm.label in shown else None,
        )
        for arm in view.arms(task)
    )
    rank_axis = view.rank_axis(task)
    ranks = {point.arm: point.rank for point in rank_axis.focus_points}
    norms = {ranks[m.label]: m.mean(total_norm) for m in models if m.label in ranks}
    fitted = [(rank, norm) for rank, norm in norms.items() if norm is not None]
    growth = NormGrowth.fit(*zip(*fitted, strict=True)) if fitted else None
    focus = tuple(arm.label for arm in view.focus_arms(task))
    return AnalyzedModels(models, rank_axis, growth, focus, task, view.training_tasks.index(task))


def models_inspected(inspection: Inspection) -> AnalyzedModels:
    """The models of an inspection; adapters of one kind form a line over rank."""
    models = tuple(
        _AnalyzedModel(label=m.name, kind=m.kind, rank=m.rank, spectra=(m.spectra,), heads=m.heads)
        for m in inspection.tuned
    )
    ranked = [(m.kind, m.rank, m.label) for m in models if m.rank is not None]
    colors = rank_colors(rank for _, rank, _ in ranked)
    lines = []
    for place, kind in enumerate(dict.fromkeys(kind for kind, _, _ in ranked)):
        of_kind = sorted((rank, label) for other, rank, label in ranked if other == kind)
        points = tuple(RankPoint(label, rank, colors[rank]) for rank, label in of_kind)
        lines.append(RankLine(kind, DASHES[place % 5], SYMBOLS[place % 5], points))
    if len(ranked) < 2:  # One adapter is no line over rank.
        lines = []
    longest = max(lines, key=lambda line: len(line.points)).label if lines else None
    full = next((m.label for m in models if m.rank is None), None)
    labels = tuple(model.label for model in models)
    return AnalyzedModels(models, RankAxis(tuple(lines), longest, full), inspection.growth, labels)


def _mean_heads(records: Sequence[HeadsRecord]) -> HeadsRecord | None:
    """One record with the means over seeds; a standard error then is the mean of theirs.

    Seeds are scored on the same items, so the error of the mean is at most that.
    """
    if len(records) < 2:
        return records[0] if records else None
    return HeadsRecord.model_validate(_mean([record.model_dump() for record in records]))


def _mean(values: Sequence[Any]) -> Any:
    """Average the numbers of nested structures of one shape; unknown ones are left out."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, list | tuple):
        return [_mean(column) for column in zip(*values, strict=False)]
    known = [value for value in values if isinstance(value, float)]
    return fmean(known) if known else first
