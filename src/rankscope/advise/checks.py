"""What no probability knows of: overlap, divergence, missing trials, a loss that still falls.

One line per fact, with a status: *bad* can make the answer worthless, *weak* could change it.
"""

from collections.abc import Iterator, Sequence

from rankscope.advise.arms import Arm
from rankscope.advise.messages import Counted, Field, Measured, trust_check
from rankscope.advise.posterior import TYPICAL_SPREAD
from rankscope.advise.results import TaskResults
from rankscope.advise.retention import retention_tasks, scale_notes
from rankscope.config.study import StudyConfig
from rankscope.formatting import NATS, POINTS, amount, count, join_names, score_text
from rankscope.records import (
    FAILED,
    LEFT_OUT,
    ArmSummary,
    CheckStatus,
    TaskRecord,
    TrialRecords,
    TrustCheck,
)

TYPICAL_DISCORDANCE = 0.1  # Share of items on which an arm and the base differ
MOST_NAMED = 4  # Arms or trials that one sentence names
OVERLAP_KINDS = {"exact": "exact match", "ngram13": "13-gram match"}


def trust_checks(results: TaskResults, subject: Arm | None) -> tuple[TrustCheck, ...]:
    """Every check that applies to the task or to the arm ``subject``."""
    checks = [_retention(results, subject), _contamination(results)]
    if subject is not None:
        checks += [*_learning_rate(results, subject), *_loss(results, subject)]
    if results.fit_failed is not None:
        text = (
            "The posterior could not be computed ({why}), so the probabilities are those of every "
            "arm by itself."
        )
        checks.append(trust_check("fit", "bad", "flat prior", text, why=results.fit_failed))
    return (*checks, *_trials(results, subject))


def _retention(results: TaskResults, subject: Arm | None) -> TrustCheck:
    tasks = retention_tasks(results.study, results.task)
    arm = None if subject is None else subject.summary
    has_limit = results.objective.max_forgetting is not None
    if not tasks or (arm is not None and arm.forgetting is None):
        text = "The retention tasks have no scores yet." if tasks else _NO_RETENTION
        text += " The limit on forgetting could not be applied." if has_limit else ""
        counts = bool(tasks) and (has_limit or results.objective.retention > 0)
        return trust_check(
            "retention", "bad" if counts and arm else "weak", "forgetting unknown", text
        )
    if results.retention_at_chance and (has_limit or results.scale.name != "shares"):
        return _at_chance(results, arm)
    text = "Forgetting is measured by the likelihood of text."
    if any(task.chance is not None for task in tasks):
        text = "The base is above chance on the retention tasks."
    elif any(task.score_unit == "accuracy" for task in tasks):
        text = "What guessing scores on the retention tasks is not known."
    if results.retention_at_chance:
        text = (
            "Where the base is not above chance, the right answers' log-probability, among the "
            "answers offered if there are any, measures forgetting."
        )
    return trust_check("retention", "fine", count(len(tasks), "retention task"), text)


_NO_RETENTION = "The study has no retention task."


def _at_chance(results: TaskResults, arm: ArmSummary | None) -> TrustCheck:
    named, fields = [], dict[str, Field]()
    for name, (base, n, chance) in results.retention_at_chance.items():
        shown, guessed = score_text(base, POINTS), score_text(chance, POINTS)
        named.append(f"{name} ({shown} on {count(n, 'item')}; guessing gives {guessed})")
        fields |= {f"base.{name}": base, f"n.{name}": n, f"chance.{name}": chance}
    carried = "Use a retention task that the base knows."
    if arm is not None and arm.logprob_forgetting is not None:
        fields["in_nats"] = Measured(arm.logprob_forgetting, NATS)
        carried = (
            "The log-probability of the right answers, among the answers offered if there are any, "
            "decides: it changes by {in_nats:reverse} ({in_nats:reverse_evidence})."
        )
    lost = None if arm is None else arm.logprob_forgetting
    lowers = lost is not None and lost.is_above(0)
    return trust_check(
        "retention",
        "bad" if lowers else "weak",
        f"{join_names(results.retention_at_chance)} not above chance",
        "The base is not shown to be above chance on {named}, so accuracy cannot show forgetting "
        f"there. {carried}",
        named="; ".join(named),
        **fields,
    )


def _contamination(results: TaskResults) -> TrustCheck:
    record = results.record
    kinds = {kind: rows for kind, rows in sorted(record.contamination.items()) if rows}
    test_rows, overlapping = record.rows.get("test", 0), sum(kinds.values())
    if not record.contamination:
        text = "The scores are from elsewhere, so overlap with the training rows is not known."
        return trust_check("contamination", "weak", "overlap not checked", text)
    if not kinds:
        text = "No test row overlaps the training set."
        return trust_check("contamination", "fine", "no overlap", text)
    named = ", ".join(f"{rows} by {OVERLAP_KINDS.get(kind, kind)}" for kind, rows in kinds.items())
    return trust_check(
        "contamination",
        "bad" if record.is_contaminated else "weak",
        f"{overlapping:,} of {count(test_rows, 'test row')}",
        "{rows} of {test_rows} overlap the training set ({named}), so the scores are too high. "
        "Remove those rows from one of the two splits.",
        rows=overlapping,
        test_rows=Counted(test_rows, "test row"),
        named=named,
        **{f"contamination_{kind}": rows for kind, rows in kinds.items()},
    )


def _learning_rate(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    lr, lrs = subject.summary.lr, results.rates_of(subject)
    status: CheckStatus = "weak"
    if not lr:
        value, text = "learning rate not known", "Another rate may do better."
    elif len(lrs) == 1:
        value = "one learning rate tried"
        text = "Only one rate was tried for it, so another one may do better."
    elif lr in (lrs[0], lrs[-1]):
        side, better = ("lowest", "lower") if lr == lrs[0] else ("highest", "higher")
        value = f"{side} learning rate tried"
        text = (
            f"The chosen rate is the {side} of the {len(lrs)} tried for it: a {better} one may do "
            "better."
        )
    else:
        status, value = "fine", f"{len(lrs)} learning rates tried"
        text = f"The chosen rate lies inside the {len(lrs)} tried for it."
    yield trust_check("learning_rate", status, value, text, lr=lr, rates_tried=len(lrs))


def _loss(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    trend, steps = subject.loss_trend, Counted(subject.steps, "step")
    is_barely_trained = results.is_barely_trained(subject)
    if trend is not None and trend.is_falling:
        yield trust_check(
            "loss",
            "bad" if is_barely_trained else "weak",
            f"still falling after {steps}" if is_barely_trained else "still falling",
            "The training loss still falls at the end of {steps}, from {loss_before:.3g} to "
            "{loss_after:.3g} over the last two thirds: longer training may change the order of "
            "arms.",
            steps=steps,
            loss_before=trend.before,
            loss_after=trend.after,
        )
    elif is_barely_trained:
        text = (
            "Too few to see whether the training loss has leveled off: longer training may change "
            "the order of arms."
        )
        yield trust_check("loss", "bad", f"only {steps}", text, steps=steps)
    elif trend is not None:
        text = "The training loss has leveled off by the end of {steps}."
        yield trust_check("loss", "fine", "has settled", text, steps=steps)


def _trials(results: TaskResults, subject: Arm | None) -> Iterator[TrustCheck]:
    trials = Counted(len(results.trials), "trial")
    if results.failed:
        names = [f"{t.spec.arm_label} seed={t.spec.seed}: {t.status}" for t in results.failed]
        lowers = subject is not None and subject.summary.failed
        yield trust_check(
            "trials",
            "bad" if lowers else "weak",
            f"{len(names)} of {trials} failed",
            "{failed} of {trials} failed ({named}). Each counts as no gain when arms are compared.",
            failed=len(names),
            trials=trials,
            **first_names(names),
        )
    if results.waiting:
        yield trust_check(
            "trials",
            "bad",
            f"{results.waiting} of {trials} to run",
            "{waiting} of {trials} have not run yet.",
            waiting=results.waiting,
            trials=trials,
        )
    if any(t.status in LEFT_OUT for t in results.trials):
        yield _left_out(results, trials)
    elif results.trials and not results.failed and not results.waiting:
        text = "Every trial finished."
        yield trust_check("trials", "fine", f"all {trials} finished", text, trials=trials)


def _left_out(results: TaskResults, trials: Counted) -> TrustCheck:
    """Trials that an adaptive study stopped or never began."""
    stopped = sum(t.status == "stopped" for t in results.trials)
    skipped = sum(t.status == "skipped" for t in results.trials)
    share, over_budget = _training_share(results.trials), len(results.over_budget)
    value = (
        f"{stopped + skipped} of {trials} stopped or not begun; trained on {100 * share:.0f} % of "
        "the grid's tokens"
    )
    text = (
        "stopped {stopped} at a rung because other arms led, and did not ask for {not_needed}. "
        "Training took {percent} of the grid's tokens"
    )
    if over_budget:
        value = f"budget spent, {value}"
        text = (
            "The budget was spent, so {over_budget} that the answer asks for never began. The "
            f"study {text}."
        )
    else:
        text = f"The study was adaptive: it {text}; a grid trains every trial."
    return trust_check(
        "trials",
        "weak",
        value,
        text,
        stopped=Counted(stopped, "trial"),
        not_needed=Counted(skipped - over_budget, "trial"),
        over_budget=Counted(over_budget, "trial"),
        share=share,
        percent=f"{100 * share:.0f} %",
    )


def _training_share(trials: Sequence[TrialRecords]) -> float:
    """Training tokens of an adaptive study over those of its grid; failed trials count in neither.

    A trial that never began counts as much as its arm's others, or as the mean of all.
    """
    whole: dict[tuple[object, ...], float] = {}
    spent = 0
    for trial in trials:
        if (train := trial.training) is not None:
            steps = train.steps if trial.stop is None else trial.stop.num_steps
            whole[trial.spec.arm] = train.num_tokens * steps / train.steps
            spent += train.num_tokens
    mean = sum(whole.values()) / max(1, len(whole))
    planned = sum(whole.get(t.spec.arm, mean) for t in trials if t.status not in FAILED)
    return spent / planned if planned else 1.0


def notes_beforehand(config: StudyConfig, tasks: Sequence[TaskRecord]) -> list[str]:
    """The unit of forgetting, and how wide the answer on each task will be, before anything is
    trained.

    Right-or-wrong answers of two models are taken to differ on ``TYPICAL_DISCORDANCE`` of the
    items, and seeds by half a margin; nothing is known of nats.
    """
    notes, num_seeds = scale_notes(tasks, config.objective), len(config.seeds)
    spread = TYPICAL_SPREAD * config.objective.margin_on("points")
    for task in tasks:
        items = task.rows["validation"] + task.rows["test"]
        if task.trained_on and task.score_unit == "accuracy" and items:
            variance = TYPICAL_DISCORDANCE / items + spread**2 / num_seeds
            width = amount(1.96 * variance**0.5, POINTS)
            counted = f"{count(items, 'scored item')} and {count(num_seeds, 'seed')}"
            notes.append(f"{task.name}: with {counted} a gain will be known to about ±{width}")
    return notes


def first_names(names: Sequence[str]) -> dict[str, Field]:
    """The first few names, and the number of others."""
    named, unnamed = "; ".join(names[:MOST_NAMED]), len(names) - MOST_NAMED
    if unnamed <= 0:
        return {"named": named}
    return {"named": f"{named} and {unnamed} more", "unnamed": unnamed}
