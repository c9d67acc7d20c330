"""What limits a conclusion, and what would lift the limit."""

from collections.abc import Mapping

from rankscope.advise.arms import Arm, retention_tasks
from rankscope.advise.case import Case
from rankscope.advise.comparisons import arm_difference
from rankscope.advise.statistics.estimates import clustered_standard_error, negated
from rankscope.advise.statistics.power import detectable
from rankscope.advise.wording import settings, values_of
from rankscope.formatting import POINTS, amount, count, difference, evidence, score_text
from rankscope.records import Reason

FIRM_SEEDS = 3
MOST_NAMED = 4
"""Arms or trials that one sentence names."""


def limits(case: Case, subject: Arm | None) -> list[Reason]:
    """Seeds, failures, grid edges, one learning rate, contamination, retention and what could be seen."""
    found = [*_trials(case), *_rates(case), *_leaks(case), *_retention(case, subject)]
    found += _excluded(case)
    if subject is not None:
        found += [*_weight(case, subject), *_forgetting_limit(case, subject)]
        found += [*_seeds(subject), *_edges(case, subject), *_detectable(case, subject)]
    return found


def _limit(text: str, **values: float) -> Reason:
    return Reason(kind="limit", text=text, values=values)


def _seeds(subject: Arm) -> list[Reason]:
    seeds = subject.summary.seeds
    if seeds >= FIRM_SEEDS:
        return []
    return [
        _limit(
            f"{settings(subject.summary)} rests on {count(seeds, 'seed')}: how much training "
            f"itself varies is not known from fewer than {FIRM_SEEDS}, so no answer can be firm.",
            seeds=float(seeds),
            firm_seeds=float(FIRM_SEEDS),
        )
    ]


def _trials(case: Case) -> list[Reason]:
    reasons = []
    if case.failed:
        shown = "; ".join(
            f"{t.spec.arm_label} seed={t.spec.seed}: {t.status}" for t in case.failed[:MOST_NAMED]
        )
        unnamed = len(case.failed) - MOST_NAMED
        more = f" and {unnamed} more" if unnamed > 0 else ""
        reasons.append(
            _limit(
                f"{len(case.failed)} of {count(len(case.trials), 'trial')} failed ({shown}{more}); "
                "in choosing each counts as no gain over the base.",
                failed=float(len(case.failed)),
                trials=float(len(case.trials)),
                **({"unnamed": float(unnamed)} if unnamed > 0 else {}),
            )
        )
    for arm in case.choice.passed_over[:1]:
        reasons.append(
            _limit(
                f"But for its failed trials {settings(arm.summary)} would have a higher utility "
                "than the LoRA arms it is compared with: what fails may be worth another try."
            )
        )
    if case.waiting:
        reasons.append(
            _limit(
                f"{case.waiting} of {count(len(case.trials), 'trial')} have not run yet: the same "
                "command continues.",
                waiting=float(case.waiting),
            )
        )
    return reasons


def _rates(case: Case) -> list[Reason]:
    """Ranks of one kind that were not tried at the same learning rates, or at one alone."""
    series: dict[tuple[object, ...], dict[int, set[float]]] = {}
    for trial in case.trials:
        if trial.spec.rank is not None:
            rates = series.setdefault(trial.spec.arm_without_rank, {})
            rates.setdefault(trial.spec.rank, set()).add(trial.spec.lr)
    found = {}
    for by_rank in series.values():
        if len(by_rank) > 1 and (text := _confounded(by_rank)):
            tried = sorted(set.union(*by_rank.values()))
            values = {"lr": tried[0]}
            if len(tried) > 1:
                values = {f"lr.{place}": lr for place, lr in enumerate(tried)}
            found[text] = _limit(text, ranks=float(len(by_rank)), **values)
    return list(found.values())


def _confounded(by_rank: Mapping[int, set[float]]) -> str | None:
    """What is said of ranks whose difference may be one between learning rates."""
    shared = set.intersection(*by_rank.values())
    may = "a difference between ranks may be one between learning rates. Give"
    if all(rates == shared for rates in by_rank.values()):
        if len(shared) > 1:
            return None
        all_ranks = "Both ranks" if len(by_rank) == 2 else f"All {len(by_rank)} ranks"
        return f"{all_ranks} were trained at one learning rate ({min(shared):g}): {may} lr a list."
    shown = "; ".join(
        f"r={rank} at {', '.join(f'{lr:g}' for lr in sorted(by_rank[rank]))}"
        for rank in sorted(by_rank)
    )
    return f"Ranks were not trained at the same learning rates ({shown}): {may} all one list."


def _edges(case: Case, subject: Arm) -> list[Reason]:
    """A best value at the end of its list says that the list is too short."""
    reasons = []
    own = next((c for c in case.choice.candidates if c.arm is subject), None)
    lr, rank = subject.summary.lr, subject.summary.rank
    if own is not None and len(own.lrs) > 1 and lr in (own.lrs[0], own.lrs[-1]):
        side, word = ("lowest", "lower") if lr == own.lrs[0] else ("highest", "higher")
        reasons.append(
            _limit(
                f"The learning rate chosen for {settings(subject.summary)} is the {side} of the "
                f"{len(own.lrs)} tried: a {word} one may do better.",
                lr=lr,
                rates_tried=float(len(own.lrs)),
            )
        )
    ranks = sorted({r for a in case.arms if (r := a.summary.rank) is not None})
    if rank is not None and len(ranks) > 1 and rank in (ranks[0], ranks[-1]):
        at_low = rank == ranks[0]
        rest = "a smaller one may be enough" if at_low else "a larger one may gain more"
        reasons.append(
            _limit(
                f"r={rank} is the {'smallest' if at_low else 'largest'} rank tried: {rest}.",
                rank=float(rank),
            )
        )
    return reasons


def _leaks(case: Case) -> list[Reason]:
    record = case.record
    contamination = (
        {k: v for k, v in record.contamination.items() if v} if record is not None else {}
    )
    if record is None or not contamination:
        return []
    rows = record.rows.get("test", 0)
    shown = ", ".join(f"{v} {kind}" for kind, v in sorted(contamination.items()))
    return [
        _limit(
            f"Of the {rows:,} test rows of {case.task} some also stand in its training rows "
            f"({shown}): its scores are flattered. Next: take those rows out of one of the two.",
            rows=float(rows),
            **{f"leaks_{kind}": float(v) for kind, v in contamination.items()},
        )
    ]


def _retention(case: Case, subject: Arm | None) -> list[Reason]:
    """Forgetting cannot be seen where nothing is known, or nothing was measured."""
    tasks = retention_tasks(case.study, case.task)
    if not tasks or (subject is not None and subject.summary.forgetting is None):
        text = "Forgetting was not measured: name a retention task in the study file."
        if tasks:
            text = "Forgetting is unknown: the retention tasks have no scores yet."
        if case.objective.max_forgetting is not None:
            text += " The limit on forgetting could not be applied."
        return [_limit(text)]
    reasons = []
    for task in tasks:
        scores = case.base_scores(task.name)
        if task.chance is None or not scores.size:
            continue
        mean, error = float(scores.mean()), clustered_standard_error(scores)
        if error is not None and mean - 2 * error <= task.chance:
            reasons.append(
                _limit(
                    f"The base is at chance on {task.name} ({score_text(mean, POINTS)}, guessing "
                    f"gives {score_text(task.chance, POINTS)}): forgetting cannot show there, and "
                    "no fall is no evidence of none. Next: a retention task that the base knows.",
                    base=mean,
                    chance=task.chance,
                )
            )
    return reasons


def _excluded(case: Case) -> list[Reason]:
    """Arms that the limit on forgetting took out."""
    limit, out = case.objective.max_forgetting, case.choice.excluded
    if limit is None or not out:
        return []
    lost = [(a.summary, a.summary.validation_forgetting or 0.0) for a in out[:MOST_NAMED]]
    shown = "; ".join(
        f"{settings(arm)}, {amount(value, case.retention_unit)}" for arm, value in lost
    )
    unnamed = len(out) - MOST_NAMED
    more = f" and {unnamed} more" if unnamed > 0 else ""
    return [
        _limit(
            f"{count(len(out), 'arm')} of {len(case.arms)} forgot more than the "
            f"{amount(limit, case.retention_unit)} allowed on the validation split and "
            f"{'was' if len(out) == 1 else 'were'} left out: {shown}{more}.",
            excluded=float(len(out)),
            arms=float(len(case.arms)),
            max_forgetting=limit,
            **({"unnamed": float(unnamed)} if unnamed > 0 else {}),
            **{f"validation_forgetting.{arm.label}": value for arm, value in lost},
        )
    ]


def _forgetting_limit(case: Case, subject: Arm) -> list[Reason]:
    """Whether the test split shows that the limit on forgetting is kept."""
    limit, forgot = case.objective.max_forgetting, subject.summary.forgetting
    if limit is None or forgot is None or (forgot.high is not None and forgot.high <= limit):
        return []
    unit = case.retention_unit
    return [
        _limit(
            f"That {settings(subject.summary)} forgets no more than the {amount(limit, unit)} "
            "allowed is not shown: on the test split retention changes by "
            f"{difference(-forgot.value, unit)} ({evidence(negated(forgot), unit)}).",
            max_forgetting=limit,
            **values_of(forgot, "forgetting"),
        )
    ]


def _weight(case: Case, subject: Arm) -> list[Reason]:
    """Forgetting that the study weighs and that cannot be added to the gain."""
    if not case.is_forgetting_apart or subject.summary.forgetting is None:
        return []
    rest = "has no weight in this advice. Read both, or set objective.max_forgetting."
    if case.objective.max_forgetting is not None:
        rest = "is held to objective.max_forgetting and has no other weight in this advice."
    return [
        _limit(
            f"The gain on {case.task} and the forgetting are in different units and make no sum: "
            f"forgetting {rest}"
        )
    ]


def _rival(case: Case, subject: Arm) -> Arm | None:
    """What the subject is measured by: LoRA by full, full by LoRA, else the next in utility."""
    choice = case.choice
    other = choice.best_lora if subject.summary.is_full else choice.best_full
    if other is not None:
        return other.arm
    rest = [c for c in choice.candidates if c.arm is not subject]
    return max(rest, key=lambda c: c.utility).arm if rest else None


def _detectable(case: Case, subject: Arm) -> list[Reason]:
    """What the test split could have shown at all, with these items and these seeds."""
    rival = _rival(case, subject)
    against = "the base" if rival is None else settings(rival.summary)
    found = arm_difference(case.study, subject, rival, case.task)
    effect = None if found is None else detectable(found)
    if found is None or effect is None:
        return []
    seeds = count(found.seeds, "seed") if found.seeds > 1 else "these trained models"
    return [
        _limit(
            f"With {count(found.n, 'test item')} and {seeds} a difference of about "
            f"{amount(effect, case.unit)} between {settings(subject.summary)} and {against} would "
            "be seen four times out of five; a smaller one may go unseen.",
            n=float(found.n),
            seeds=float(found.seeds),
            detectable=effect,
        )
    ]
