"""The models of a training task by rank: trained at each, slices of a nested run, truncations.

Learning rates are chosen by validation score: one for each trained rank; for nested runs the one
with the largest area under its curve, because all slices come from one run; truncations are those
of the chosen arm of the largest rank, or of full fine-tuning.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Literal

import numpy as np

from rankscope.models.methods import lora_methods
from rankscope.records import StudyRecords, TrialSpec, Variant, finished_trials

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
