"""What no probability knows of: overlap, divergence, missing trials, a loss that still falls.

One line per fact, with a status: *bad* can make the answer worthless, *weak* could change it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from rankscope.advise.arms import Arm
from rankscope.advise.messages import capitalized, verdict_name
from rankscope.advise.posterior import TYPICAL_SPREAD
from rankscope.advise.results import FEWEST_STEPS, TaskResults
from rankscope.advise.retention import retention_tasks, scale_notes
from rankscope.config.study import StudyConfig
from rankscope.formatting import (
    NATS,
    POINTS,
    amount,
    count,
    difference,
    evidence,
    join_names,
    percent,
    score_text,
)
from rankscope.records import (
    FAILED,
    LEFT_OUT,
    ArmSummary,
    CheckName,
    CheckStatus,
    TaskRecord,
    TrialRecords,
    TrustCheck,
)

TYPICAL_DISCORDANCE = 0.1  # Share of items on which an arm and the base differ
MOST_ALIKE = 0.25  # Share of answers that suit several right ones, from which it is said
MOST_NAMED = 4  # Arms or trials that one sentence names
NEXT_RATE = 10**0.5
"""Factor to the next learning rate beyond the end of a list: half a power of ten."""
OVERLAP_KINDS = {"exact": "exact match", "ngram13": "13-gram match"}


def trust_checks(results: TaskResults, subject: Arm | None) -> tuple[TrustCheck, ...]:
    """Every check that applies to the task or to the arm ``subject``."""
    checks = [_retention(results, subject), _contamination(results), *_answers(results, subject)]
    # A prompt wins against the best arm that trains, which another rate or more steps may improve.
    found = [arm for arm in (subject, *results.candidates) if arm and arm.summary.trains]
    for arm in found[:1] if subject else ():
        of_arm = (_learning_rate(results, arm), *_loss(results, arm))
        name = "" if arm is subject else f"{capitalized(verdict_name(arm.summary))}: "
        checks += [c.model_copy(update={"text": f"{name}{c.text}"}) for c in of_arm]
    if results.fit_failed is not None:
        text = (
            f"The posterior could not be computed ({results.fit_failed}), so the probabilities are "
            "those of every arm by itself."
        )
        checks.append(_check("fit", "bad", "flat prior", text))
    return (*checks, *_trials(results, subject))


def _check(name: CheckName, status: CheckStatus, value: str, text: str) -> TrustCheck:
    return TrustCheck(name=name, status=status, value=value, text=text)


def _retention(results: TaskResults, subject: Arm | None) -> TrustCheck:
    tasks = retention_tasks(results.study, results.task)
    arm = None if subject is None else subject.summary
    has_limit = results.objective.max_forgetting is not None
    known = arm is None or arm.forgetting is not None
    if arm is not None and arm.expected is not None:  # by validation items, or those of a rung
        known |= arm.expected.forgetting is not None
    if not tasks or not known:
        text = "The retention tasks have no scores yet."
        if not tasks:
            text = "The study has no retention task. Add one to the study file."
        text += " The limit on forgetting could not be applied." if has_limit else ""
        counts = bool(tasks) and (has_limit or results.objective.retention > 0)
        return _check("retention", "bad" if counts and arm else "weak", "forgetting unknown", text)
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
    return _check("retention", "fine", count(len(tasks), "retention task"), text)


def _at_chance(results: TaskResults, arm: ArmSummary | None) -> TrustCheck:
    named = "; ".join(
        f"{name} ({score_text(base, POINTS)} on {count(n, 'item')}; guessing gives "
        f"{score_text(chance, POINTS)})"
        for name, (base, n, chance) in results.retention_at_chance.items()
    )
    lost = None if arm is None else arm.logprob_forgetting
    carried = "Use a retention task that the base knows."
    if lost is not None:
        carried = (
            "The log-probability of the right answers on all retention tasks, among the answers "
            f"offered if there are any, shows it better: it changes by "
            f"{difference(-lost.value, NATS)} ({evidence(-lost, NATS)})."
        )
    return _check(
        "retention",
        "bad" if lost is not None and lost.is_above(0) else "weak",
        f"{join_names(results.retention_at_chance)} not above chance",
        f"The base is not shown to be above chance on {named}, so accuracy cannot show forgetting "
        f"there. {carried}",
    )


def _contamination(results: TaskResults) -> TrustCheck:
    record = results.record
    kinds = {kind: rows for kind, rows in sorted(record.contamination.items()) if rows}
    if not record.contamination:
        text = "The scores are from elsewhere, so overlap with the training rows is not known."
        return _check("contamination", "weak", "overlap not checked", text)
    if not kinds:
        text = "No test row overlaps the training set."
        return _check("contamination", "fine", "no overlap", text)
    named = ", ".join(f"{rows} by {OVERLAP_KINDS.get(kind, kind)}" for kind, rows in kinds.items())
    overlap = f"{sum(kinds.values()):,} of {count(record.rows.get('test', 0), 'test row')}"
    return _check(
        "contamination",
        "bad" if record.is_contaminated else "weak",
        overlap,
        f"{overlap} overlap the training set ({named}), so the scores are too high. Remove those "
        "rows from one of the two splits.",
    )


def _answers(results: TaskResults, subject: Arm | None) -> Iterator[TrustCheck]:
    """Texts that were judged right for different right answers: the scorer has a gap, which models
    that learn from it find."""
    share, example = 0.0, ""
    for trial in subject.trials if subject else ():
        items = results.study.results.get((trial.spec.trial_id, results.task, "test"), ())
        golds = defaultdict[str, set[str]](set)
        for item in items:
            if item.generated is not None and item.score == 1:
                golds[item.generated].add(item.gold)
        right = [item.generated or "" for item in items if item.score == 1]
        alike = Counter(text for text in right if len(golds[text]) > 1)
        if alike.total() > share * len(items):
            share, ((example, _), *_) = alike.total() / len(items), alike.most_common()
    if share >= MOST_ALIKE:
        yield _check(
            "answers",
            "bad",
            f"{percent(share)} right for several questions",
            f"{percent(share)} of its test answers are texts that were judged right for different "
            f"right answers, such as {example!r}, so the scorer can be satisfied without an "
            "answer. Read what it writes, and let 'extract' take the part that counts.",
        )


def _learning_rate(results: TaskResults, subject: Arm) -> TrustCheck:
    lr, lrs = subject.summary.lr, results.rates_of(subject)
    status: CheckStatus = "weak"
    if not lr:
        value, text = "learning rate not known", "Another rate may do better."
    elif len(lrs) == 1:
        value = "one learning rate tried"
        text = (
            "Only one rate was tried for it, so another one may do better: add "
            f"{lr / NEXT_RATE:.2g} and {lr * NEXT_RATE:.2g}."
        )
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
    return _check("learning_rate", status, value, text)


def _loss(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    trend, steps = subject.loss_trend, count(subject.steps, "step")
    is_barely_trained = results.is_barely_trained(subject)
    if trend is not None and trend.is_falling:
        yield _check(
            "loss",
            "bad" if is_barely_trained else "weak",
            f"still falling after {steps}" if is_barely_trained else "still falling",
            f"The training loss still falls at the end of {steps}, from {trend.before:.3g} to "
            f"{trend.after:.3g} over the last two thirds: longer training may change the order of "
            "arms.",
        )
    elif is_barely_trained:
        text = (
            "Too few to see whether the training loss has leveled off: longer training may change "
            f"the order of arms. Train at least {FEWEST_STEPS} steps."
        )
        yield _check("loss", "bad", f"only {steps}", text)
    elif trend is not None:
        text = f"The training loss has leveled off by the end of {steps}."
        yield _check("loss", "fine", "has settled", text)


def _trials(results: TaskResults, subject: Arm | None) -> Iterator[TrustCheck]:
    trials = count(len(results.trials), "trial")
    if results.failed:
        names = [f"{t.spec.arm_label} seed={t.spec.seed}: {t.status}" for t in results.failed]
        yield _check(
            "trials",
            "bad" if subject is not None and subject.summary.failed else "weak",
            f"{len(names)} of {trials} failed",
            f"{len(names)} of {trials} failed ({join_names(names, MOST_NAMED)}). A failed trial "
            "counts as no gain, if its arm has finished ones.",
        )
    if results.waiting:
        value = f"{results.waiting} of {trials}"
        yield _check("trials", "bad", f"{value} to run", f"{value} have not run yet.")
    if any(t.status in LEFT_OUT for t in results.trials):
        yield _left_out(results, trials)
    elif results.trials and not results.failed and not results.waiting:
        yield _check("trials", "fine", f"all {trials} finished", "Every trial finished.")


def _left_out(results: TaskResults, trials: str) -> TrustCheck:
    """Trials that an adaptive study stopped or never began."""
    stopped = sum(t.status == "stopped" for t in results.trials)
    skipped = sum(t.status == "skipped" for t in results.trials)
    over_budget = len(results.over_budget)
    tokens = f"{100 * _training_share(results.trials):.0f} % of the grid's tokens"
    value = f"{stopped + skipped} of {trials} stopped or not begun; trained on {tokens}"
    text = (
        f"stopped {count(stopped, 'trial')} at a rung because other arms led, and did not ask for "
        f"{count(skipped - over_budget, 'trial')}. Training took {tokens}"
    )
    if over_budget:
        value = f"budget spent, {value}"
        text = (
            f"The budget was spent, so {count(over_budget, 'trial')} that the answer asks for "
            f"never began. The study {text}."
        )
    else:
        text = f"The study was adaptive: it {text}; a grid trains every trial."
    return _check("trials", "weak", value, text)


def _training_share(trials: Sequence[TrialRecords]) -> float:
    """Training tokens of an adaptive study over those of its grid; failed trials count in neither.

    A trial that never began counts as much as its arm's others, or as the mean of all.
    """
    whole: dict[tuple[object, ...], float] = {}
    spent = 0
    for trial in trials:
        if (train := trial.training) is not None and train.steps:
            steps = train.steps if trial.stop is None else trial.stop.num_steps
            whole[trial.spec.arm] = train.num_tokens * steps / train.steps
            spent += train.num_tokens
    mean = sum(whole.values()) / max(1, len(whole))
    planned = sum(
        whole.get(t.spec.arm, mean) for t in trials if t.spec.trains and t.status not in FAILED
    )
    return spent / planned if planned else 1.0


def notes_beforehand(config: StudyConfig, tasks: Sequence[TaskRecord]) -> list[str]:
    """The unit of forgetting, and how wide the answer on each task will be, before anything is
    trained.

    Right-or-wrong answers of two models are taken to differ on ``TYPICAL_DISCORDANCE`` of the
    items, and seeds by half a margin; nothing is known of nats.
    """
    notes, num_seeds = scale_notes(tasks, config.objective), len(config.seeds)
    arms, budget = config.num_trials_as_written() // num_seeds, config.budget
    if budget is not None and budget.hours is not None:
        notes.append(
            f"budget: after {budget.hours:g} hours no further seed begins, but the first seeds of "
            f"all {count(arms, 'arm')} are trained, however long that takes: 'rankscope plan' "
            "estimates it"
        )
    spread = TYPICAL_SPREAD * config.objective.margin_on("points")
    for task in tasks:
        items = task.rows["validation"] + task.rows["test"]
        if task.trained_on and task.score_unit == "accuracy" and items:
            variance = TYPICAL_DISCORDANCE / items + spread**2 / num_seeds
            width = amount(1.96 * variance**0.5, POINTS)
            counted = f"{count(items, 'scored item')} and {count(num_seeds, 'seed')}"
            notes.append(f"{task.name}: with {counted} a gain will be known to about ±{width}")
    return notes
