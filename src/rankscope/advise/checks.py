"""Can this answer be trusted? One line per fact, with a status: fine, weak or bad.

*Bad* is what keeps the confidence from being high; *weak* could change the answer nevertheless.
"""

from collections.abc import Iterator, Sequence

from rankscope.advise.arms import Arm
from rankscope.advise.comparisons import arm_difference
from rankscope.advise.messages import Counted, Field, Measured, arm_name, clause, trust_check
from rankscope.advise.retention import retention_tasks
from rankscope.advise.statistics.power import detectable
from rankscope.advise.statistics.significance import FEWEST_ITEMS
from rankscope.advise.task_results import FEW_ITEMS, TaskResults
from rankscope.formatting import NATS, POINTS, count, join_names, score_text
from rankscope.records import FAILED, FEWEST_SEEDS, CheckStatus, TrialRecords, TrustCheck

MOST_NAMED = 4  # Arms or trials that one sentence names
OVERLAP_KINDS = {"exact": "exact match", "ngram13": "13-gram match"}


def trust_checks(results: TaskResults, subject: Arm | None) -> tuple[TrustCheck, ...]:
    """Every check that applies to the task or to the arm ``subject``."""
    checks: list[TrustCheck] = []
    if subject is not None:
        checks += [_seeds(subject), *_items(results, subject)]
    checks += [_retention(results, subject), *_contamination(results)]
    if subject is not None:
        checks += [*_learning_rate(results, subject), *_loss(results, subject)]
    return (*checks, *_trials(results, subject))


def _seeds(subject: Arm) -> TrustCheck:
    seeds = subject.summary.seeds
    status: CheckStatus = "fine" if seeds >= FEWEST_SEEDS else "bad"
    return trust_check(
        f"seeds.{status}", status, count(seeds, "seed"), seeds=seeds, fewest_seeds=FEWEST_SEEDS
    )


def _items(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    gain, rival = subject.summary.gain, _rival(results, subject)
    if gain is None:
        return
    value = count(gain.n, "test item")
    gap = arm_difference(results.study, subject, rival, results.task)
    effect = None if gap is None else detectable(gap)
    if gain.n < FEW_ITEMS:
        decides = gain.n >= FEWEST_ITEMS and subject.summary.seeds >= FEWEST_SEEDS
        yield trust_check("items.few", "weak" if decides else "bad", value, n=gain.n)
    elif effect is None:
        yield trust_check("items.unknown", "weak", value, n=gain.n)
    else:
        yield trust_check(
            "items.seen",
            "fine" if effect <= results.objective.margin else "weak",
            value,
            n=gain.n,
            detectable=results.score(effect),
            arm=arm_name(subject.summary),
            rival="the base" if rival is None else arm_name(rival.summary),
        )


def _rival(results: TaskResults, subject: Arm) -> Arm | None:
    """LoRA's rival is full fine-tuning and the reverse; otherwise the next best arm."""
    if other := results.rival_kind(subject):
        return other.arm
    rest = [c for c in results.choice.candidates if c.arm is not subject]
    return max(rest, key=lambda c: c.utility).arm if rest else None


def _retention(results: TaskResults, subject: Arm | None) -> TrustCheck:
    tasks = retention_tasks(results.study, results.task)
    forgetting = None if subject is None else results.shown_forgetting(subject.summary)
    has_limit = results.objective.max_forgetting is not None
    if not tasks or (subject is not None and forgetting is None):
        limit = " The limit on forgetting could not be applied." if has_limit else ""
        lacks = subject is not None and results.lacks_retention_scores(subject.summary)
        meaning = "retention.unscored" if tasks else "retention.none"
        return trust_check(meaning, "bad" if lacks else "weak", "forgetting unknown", limit=limit)
    at_chance = results.retention_at_chance
    not_above = f"{join_names(at_chance)} not above chance"
    by_logprob = results.scale.name == "gold_logprob" and not has_limit
    if at_chance and not by_logprob:
        named = [
            f"{name} ({score_text(base, POINTS)} on {count(n, 'item')}; guessing gives "
            f"{score_text(chance, POINTS)})"
            for name, (base, n, chance) in at_chance.items()
        ]
        numbers: dict[str, Field] = {}
        for name, (base, n, chance) in at_chance.items():
            numbers |= {f"base.{name}": base, f"n.{name}": n, f"chance.{name}": chance}
        carrier = None if subject is None else subject.summary.logprob_forgetting
        in_nats = None if carrier is None else Measured(carrier, NATS)
        if in_nats is not None:
            numbers["in_nats"] = in_nats
        lowers = subject is not None and results.forgets_below_chance(subject.summary)
        return trust_check(
            "retention.chance",
            "bad" if lowers else "weak",
            not_above,
            named="; ".join(named),
            carried=clause("not_carried" if in_nats is None else "carried", in_nats=in_nats or ""),
            **numbers,
        )
    if subject is not None and forgetting is not None and not results.is_settled(subject.summary):
        if results.forgot_in_each_seed(subject.summary):
            seeds, value = Counted(subject.summary.seeds, "seed"), "forgetting in each seed"
            return trust_check(
                "retention.each_seed", "weak", value, forgetting=forgetting, trained=seeds
            )
        value = f"forgetting unclear (change of {forgetting:range})"
        return trust_check("retention.wide", "weak", value, forgetting=forgetting)
    if by_logprob:
        value = f"by log-probability{f'; accuracy on {not_above}' if at_chance else ''}"
        return trust_check("retention.logprob", "fine", value)
    value = count(len(tasks), "retention task")
    has_chance = any(task.chance is not None for task in tasks)
    return trust_check("retention.fine" if has_chance else "retention.text", "fine", value)


def _contamination(results: TaskResults) -> Iterator[TrustCheck]:
    record = results.record
    kinds = {kind: rows for kind, rows in sorted(record.contamination.items()) if rows}
    test_rows, overlapping = record.rows.get("test", 0), sum(kinds.values())
    if not kinds:
        yield trust_check("contamination.fine", "fine", "no overlap")
        return
    yield trust_check(
        "contamination.weak",
        "bad" if record.is_contaminated else "weak",
        f"{overlapping:,} of {count(test_rows, 'test row')}",
        rows=overlapping,
        test_rows=Counted(test_rows, "test row"),
        named=", ".join(
            f"{rows} by {OVERLAP_KINDS.get(kind, kind)}" for kind, rows in kinds.items()
        ),
        **{f"contamination_{kind}": rows for kind, rows in kinds.items()},
    )


def _learning_rate(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    lr, lrs = subject.summary.lr, results.rates_of(subject)
    if not lrs:
        return
    fields: dict[str, Field] = {"lr": lr, "rates_tried": len(lrs)}
    if len(lrs) == 1:
        yield trust_check("learning_rate.one", "weak", "one learning rate tried", **fields)
    elif lr in (lrs[0], lrs[-1]):
        side, better = ("lowest", "lower") if lr == lrs[0] else ("highest", "higher")
        fields |= {"side": side, "better": better}
        yield trust_check("learning_rate.edge", "weak", f"{side} learning rate tried", **fields)
    else:
        yield trust_check(
            "learning_rate.fine", "fine", f"{len(lrs)} learning rates tried", **fields
        )


def _loss(results: TaskResults, subject: Arm) -> Iterator[TrustCheck]:
    trend, steps = subject.loss_trend, Counted(subject.steps, "step")
    is_barely_trained = results.is_barely_trained(subject)
    if is_barely_trained and (trend is None or not trend.is_falling):
        yield trust_check("loss.unknown", "bad", f"only {steps}", steps=steps)
        return
    if trend is None:
        return
    fields: dict[str, Field] = {"loss_before": trend.before, "loss_after": trend.after}
    if is_barely_trained:
        value = f"still falling after {steps}"
        yield trust_check("loss.falling", "bad", value, steps=steps, **fields)
    elif trend.is_falling:
        yield trust_check("loss.falling", "weak", "still falling", steps=steps, **fields)
    else:
        yield trust_check("loss.fine", "fine", "has settled", steps=steps)


def _trials(results: TaskResults, subject: Arm | None) -> Iterator[TrustCheck]:
    trials = Counted(len(results.trials), "trial")
    if results.failed:
        names = [f"{t.spec.arm_label} seed={t.spec.seed}: {t.status}" for t in results.failed]
        value = f"{len(names)} of {trials} failed"
        fields = {"failed": len(names), "trials": trials, **first_names(names)}
        lowers = results.choice.passed_over or (subject is not None and subject.summary.failed)
        yield trust_check("trials.failed", "bad" if lowers else "weak", value, **fields)
    if results.waiting:
        value = f"{results.waiting} of {trials} to run"
        yield trust_check("trials.waiting", "bad", value, waiting=results.waiting, trials=trials)
    stopped = [t for t in results.trials if t.status == "stopped"]
    skipped = sum(t.status == "skipped" for t in results.trials)
    if stopped or skipped:
        left_out, share = len(stopped) + skipped, _training_share(results.trials)
        percent, over_budget = f"{100 * share:.0f} %", len(results.over_budget)
        value = f"{left_out} of {trials} stopped or not begun"
        value += f"; trained on {percent} of the grid's tokens"
        yield trust_check(
            "trials.over_budget" if over_budget else "trials.left_out",
            "weak",
            f"budget spent, {value}" if over_budget else value,
            stopped=Counted(len(stopped), "trial"),
            not_needed=Counted(skipped - over_budget, "trial"),
            over_budget=Counted(over_budget, "trial"),
            share=share,
            percent=percent,
        )
    elif results.trials and not results.failed and not results.waiting:
        yield trust_check("trials.fine", "fine", f"all {trials} finished", trials=trials)


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


def first_names(names: Sequence[str]) -> dict[str, Field]:
    """The first few names, and the number of others."""
    named, unnamed = "; ".join(names[:MOST_NAMED]), len(names) - MOST_NAMED
    if unnamed <= 0:
        return {"named": named}
    return {"named": f"{named} and {unnamed} more", "unnamed": unnamed}
