"""Checks of facts that the probabilities leave out: overlap, ends of lists, a loss that still
falls.

Each fact has one line and a status. A *weak* check is open and could change the answer; a *bad* one
must be mended before anything is decided.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import ceil, sqrt

import numpy as np

from rankscope.advise.arms import FEWEST_LOSSES, Arm
from rankscope.advise.evidence import SCORED_SPLITS, TYPICAL_SPREADS
from rankscope.advise.posterior import UNIT
from rankscope.advise.results import TaskResults, expected
from rankscope.advise.retention import retention_tasks
from rankscope.config.study import StudyConfig
from rankscope.formatting import POINTS, amount, count, join_names, percent, unit_of
from rankscope.records import (
    BASE,
    FAILED,
    CheckName,
    CheckStatus,
    TaskRecord,
    TrialRecords,
    TrustCheck,
    finished_trials,
)

FEWEST_UPDATES = 30  # After warm-up; with fewer optimizer steps, arms cannot be compared
TYPICAL_DISCORDANCE = 0.1  # Share of items on which an arm and the base differ
MOST_ALIKE = 0.25  # Share of answers that suit several right ones, from which it is said
MOST_CUT = 0.05  # Share of items that may be cut
MOST_NAMED = 4  # Arms or trials that one sentence names
RIVAL = 0.05  # Probability of being within the margin from which an arm's open ends count
TOO_MUCH = 3  # Margins of forgetting that the interval has to exclude, without a limit
COLLAPSED = 0.5  # Share of its arm's largest gain below which a seed has collapsed
OVERLAP_KINDS = {"exact": "exact match", "ngram13": "13-gram match"}


def trust_checks(results: TaskResults, subject: Arm | None) -> tuple[TrustCheck, ...]:
    """Return every check that applies to the task or to the arm ``subject``."""
    checks = [_retention(results, subject), _contamination(results)]
    checks += [*_answers(results, subject), *_cut_items(results, subject)]
    # A prompt beats the best arm that trains, which another rate or more steps may improve.
    found = [arm for arm in (subject, *results.candidates) if arm and arm.summary.trains]
    for arm in found[:1] if subject else ():
        checks += [_learning_rate(results, arm), *_ranks(results, arm), *_loss(results, arm)]
        checks.append(_seeds(results, arm))
    if results.fit_failed is not None:
        text = (
            f"The posterior could not be computed ({results.fit_failed}), so the probabilities are "
            "those of every configuration by itself."
        )
        checks.append(_check("fit", "bad", "flat prior", text))
    return (*checks, *_trials(results))


def _check(
    name: CheckName, status: CheckStatus, value: str, text: str, labels: Sequence[str] = ()
) -> TrustCheck:
    return TrustCheck(name=name, status=status, value=value, text=text, labels=tuple(labels))


def _retention(results: TaskResults, subject: Arm | None) -> TrustCheck:
    tasks = retention_tasks(results.study, results.task)
    limit, unit = results.objective.max_forgetting, results.retention_unit
    of = None if subject is None else subject.summary.expected
    if not tasks or of is None or of.forgetting is None:
        text = "The retention tasks have no scores yet."
        if not tasks:
            text = "The study has no retention task. Add one to the study file."
        text += " The limit on forgetting could not be applied." if limit is not None else ""
        status: CheckStatus = "bad" if tasks and limit is not None and of else "weak"
        return _check("retention", status, "forgetting unknown", text)
    if at_chance := [task.name for task in tasks if _is_at_chance(results, task)]:
        value = f"{join_names(at_chance)} at chance"
        text = "The base hardly does better than guessing there, so it has little to lose."
        return _check("retention", "weak", value, text)
    most = TOO_MUCH * results.margin if limit is None else limit
    most_lost = amount(max(0.0, of.forgetting.high), unit)
    lost = [t.name for t in tasks if t.name in of.changes and of.changes[t.name].high < -most]
    if lost:
        text = f"The change there is beyond {amount(most, unit)}, whatever the mean is."
        were = f"{join_names(lost)} {'is' if len(lost) == 1 else 'are'} lost"
        return _check("retention", "weak", were, text)
    if of.forgetting.high >= most:
        text = f"A loss of {amount(most, unit)} is not excluded. Score more retention items."
        return _check("retention", "weak", f"may lose {most_lost}", text)
    text = f"The 95 % interval of the mean over {count(len(tasks), 'retention task')} ends there."
    return _check("retention", "fine", f"loses at most {most_lost}", text)


def _is_at_chance(results: TaskResults, task: TaskRecord) -> bool:
    found = [results.study.items.get((BASE, task.name, split)) for split in SCORED_SPLITS]
    known = [s.scores for s in found if s is not None and np.isfinite(s.scores).all()]
    if not known or task.score_unit != "accuracy" or not task.chance:
        return False
    scores = np.concatenate(known)
    return bool(scores.mean() - task.chance <= 2 * scores.std() / len(scores) ** 0.5)


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
        f"{overlap} in the training rows",
        f"{overlap} overlap the training set ({named}), so the scores are too high. Remove those "
        "rows from one of the two splits.",
    )


def _answers(results: TaskResults, subject: Arm | None) -> Iterator[TrustCheck]:
    """Report texts that were judged right for different right answers.

    The scorer has a gap, which models that learn from it find.
    """
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


def _cut_items(results: TaskResults, subject: Arm | None) -> Iterator[TrustCheck]:
    """Report items whose prompt or answer was cut, for the base and the arm."""
    models = [BASE, *(t.spec.trial_id for t in (subject.trials if subject else ()))]
    names = [results.task, *(t.name for t in retention_tasks(results.study, results.task))]
    for name in names:
        found = [results.study.evals.get((model, name, "test")) for model in models]
        records = [r for r in found if r is not None and r.n]
        shares = [r.truncated / r.n for r in records]
        # A base that answers and continues to write is no fault.
        shares += [1 - r.metrics.get("stopped", 1.0) for r in records if r.trial_id != BASE]
        share = max(shares, default=0.0)
        if share > MOST_CUT:
            text = f"{percent(share)} of the items of {name}, or of the answers to them, were cut."
            yield _check("items", "weak", f"{percent(share)} of {name} cut", text)


def _learning_rate(results: TaskResults, subject: Arm) -> TrustCheck:
    """Check whether the best rate of the arm, or of a rival, may lie beyond the tried ones."""
    if not subject.summary.lr:
        return _check("learning_rate", "weak", "rate not known", "Another rate may do better.")
    sides, labels = dict[str, list[str]](), list[str]()
    rivals = [arm for arm in results.candidates if expected(arm.summary).p_within_margin >= RIVAL]
    for of in {arm.summary.label: arm for arm in (subject, *rivals)}.values():
        arm, rates = of.summary, results.rates_of(of)
        if arm.lr and (len(rates) == 1 or arm.lr in (rates[0], rates[-1])):
            side = "only" if len(rates) == 1 else "lowest" if arm.lr == rates[0] else "highest"
            sides.setdefault(side, []).append(arm.short_label)
            labels.append(arm.label)
    if not sides:
        tried, listed = (len(results.rates_of(subject, begun=b)) for b in (True, False))
        part = "" if tried == listed else f"of {listed} "
        text = "The best rates of all configurations that may do lie inside their lists."
        return _check("learning_rate", "fine", f"{tried} {part}rates tried", text)
    named = "; ".join(
        f"{join_names(dict.fromkeys(arms), MOST_NAMED)} at the {side} rate tried"
        for side, arms in sides.items()
    )
    text = "A rate that was not tried may do better."
    return _check("learning_rate", "weak", named, text, labels)


def _ranks(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    rank, ranks = subject.summary.rank, {a.summary.rank or 0 for a in results.arms} - {0}
    if rank is not None and len(ranks) > 1 and rank == max(ranks) < results.hidden_size_rank:
        text = "A larger rank may gain more."
        value = f"r={rank} is the largest tried"
        yield _check("ranks", "weak", value, text, [subject.summary.label])


def _loss(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    trend, updates = subject.loss_trend, _updates(results, subject)
    if subject.steps > 0 and updates < FEWEST_UPDATES:
        text = "Configurations cannot be compared yet. Train at least "
        text += f"{FEWEST_UPDATES} steps after warm-up."
        yield _check("loss", "bad", f"only {count(updates, 'step')} after warm-up", text)
    elif trend is not None and trend.is_falling:
        yield _check(
            "loss",
            "weak",
            f"still falling after {count(subject.steps, 'step')}",
            f"Over the last two thirds it fell from {trend.before:.3g} to {trend.after:.3g}: "
            "longer training may change the order of configurations.",
        )
    elif trend is not None and trend.has_settled:
        text = f"Over the last two thirds it went from {trend.before:.3g} to {trend.after:.3g}."
        yield _check("loss", "fine", "has settled", text)
    elif subject.steps >= FEWEST_LOSSES and trend is not None:
        text = f"It is too noisy to tell: its change is known to ±{2 * trend.error:.2g}."
        yield _check("loss", "weak", "not known to have settled", text)


def _updates(results: TaskResults, subject: Arm) -> int:
    """Count the optimizer steps after warm-up."""
    train = results.study.config.train.model_copy(update=subject.trials[0].spec.overrides)
    return subject.steps - ceil(train.warmup_fraction * subject.steps)


def _seeds(results: TaskResults, subject: Arm) -> TrustCheck:
    """Check how many seeds the arm has, and how many seeds of all arms collapsed."""
    seeds, trained, collapsed = subject.summary.seeds, 0, 0
    for arm in results.arms:
        ids = [trial.spec.trial_id for trial in finished_trials(arm.trials)]
        scores = [results.study.evals.get((i, results.task, "test")) for i in ids]
        gains = [s.score - (results.base_score(results.task) or 0.0) for s in scores if s]
        trained += len(gains)
        best = max(gains, default=0.0)
        collapsed += sum(best - g > max(COLLAPSED * best, TOO_MUCH * UNIT) for g in gains)
    text = f"{collapsed} of {count(trained, 'model')} lost most of what another seed gained."
    if seeds < 2:
        more = "How far seeds are apart is assumed for it, not measured."
        return _check("seeds", "weak", count(seeds, "seed"), more + f" {text}" * bool(collapsed))
    value = f"{count(seeds, 'seed')}, {collapsed} of {trained} models collapsed"
    return _check("seeds", "weak" if collapsed else "fine", value, text)


def _trials(results: TaskResults) -> Iterator[TrustCheck]:
    trials = count(len(results.trials), "run")
    if results.failed:
        names = [f"{t.spec.arm_label} seed={t.spec.seed}: {t.status}" for t in results.failed]
        yield _check(
            "trials",
            "weak",
            f"{len(names)} of {trials} failed",
            f"These failed: {join_names(names, MOST_NAMED)}. A failed run counts as no gain, if "
            "its configuration has finished ones.",
        )
    if results.waiting:
        value = f"{results.waiting} of {trials} are still to come"
        yield _check("trials", "bad", value, "The answer waits for their scores.")
    if any(t.status == "skipped" for t in results.trials):
        yield _left_out(results, trials)
    elif results.trials and not results.failed and not results.waiting:
        yield _check("trials", "fine", f"all {trials} finished", "Every run finished.")


def _left_out(results: TaskResults, trials: str) -> TrustCheck:
    """Report the trials that a search never began."""
    skipped = sum(t.status == "skipped" for t in results.trials)
    over_budget = len(results.over_budget)
    tokens = f"{100 * _training_share(results.trials):.0f} % of the grid's tokens"
    value = f"{skipped} of {trials} not begun; trained on {tokens}"
    text = "The search trained what it expected to learn most from."
    if over_budget:
        value = f"budget spent, {value}"
        text = f"{count(over_budget, 'run')} that the answer asks for never began."
    return _check("trials", "weak" if over_budget else "fine", value, text)


def _training_share(trials: Sequence[TrialRecords]) -> float:
    """Return a search's training tokens over those of its grid; failed trials count in neither.

    A trial that never began counts like its arm's others, or like the mean of all.
    """
    whole: dict[tuple[object, ...], float] = {}
    spent = 0
    for trial in trials:
        if trial.train is not None and trial.train.steps:
            whole[trial.spec.arm] = trial.train.num_tokens
            spent += trial.train.num_tokens
    mean = sum(whole.values()) / max(1, len(whole))
    planned = sum(
        whole.get(t.spec.arm, mean) for t in trials if t.spec.trains and t.status not in FAILED
    )
    return spent / planned if planned else 1.0


def notes_beforehand(config: StudyConfig, tasks: Sequence[TaskRecord]) -> list[str]:
    """Estimate how wide the answer will be on each task, and forgetting, before any training.

    Right-or-wrong answers of two models are taken to differ on ``TYPICAL_DISCORDANCE`` of the
    items, and seeds by a typical spread. Nothing is known about nats.
    """
    num_seeds, notes = len(config.seeds), list[str]()
    kept = [task for task in tasks if "retention" in task.roles]
    for what, of in [("a gain", [t for t in tasks if t.trained_on]), ("its change", kept)]:
        for task in of:
            items = task.rows["validation"] + task.rows["test"]
            if unit_of(task.score_unit) != POINTS or not items:
                continue
            of_seeds = (TYPICAL_SPREADS[0] * UNIT) ** 2 / num_seeds
            now, more = (
                amount(1.96 * sqrt(TYPICAL_DISCORDANCE / n + of_seeds), POINTS)
                for n in (items, 4 * items)
            )
            counted = f"{count(items, 'scored item')} and {count(num_seeds, 'seed')}"
            notes.append(
                f"{task.name}: with {counted} {what} will be known to about ±{now}; four times the "
                f"items would make it ±{more}"
            )
    return notes
