"""What limits a conclusion, and what would lift the limit."""

from rankscope.advise.case import Case
from rankscope.advise.comparisons import arm_difference
from rankscope.advise.power import detectable
from rankscope.advise.statistics import standard_error
from rankscope.advise.summaries import Arm, retention_tasks
from rankscope.advise.wording import amount, count, level, settings
from rankscope.records import Reason

FIRM_SEEDS = 3


def limits(case: Case, subject: Arm | None) -> list[Reason]:
    """Seeds, failures, grid edges, one learning rate, leaks, retention and what could be seen."""
    found = [*_trials(case), *_one_lr(case), *_leaks(case), *_retention(case, subject)]
    if subject is not None:
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
            f"{t.spec.arm_label} seed={t.spec.seed}: {t.status}" for t in case.failed[:4]
        )
        more = f" and {len(case.failed) - 4} more" if len(case.failed) > 4 else ""
        reasons.append(
            _limit(
                f"{len(case.failed)} of {count(len(case.trials), 'trial')} failed ({shown}{more}); "
                "in choosing each counts as no gain over the base.",
                failed=float(len(case.failed)),
                trials=float(len(case.trials)),
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


def _one_lr(case: Case) -> list[Reason]:
    specs = [t.spec for t in case.trials if t.spec.rank is not None]
    ranks, lrs = {s.rank for s in specs}, {s.lr for s in specs}
    if len(ranks) < 2 or len(lrs) != 1:
        return []
    return [
        _limit(
            f"All {len(ranks)} ranks were trained at one learning rate ({min(lrs):g}): a "
            "difference between ranks may be one between learning rates. Give lr a list.",
            ranks=float(len(ranks)),
            lr=min(lrs),
        )
    ]


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
    leaks = {k: v for k, v in record.leaks.items() if v} if record is not None else {}
    if record is None or not leaks:
        return []
    rows = record.rows.get("report", 0)
    shown = ", ".join(f"{v} {kind}" for kind, v in sorted(leaks.items()))
    return [
        _limit(
            f"Of the {rows:,} report rows of {case.task} some also stand in its training rows "
            f"({shown}): its scores are flattered. Next: take those rows out of one of the two.",
            rows=float(rows),
            **{f"leaks_{kind}": float(v) for kind, v in leaks.items()},
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
        mean, error = float(scores.mean()), standard_error(scores)
        if error is not None and mean - 2 * error <= task.chance:
            reasons.append(
                _limit(
                    f"The base is at chance on {task.name} ({level(mean, 'accuracy')}, guessing "
                    f"gives {level(task.chance, 'accuracy')}): forgetting cannot show there, and "
                    "no fall is no evidence of none. Next: a retention task that the base knows.",
                    base=mean,
                    chance=task.chance,
                )
            )
    return reasons


def _rival(case: Case, subject: Arm) -> Arm | None:
    """What the subject is measured by: LoRA by full, full by LoRA, else the next in utility."""
    choice = case.choice
    other = choice.best_lora if subject.summary.is_full else choice.best_full
    if other is not None:
        return other.arm
    rest = [c for c in choice.candidates if c.arm is not subject]
    return max(rest, key=lambda c: c.utility).arm if rest else None


def _detectable(case: Case, subject: Arm) -> list[Reason]:
    """What the report split could have shown at all, with these items and these seeds."""
    rival = _rival(case, subject)
    against = "the base" if rival is None else settings(rival.summary)
    found = arm_difference(case.study, subject, rival, case.task)
    effect = None if found is None else detectable(found)
    if found is None or effect is None:
        return []
    seeds = count(found.seeds, "seed") if found.seeds > 1 else "these trained models"
    return [
        _limit(
            f"With {count(found.n, 'report item')} and {seeds} a difference of about "
            f"{amount(effect, case.unit)} between {settings(subject.summary)} and {against} would "
            "be seen four times out of five; a smaller one may go unseen.",
            n=float(found.n),
            seeds=float(found.seeds),
            detectable=effect,
        )
    ]
