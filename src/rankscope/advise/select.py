"""Choose an arm by the validation split alone.

The utility of an arm, in units of the score:

    u = [f (w_in gain - w_ret forgetting) - w_cost cost] / max(w_in, w_ret)

Gain and forgetting are against the base. f is the share of the arm's trials that finished, so that
a failed trial counts as no gain. cost is the logarithm of the trainable parameters, 0 for the
fewest and 1 for the most among the task's arms. The division keeps the margin in score units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from rankscope.advise.arms import Arm
from rankscope.advise.statistics.matching import base_scores
from rankscope.config.objective import ObjectiveConfig
from rankscope.records import StudyRecords


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm at the learning rate chosen for it."""

    arm: Arm
    utility: float
    lrs: tuple[float, ...]
    """Learning rates tried for it, ascending, with those that failed or forgot too much."""


@dataclass(frozen=True, slots=True)
class ArmChoice:
    """How the validation split ranks the arms of one task."""

    candidates: tuple[Candidate, ...]
    """One per configuration without its learning rate, in grid order."""
    best: Candidate | None  # Highest utility
    chosen: Candidate | None
    """The smallest LoRA rank within the margin of the best; if there is none, the best."""
    best_lora: Candidate | None
    small_lora: Candidate | None  # The smallest LoRA rank within the margin of the best LoRA arm
    best_full: Candidate | None
    cheapest: Candidate | None
    """Fewest trainable parameters within the margin of the best, whatever the method."""
    excluded: tuple[Arm, ...]  # Arms over the limit on forgetting
    passed_over: tuple[Arm, ...] = ()
    """LoRA arms that would beat the utility of ``best_lora`` without their failed trials."""


def choose_for(study: StudyRecords, task: str, arms: Sequence[Arm]) -> ArmChoice:
    """``choose`` among the arms of one task of a study."""
    return choose(arms, base_validation_score(study, task), study.config.objective)


def base_validation_score(study: StudyRecords, task: str) -> float | None:
    """The base's mean over its finite scores on the validation split; None without any."""
    scores = base_scores(study, task, "validation")
    return float(scores.mean()) if scores.size else None


def utility_function(
    arms: Sequence[Arm], base_score: float | None, objective: ObjectiveConfig
) -> Callable[[Arm, float], float]:
    """Utility of an arm from its share of finished trials; ``arms`` give the range of the cost."""
    sizes = [log(n) for a in arms if (n := a.summary.trainable_parameters) > 0]
    smallest, largest = min(sizes, default=0.0), max(sizes, default=0.0)

    def utility(arm: Arm, share_finished: float) -> float:
        summary, cost = arm.summary, 0.0
        gain, forgetting = summary.validation_gain, summary.validation_weighed_forgetting or 0.0
        if gain is None:
            gain = (summary.validation_score or 0.0) - (base_score or 0.0)
        if summary.trainable_parameters > 0 and largest > smallest:
            cost = (log(summary.trainable_parameters) - smallest) / (largest - smallest)
        net = objective.in_domain * gain - objective.retention * forgetting
        scale = max(objective.in_domain, objective.retention) or 1.0
        return (share_finished * net - objective.cost * cost) / scale

    return utility


def choose(arms: Sequence[Arm], base_score: float | None, objective: ObjectiveConfig) -> ArmChoice:
    """Choose an arm of one task; the learning rate is chosen first, per configuration.

    Args:
        base_score: the base's mean on the validation split, for arms that share no validation item
            with it; None if it was not scored, and arms are then ranked by their score.
    """
    scored = [a for a in arms if a.summary.validation_score is not None]
    excluded = tuple(a for a in scored if forgets_too_much(a, objective))
    kept = [a for a in scored if not forgets_too_much(a, objective)]
    utility = utility_function(arms, base_score, objective)
    rates: dict[tuple[object, ...], set[float]] = {}
    for arm in arms:
        rates.setdefault(arm.trials[0].spec.arm_without_lr, set()).add(arm.summary.lr)
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for arm in kept:
        finished = arm.summary.seeds / max(1, arm.summary.seeds + arm.summary.failed)
        settings = arm.trials[0].spec.arm_without_lr
        candidate = Candidate(arm, utility(arm, finished), tuple(sorted(rates[settings])))
        groups.setdefault(settings, []).append(candidate)
    candidates = [max(g, key=lambda c: (c.utility, -c.arm.summary.lr)) for g in groups.values()]
    lora = [c for c in candidates if c.arm.summary.is_lora]
    best, best_lora = _highest(candidates), _highest(lora)
    passed_over = [
        arm
        for arm in kept
        if arm.summary.is_lora
        and arm.summary.failed
        and best_lora is not None
        and arm is not best_lora.arm
        and utility(arm, 1.0) > best_lora.utility
    ]
    return ArmChoice(
        candidates=tuple(candidates),
        best=best,
        chosen=None if best is None else (_smallest_rank(lora, best, objective) or best),
        best_lora=best_lora,
        small_lora=None if best_lora is None else _smallest_rank(lora, best_lora, objective),
        best_full=_highest([c for c in candidates if c.arm.summary.is_full]),
        cheapest=None if best is None else _cheapest(candidates, best, objective),
        excluded=excluded,
        passed_over=tuple(passed_over),
    )


def _highest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Highest utility; between equals, the one with fewer parameters."""
    return max(
        candidates, key=lambda c: (c.utility, -c.arm.summary.trainable_parameters), default=None
    )


def _within_margin(
    candidates: Sequence[Candidate], best: Candidate, objective: ObjectiveConfig
) -> list[Candidate]:
    within = [c for c in candidates if c.utility >= best.utility - objective.margin]
    # An arm worse than the base is not as good as one better than the base.
    return [c for c in within if c.utility > 0] if best.utility > 0 else within


def _cheapest(
    candidates: Sequence[Candidate], best: Candidate, objective: ObjectiveConfig
) -> Candidate:
    within = _within_margin(candidates, best, objective)
    return min(within, key=lambda c: (c.arm.summary.trainable_parameters, -c.utility))


def _smallest_rank(
    lora: Sequence[Candidate], best: Candidate, objective: ObjectiveConfig
) -> Candidate | None:
    return min(
        _within_margin(lora, best, objective),
        key=lambda c: (c.arm.summary.rank or 0, c.arm.summary.trainable_parameters, -c.utility),
        default=None,
    )


def forgets_too_much(arm: Arm, objective: ObjectiveConfig) -> bool:
    forgetting, limit = arm.summary.validation_forgetting, objective.max_forgetting
    return limit is not None and forgetting is not None and forgetting > limit
