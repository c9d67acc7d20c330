"""Curves over rank on the same seeds: trained at each rank, slices of a nested run, truncations.

Learning rates are chosen by validation score: one for each trained rank; for nested runs the one
with the largest area under its curve, because all slices come from one run; truncations are those
of the chosen arm of the largest rank. A curve's summary is the area under it over log2 of the rank,
divided by the width (2605.07850). It is a weighted mean over ranks, so it and its differences get
intervals over seeds and items like any other score."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from rankscope.advise.arms import training_tasks
from rankscope.advise.retention import retention_tasks
from rankscope.advise.statistics.estimates import Comparison, weighted_estimate
from rankscope.advise.statistics.matching import align_scores
from rankscope.models.methods import lora_methods
from rankscope.records import (
    BASE,
    CurveKind,
    Estimate,
    RankCurve,
    RankCurvePoint,
    StudyRecords,
    TaskRankCurves,
    TrialSpec,
    Variant,
    finished_trials,
    trial_of,
)

CurveModels = Mapping[int, Mapping[int, str]]  # Rank -> seed -> id of a trial or variant


def compare_rank_curves(study: StudyRecords) -> tuple[TaskRankCurves, ...]:
    """By training task, its curves at the ranks that all of them have; tasks with a single curve
    are left out."""
    compared = []
    for task in training_tasks(study):
        curves = curve_models(study, task)
        ranks = sorted(set.intersection(*map(set, curves.values()))) if curves else []
        if len(curves) > 1 and len(ranks) > 1:
            common = {k: {r: models[r] for r in ranks} for k, models in curves.items()}
            parts = tuple(rank_curve(study, task, kind, common) for kind in common)
            compared.append(TaskRankCurves(task=task, curves=parts))
    return tuple(compared)


def curve_models(study: StudyRecords, task: str) -> dict[CurveKind, CurveModels]:
    """The models of a training task's curves: of its first line of plain LoRA, and of nested runs
    and truncations that differ from it in nothing else."""
    specs = [t.spec for t in finished_trials(study.trials) if t.spec.task == task]
    plain_methods = [method.name for method in lora_methods() if method.is_plain]
    plain = [s for s in specs if s.method in plain_methods]
    line = [s for s in plain if s.arm_without_rank == plain[0].arm_without_rank]
    nested = [s for s in specs if s.nested and line and _is_beside(s, line[0])]
    trained: dict[int, Mapping[int, str]] = {}
    for rank in sorted({s.rank or 0 for s in line}):
        trained |= _best_models(study, [s for s in line if s.rank == rank])
    curves: dict[CurveKind, CurveModels] = {
        "trained": trained,
        "nested": _best_models(study, nested),
        "truncated": _truncated_models(study, trained),
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


def _truncated_models(study: StudyRecords, trained: CurveModels) -> CurveModels:
    """The truncations of the largest trained rank, which is its own last point."""
    whole = trained[max(trained)] if trained else {}
    scored = {model for model, _, _ in study.evals}
    cut = {r: {s: Variant("truncated", r).of(i) for s, i in whole.items()} for r in trained}
    cut = {rank: models for rank, models in cut.items() if scored.issuperset(models.values())}
    return {**cut, max(trained): whole} if cut else {}


def area_weights(ranks: Sequence[int]) -> list[float]:
    """Weights of the scores at rising ranks in their mean over log2 of the rank (trapezoids)."""
    if len(ranks) == 1:
        return [1.0]
    halves = np.diff(np.log2(ranks)) / 2 / np.log2(ranks[-1] / ranks[0])
    return [float(weight) for weight in np.append(halves, 0.0) + np.append(0.0, halves)]


def rank_curve(
    study: StudyRecords, task: str, kind: CurveKind, curves: Mapping[CurveKind, CurveModels]
) -> RankCurve:
    retained, points = [t.name for t in retention_tasks(study, task)], []
    for rank in (*curves[kind], None):
        own, trained = (
            models if rank is None else {rank: models[rank]}
            for models in (curves[kind], curves["trained"])
        )
        kept = _area_under(study, own, retained, BASE)
        is_trained = kind == "trained"
        more = None if is_trained else _area_under(study, own, [task], trained)
        more_kept = None if is_trained else _area_under(study, own, retained, trained)
        score = _area_under(study, own, [task])
        if score is not None:
            points.append(
                RankCurvePoint(
                    rank=rank,
                    score=score,
                    forgetting=kept and -kept,
                    more_score=more,
                    more_forgetting=more_kept and -more_kept,
                )
            )
    ids = {trial_of(model) for models in curves[kind].values() for model in models.values()}
    rates = {t.spec.lr for t in study.trials if t.spec.trial_id in ids}
    return RankCurve(kind=kind, rates=tuple(sorted(rates)), points=tuple(points))


def _area_under(
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
    return weighted_estimate(comparisons, tested=False) if comparisons else None
