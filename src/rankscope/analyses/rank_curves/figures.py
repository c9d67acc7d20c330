"""Ranks trained one by one, cut from a nested run, and truncated: curves over rank.

A curve's summary is the area under it over log2 of the rank, divided by the width (2605.07850). It
is a weighted mean over ranks, so it and its differences get intervals over seeds and items like
any other score.

Learning rates are chosen by validation score: one for each trained rank; for nested runs the one
with the largest area under its curve, because all slices come from one run; truncations are those
of the chosen arm of the largest rank, or of full fine-tuning.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Literal

import numpy as np

from rankscope.advise.retention import retention_tasks
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import align_scores
from rankscope.formatting import plus_minus, with_interval
from rankscope.models.methods import lora_methods
from rankscope.records import (
    BASE,
    Estimate,
    StudyRecords,
    TrialSpec,
    Variant,
    finished_trials,
    trial_of,
)
from rankscope.report.charts.figure import Figure, interval_cells
from rankscope.report.charts.rank_lines import Panel, RankAxis, RankLine, RankPoint, rank_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.style import MUTED
from rankscope.report.table_formats import table_from_rows

CurveKind = Literal["trained", "nested", "truncated", "full"]
CurveModels = Mapping[int, Mapping[int, str]]  # Rank -> seed -> id of a trial or variant


def curve_models(study: StudyRecords, task: str) -> dict[CurveKind, CurveModels]:
    """The models of a training task's curves: of its first line of plain LoRA, and of nested runs
    and truncations that differ from it in nothing else."""
    specs = [t.spec for t in finished_trials(study.trials) if t.spec.task == task]
    most = max((inf if s.rows is None else s.rows for s in specs), default=inf)
    specs = [s for s in specs if s.rows == (None if most == inf else most)]
    plain_methods = [method.name for method in lora_methods() if method.is_plain]
    plain = [s for s in specs if s.method in plain_methods]
    line = [s for s in plain if s.arm_without_rank == plain[0].arm_without_rank]
    nested = [s for s in specs if s.nested and line and _is_beside(s, line[0])]
    trained: dict[int, Mapping[int, str]] = {}
    for rank in sorted({s.rank or 0 for s in line}):
        trained |= _best_models(study, [s for s in line if s.rank == rank])
    whole = trained[max(trained)] if trained else {}
    cut = _truncations(study, whole, trained)
    full = next(iter(_best_models(study, [s for s in specs if s.is_full]).values()), {})
    curves: dict[CurveKind, CurveModels] = {
        "trained": trained,
        "nested": _best_models(study, nested),
        "truncated": {**cut, max(trained): whole} if cut else {},
        "full": _truncations(study, full, trained),
    }
    return {kind: models for kind, models in curves.items() if models}


def _is_beside(spec: TrialSpec, plain: TrialSpec) -> bool:
    alike = spec.model_copy(update={"method": plain.method, "nested": None})
    return alike.arm_without_rank == plain.arm_without_rank


def _best_models(study: StudyRecords, specs: Sequence[TrialSpec]) -> CurveModels:
    """The trials with one learning rate, and one alpha or list of nested ranks, whose validation
    scores have the largest area."""
    groups: dict[object, dict[int, dict[int, str]]] = {}
    for s in sorted(specs, key=lambda s: s.rank or 0):
        models = groups.setdefault((s.lr, s.nested or s.alpha), {})
        models.setdefault(s.rank or 0, {})[s.seed] = s.trial_id

    def area(models: CurveModels) -> float:
        evals = [[study.evals.get((i, specs[0].task, "validation")) for i in m.values()]
                 for m in models.values()]  # fmt: skip
        means = [fmean(-np.inf if e is None else e.score for e in of_rank) for of_rank in evals]
        return float(np.dot(area_weights(list(models)), means))

    return max(groups.values(), key=area, default={})


def _truncations(
    study: StudyRecords, whole: Mapping[int, str], ranks: Iterable[int]
) -> dict[int, Mapping[int, str]]:
    """The truncations of trials, by seed, that were scored."""
    scored = {model for model, _, _ in study.evals}
    cut = {r: {s: Variant("truncated", r).of(i) for s, i in whole.items()} for r in ranks}
    return {r: models for r, models in cut.items() if models and scored.issuperset(models.values())}


def area_weights(ranks: Sequence[int]) -> list[float]:
    """Weights of the scores at rising ranks in their mean over log2 of the rank (trapezoids)."""
    if len(ranks) == 1:
        return [1.0]
    halves = np.diff(np.log2(ranks)) / 2 / np.log2(ranks[-1] / ranks[0])
    return [float(weight) for weight in np.append(halves, 0.0) + np.append(0.0, halves)]


CURVES = {
    "trained": ("trained at each rank", "solid", "circle"),
    "nested": ("slices of a nested run", "dash", "diamond"),
    "truncated": ("truncations of the largest", "dot", "square"),
    "full": ("truncations of full fine-tuning", "dashdot", "pentagon"),
}
"""Name of a curve, dash and symbol."""
_CAPTION = """Test split, same seeds. Solid with circles: trained at each rank; dashes with \
diamonds: slices of a nested run; dots with squares: the adapter of the largest rank truncated by \
its singular values; dashes and dots with pentagons: the same of full fine-tuning, on its linear \
layers. Learning rates are chosen by validation score: for each rank, or for a whole \
nested run. Bands are 95 % intervals. The area is the mean over log2 of the rank."""


def rank_curves(study: StudyRecords, task: str) -> dict[CurveKind, CurveModels]:
    """The curves of a training task at the ranks that all of them have, what was trained first;
    empty if there are fewer than two curves or ranks."""
    curves = curve_models(study, task)
    ranks = sorted(set.intersection(*map(set, curves.values()))) if curves else []
    if len(curves) < 2 or len(ranks) < 2:
        return {}
    return {kind: {rank: models[rank] for rank in ranks} for kind, models in curves.items()}


def area_under(
    study: StudyRecords,
    curve: CurveModels,
    tasks: Sequence[str],
    other: CurveModels | str | None = None,
) -> Estimate | None:
    """Area under a curve's test scores over log2 of the rank, divided by its width, mean over
    tasks; of a single rank, its score. Minus that of ``other`` on the same items: another curve, or
    ``base``. None if a score is missing, or if the ranks have no seed in common.
    """
    weights, comparisons = area_weights(list(curve)), []
    for task in tasks:
        found, sizes = [], []
        for models in (curve, other) if isinstance(other, Mapping) else (curve,):
            seeds = sorted(set.intersection(*map(set, models.values())))
            found += [study.items.get((m[s], task, "test")) for m in models.values() for s in seeds]
            sizes.append(len(seeds))
        known = [items for items in (*found, study.items.get((BASE, task, "test"))) if items]
        aligned = align_scores(known[:-1], known[-1:], trained=False)
        if len(known) <= len(found) or aligned is None or not all(sizes):
            return None
        rows = np.split(aligned.tuned, [len(weights) * sizes[0]])
        arms = [
            np.tensordot(weights, part.reshape(len(weights), size, -1), axes=1)
            for part, size in zip(rows, sizes, strict=False)
        ]
        reference = arms[1] if len(arms) > 1 else aligned.reference if other == BASE else None
        comparisons.append(Comparison(arms[0], reference, aligned.clusters))
    return weighted_estimate(comparisons) if comparisons else None


@register("ranks", 20)
def draw_rank_curves(view: StudyView, task: str) -> Figure | None:
    study, unit, lost = view.whole, view.unit(task), view.retention_unit(task)
    curves, retained = rank_curves(study, task), [t.name for t in retention_tasks(study, task)]
    if not curves or area_under(study, curves["trained"], [task]) is None:
        return None  # without test scores of the trained ranks nothing is beyond them
    score, kept = f"score, {unit.score}", f"retention change, {lost.difference}"
    more, more_kept = "score beyond trained", "retention beyond trained"
    rows, lines, areas = [], [], []
    for kind, curve in curves.items():
        name, dash, symbol = CURVES[kind]
        ids = {trial_of(model) for models in curve.values() for model in models.values()}
        rates = sorted({t.spec.lr for t in study.trials if t.spec.trial_id in ids})
        for rank in (*curve, None):  # None: the area under the whole curve
            own, trained = (
                models if rank is None else {rank: models[rank]}
                for models in (curve, curves["trained"])
            )
            found = area_under(study, own, [task])
            beyond = beyond_kept = None
            if kind != "trained":
                beyond = area_under(study, own, [task], trained)
                beyond_kept = area_under(study, own, retained, trained)
            rows.append(
                {
                    "arm": f"{name} " + (f"r={rank}" if rank else "area"),
                    "learning rate": ", ".join(f"{rate:g}" for rate in rates),
                    **interval_cells(score, found, unit),
                    **interval_cells(kept, area_under(study, own, retained, BASE), lost),
                    **interval_cells(more, beyond, unit),
                    **interval_cells(more_kept, beyond_kept, lost),
                }
            )
        points = [RankPoint(f"{name} r={r}", r, view.colors.get(r, MUTED)) for r in curve]
        lines.append(RankLine(name, dash, symbol, tuple(points)))
        if beyond is not None:
            kept_text = beyond_kept and f", retention {with_interval(beyond_kept, lost)}"
            areas.append(f"{name} {with_interval(beyond, unit)}{kept_text or ''}")
        elif found is not None:
            areas.append(f"{name} {plus_minus(found, unit)} {unit.score}")
    digits = dict.fromkeys((score, more), unit.digits + 1)
    frame = table_from_rows(rows, digits | dict.fromkeys((kept, more_kept), lost.digits + 1))
    return Figure(
        key=view.key("rank-curves", task),
        title=f"One run, or one per rank, {task}",
        finding=f"Area under the score over log2 of the rank: {areas[0]}. Beyond that, with 95 % "
        f"intervals: {'; '.join(areas[1:])}.",
        data=frame,
        plot=rank_plot(RankAxis(tuple(lines)), [Panel(frame, t) for t in (score, kept)]),
        caption=_CAPTION,
    )
