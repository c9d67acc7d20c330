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
from rankscope.models.methods.lora import LoraMethod
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

Models = Mapping[int, Mapping[int, str]]
"""Rank -> seed -> id of a trial or variant."""


def compare_rank_curves(study: StudyRecords) -> tuple[TaskRankCurves, ...]:
    """By training task, the curves of its first line of plain LoRA, and of nested runs and
    truncations that differ from it in nothing else; tasks without either are left out."""
    compared = []
    for task in training_tasks(study):
        specs = [t.spec for t in finished_trials(study.trials) if t.spec.task == task]
        plain = [s for s in specs if s.method == LoraMethod.name]
        if not plain:
            continue
        line = [s for s in plain if s.arm_without_rank == plain[0].arm_without_rank]
        curves: dict[CurveKind, Models] = {"trained": trained_curve(study, line)}
        curves["truncated"] = truncated_curve(study, curves["trained"])
        curves["nested"] = nested_curve(study, [s for s in specs if is_beside(s, line[0])])
        found = {kind: models for kind, models in curves.items() if models}
        ranks = sorted(set.intersection(*(set(models) for models in found.values())))
        if len(found) > 1 and len(ranks) > 1:
            common = {k: {r: models[r] for r in ranks} for k, models in found.items()}
            compared.append(TaskRankCurves(task=task, curves=tuple(curves_of(study, task, common))))
    return tuple(compared)


def is_beside(spec: TrialSpec, plain: TrialSpec) -> bool:
    """Whether a trial is a slice of a nested run that differs from ``plain`` in nothing else."""
    alike = spec.model_copy(update={"method": plain.method, "nested": None})
    return spec.nested is not None and alike.arm_without_rank == plain.arm_without_rank


def best_models(study: StudyRecords, groups: Mapping[object, Models], task: str) -> Models:
    """The models with the highest area under their validation scores; empty without any."""

    def area(models: Models) -> float:
        scores = []
        for by_seed in models.values():
            records = [study.evals.get((m, task, "validation")) for m in by_seed.values()]
            scores.append(fmean(-np.inf if r is None else r.score for r in records))
        return float(np.dot(area_weights(list(models)), scores))

    return max(groups.values(), key=area, default={})


def by_setting(specs: Sequence[TrialSpec]) -> dict[object, Models]:
    """Models by learning rate and alpha, those of nested runs also by the ranks of the run."""
    groups: dict[object, dict[int, dict[int, str]]] = {}
    for s in sorted(specs, key=lambda s: s.rank or 0):
        key = (s.lr, s.nested or s.alpha)
        groups.setdefault(key, {}).setdefault(s.rank or 0, {})[s.seed] = s.trial_id
    return dict(groups)


def trained_curve(study: StudyRecords, line: Sequence[TrialSpec]) -> Models:
    curve: dict[int, Mapping[int, str]] = {}
    for rank in sorted({spec.rank or 0 for spec in line}):
        groups = by_setting([spec for spec in line if spec.rank == rank])
        curve |= best_models(study, groups, line[0].task)
    return curve


def nested_curve(study: StudyRecords, specs: Sequence[TrialSpec]) -> Models:
    return best_models(study, by_setting(specs), specs[0].task) if specs else {}


def truncated_curve(study: StudyRecords, trained: Models) -> Models:
    """The truncations of the largest trained rank, which is its own last point."""
    whole = trained[max(trained)]
    ids = {r: {s: Variant("truncated", r).of(i) for s, i in whole.items()} for r in trained}
    scored = {model for model, _, _ in study.evals}
    cut = {rank: models for rank, models in ids.items() if scored.issuperset(models.values())}
    return {**cut, max(trained): whole} if cut else {}


def area_weights(ranks: Sequence[int]) -> list[float]:
    """Weights of the scores at rising ranks in their mean over log2 of the rank (trapezoids)."""
    if len(ranks) == 1:
        return [1.0]
    at = np.log2(ranks)
    halves = np.diff(at) / 2 / (at[-1] - at[0])
    return [float(w) for w in np.append(halves, 0.0) + np.append(0.0, halves)]


def curves_of(
    study: StudyRecords, task: str, common: Mapping[CurveKind, Models]
) -> list[RankCurve]:
    retained = [t.name for t in retention_tasks(study, task)]
    curves = []
    for kind, models in common.items():
        points = []
        for rank in (*models, None):
            own, trained = (
                whole if rank is None else {rank: whole[rank]}
                for whole in (models, common["trained"])
            )
            score = curve_estimate(study, own, [task])
            if score is None:
                continue
            kept = curve_estimate(study, own, retained, against_base=True)
            beyond = kept_beyond = None
            if kind != "trained":
                beyond = curve_estimate(study, own, [task], trained)
                kept_beyond = curve_estimate(study, own, retained, trained)
            points.append(
                RankCurvePoint(
                    rank=rank,
                    score=score,
                    forgetting=None if kept is None else -kept,
                    score_beyond_trained=beyond,
                    forgetting_beyond_trained=None if kept_beyond is None else -kept_beyond,
                )
            )
        rates = rates_of(study, models)
        curves.append(RankCurve(kind=kind, rates=rates, points=tuple(points)))
    return curves


def rates_of(study: StudyRecords, curve: Models) -> tuple[float, ...]:
    ids = {trial_of(model) for models in curve.values() for model in models.values()}
    return tuple(sorted({t.spec.lr for t in study.trials if t.spec.trial_id in ids}))


def curve_estimate(
    study: StudyRecords,
    curve: Models,
    tasks: Sequence[str],
    other: Models | None = None,
    *,
    against_base: bool = False,
) -> Estimate | None:
    """Area under a curve's test scores over log2 of the rank, mean over tasks, per unit of log2.

    Of a single rank, its score. With ``other``: minus its area on the same items; ``against_base``:
    minus the base's score. None if a score is missing, or if ranks have no seed in common.
    """
    comparisons = []
    for task in tasks:
        rows, sizes = [], []
        for models in (curve, *([] if other is None else [other])):
            seeds = sorted(set.intersection(*(set(by_seed) for by_seed in models.values())))
            rows += [study.items.get((m[s], task, "test")) for m in models.values() for s in seeds]
            sizes.append(len(seeds))
        base = study.items.get((BASE, task, "test"))
        known = [items for items in (*rows, base) if items is not None]
        aligned = align_scores(known[:-1], known[-1:], trained=False)
        if len(known) <= len(rows) or aligned is None or not all(sizes):
            return None
        weights = area_weights(list(curve))
        parts = np.split(aligned.tuned, [len(weights) * sizes[0]])
        arms = [
            np.tensordot(weights, part.reshape(len(weights), size, -1), axes=1)
            for part, size in zip(parts, sizes, strict=False)
        ]
        reference = arms[1] if other is not None else aligned.reference if against_base else None
        comparisons.append(Comparison(arms[0], reference, aligned.clusters))
    return weighted_estimate(comparisons, tested=False) if comparisons else None
