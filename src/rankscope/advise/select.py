"""The choice of an arm: looks at the validation split only.

Utility of an arm against the base, in units of the score:

    u = f (w_in (score - base score) - w_ret forgetting) - w_cost cost

divided by the larger of w_in and w_ret, so that the margin keeps its meaning. f is the share of the
arm's trials that finished: a failed trial leaves one with the base, a gain of nothing. cost is the
logarithm of the trainable parameters, 0 for the fewest and 1 for the most among the task's arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from rankscope.advise.arms import Arm
from rankscope.config.objective import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm at the learning rate chosen for it."""

    arm: Arm
    utility: float
    lrs: tuple[float, ...]
    """Learning rates that were compared for it, ascending."""


@dataclass(frozen=True, slots=True)
class ArmChoice:
    """What the validation split says."""

    candidates: tuple[Candidate, ...]
    """One per grid point without the learning rate, in grid order."""
    best: Candidate | None
    """Highest utility."""
    chosen: Candidate | None
    """LoRA of the smallest rank within the margin of the best; else the best."""
    best_lora: Candidate | None
    small_lora: Candidate | None
    """LoRA of the smallest rank within the margin of the best LoRA arm."""
    best_full: Candidate | None
    excluded: tuple[Arm, ...]
    """Arms over the forgetting limit."""
    passed_over: tuple[Arm, ...] = ()
    """LoRA arms that but for their failed trials would have a higher utility than ``best_lora``."""


def choose(arms: Sequence[Arm], base_score: float | None, objective: ObjectiveConfig) -> ArmChoice:
    """Choose an arm of one task.

    An arm's gain is on the validation items that it shares with the base. ``base_score`` is the
    base's mean there, for arms without such items; None where it was not scored (arms are then
    ranked by their score). Learning rates are chosen first, for each other setting by itself.
    """
    scored = [a for a in arms if a.summary.validation_score is not None]
    excluded = tuple(a for a in scored if _forgets_too_much(a, objective))
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for arm in scored:
        if arm not in excluded:
            utility = _utility(arm, arms, base_score or 0.0, objective, share_finished(arm))
            groups.setdefault(_without_lr(arm), []).append(Candidate(arm, utility, ()))
    candidates = []
    for group in groups.values():
        lrs = tuple(sorted({c.arm.summary.lr for c in group}))
        top = max(group, key=lambda c: (c.utility, -c.arm.summary.lr))
        candidates.append(Candidate(top.arm, top.utility, lrs))
    lora = [c for c in candidates if c.arm.summary.is_lora]
    full = [c for c in candidates if c.arm.summary.is_full]
    best, best_lora = _highest(candidates), _highest(lora)
    return ArmChoice(
        candidates=tuple(candidates),
        best=best,
        chosen=None if best is None else (_smallest_rank(lora, best, objective) or best),
        best_lora=best_lora,
        small_lora=None if best_lora is None else _smallest_rank(lora, best_lora, objective),
        best_full=_highest(full),
        excluded=excluded,
        passed_over=tuple(
            arm
            for arm in scored
            if arm.summary.is_lora
            and arm.summary.failed
            and arm not in excluded
            and best_lora is not None
            and arm is not best_lora.arm
            and _utility(arm, arms, base_score or 0.0, objective, 1.0) > best_lora.utility
        ),
    )


def share_finished(arm: Arm) -> float:
    """Share of an arm's trials that finished, of those that ran."""
    return arm.summary.seeds / max(1, arm.summary.seeds + arm.summary.failed)


def _highest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Highest utility; of equals the one with fewer parameters."""
    return max(
        candidates, key=lambda c: (c.utility, -c.arm.summary.trainable_parameters), default=None
    )


def _smallest_rank(
    lora: Sequence[Candidate], best: Candidate, objective: ObjectiveConfig
) -> Candidate | None:
    within = [c for c in lora if c.utility >= best.utility - objective.margin]
    if best.utility > 0:
        # What is worse than the base is not "as good" as something better than it.
        within = [c for c in within if c.utility > 0]
    return min(
        within,
        key=lambda c: (
            c.arm.summary.rank or 0,
            c.arm.summary.trainable_parameters,
            -c.utility,
        ),
        default=None,
    )


def _without_lr(arm: Arm) -> tuple[object, ...]:
    return arm.trials[0].spec.arm_without_lr


def _forgets_too_much(arm: Arm, objective: ObjectiveConfig) -> bool:
    forgetting = arm.summary.validation_forgetting
    limit = objective.max_forgetting
    return limit is not None and forgetting is not None and forgetting > limit


def _utility(
    arm: Arm, arms: Sequence[Arm], base_score: float, objective: ObjectiveConfig, finished: float
) -> float:
    summary = arm.summary
    gain = summary.validation_gain
    if gain is None:
        gain = (summary.validation_score or 0.0) - base_score
    kept = objective.in_domain * gain - objective.retention * (summary.validation_forgetting or 0.0)
    scale = max(objective.in_domain, objective.retention) or 1.0
    return (finished * kept - objective.cost * _cost(arm, arms)) / scale


def _cost(arm: Arm, arms: Sequence[Arm]) -> float:
    counts = [log(n) for a in arms if (n := a.summary.trainable_parameters) > 0]
    own = arm.summary.trainable_parameters
    if own < 1 or max(counts) == min(counts):
        return 0.0
    return (log(own) - min(counts)) / (max(counts) - min(counts))
