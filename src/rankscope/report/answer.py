"""The answer: a verdict, a chart, what is open, and a few configurations with their costs.

The page of a study opens with it as a card, which a notebook shows by ``answer_html``. A terminal
shows ``answer_lines``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from rankscope.analyses import all_analyses
from rankscope.formatting import (
    CONFIDENCES,
    NATS,
    UNKNOWN,
    Unit,
    amount,
    brief,
    byte_size,
    compact,
    count,
    duration,
    join_names,
    number,
    percent,
    rough_duration,
    safe_text,
    signed,
)
from rankscope.records import (
    BASE,
    MAY_DO,
    AnswerRow,
    ArmSummary,
    ExpectedChange,
    NextStep,
    TaskAdvice,
    TrustCheck,
)
from rankscope.report.page import render_fragment
from rankscope.report.study_view import StudyView

ROW_ROLES = {
    "recommended": "Recommended",
    "smaller": "Smaller rank that may do",
    "best": "Highest net gain, too close to matter",
    "full": "Best full fine-tuning",
    "prompt": "Best prompt",
    "lora": "Best LoRA",
}
_CLOSEST = {"do_not_fine_tune": "Best tried, not worth it", "not_decided": "Favored so far"}
"""Role of the arm that an answer without a recommendation describes."""
BYTES_PER_PARAMETER = 4
FAILED_NOTE = "A run that failed counts as no net gain."
_MOST_COLUMNS = 10  # Ranks and other configurations that fit side by side on a phone
TOP, HEIGHT = 36, 170  # Pixels of the chart above its plot, and of the plot
LEFT, RIGHT = 22, 91  # Percent of the chart's width where the first and the last column stand


Cells = dict[str, tuple[str, ...]]
"""Numbers of an arm by column, each with its interval or other notes."""
_Steps = list[tuple[str, str]]
"""Texts and commands."""


@dataclass(frozen=True, slots=True)
class _AnswerCard:
    advice: TaskAdvice
    trust: str  # How much is open
    chart: Mapping[str, Any] | None
    before: list[tuple[str, TrustCheck, _Steps]]  # Each open check, with what settles it
    fine: str  # Names and facts of the other checks
    further: _Steps  # _Steps that settle no check
    rows: tuple[tuple[str, str, Cells], ...]  # Role, label, numbers
    note: str  # Meaning of the numbers


def answer_cards(view: StudyView) -> list[_AnswerCard]:
    return [answer_card(view, task) for task in view.training_tasks]


def answer_card(view: StudyView, task: str) -> _AnswerCard:
    advice = view.advice(task)
    rows = tuple((_role_text(advice, r), r.arm.label, _cells(view, r.arm)) for r in advice.rows)
    trust, chart, note = _trust_text(advice), _chart(view, task), _note(view, task)
    return _AnswerCard(advice, trust, chart, *_before_relying(advice), rows, note)


def _trust_text(advice: TaskAdvice) -> str:
    """Write how much is open: ``3 points are open.``"""
    bad = sum(check.status == "bad" for check in advice.checks)
    number = bad or len(advice.open_checks)
    text = f"{count(number, 'point')} {'is' if number == 1 else 'are'}"
    return f"{text} {'to be mended first' if bad else 'open'}." if number else "Nothing is open."


def _before_relying(advice: TaskAdvice) -> tuple[list[tuple[str, TrustCheck, _Steps]], str, _Steps]:
    """Pair each open check with the steps that settle it; then name what is fine, and the other
    steps."""
    found, left = [], list(advice.next_steps)
    for check in sorted(advice.open_checks, key=lambda check: check.status):  # the bad ones first
        own = [step for step in left if step.check == check.name]
        left = [step for step in left if step not in own]
        found.append((_check_name(check), check, _steps(own)))
    fine = [f"{_check_name(c).lower()}: {c.value}" for c in advice.checks if c.status == "fine"]
    return found, "; ".join(fine), _steps(left)


def _steps(steps: Sequence[NextStep]) -> _Steps:
    """Return each step with its time, if that is known, and its command."""
    times = [f", about {rough_duration(step.seconds)}" if step.seconds else "" for step in steps]
    return [(step.text + time, step.command) for step, time in zip(steps, times, strict=True)]


def _check_name(check: TrustCheck) -> str:
    names = {"loss": "Training loss", "trials": "Runs", "fit": "Probabilities"}
    return names.get(check.name, check.name.replace("_", " ").capitalize())


def _chart(view: StudyView, task: str) -> Mapping[str, Any] | None:
    """Place the chart of net gains: a column per rank, or per configuration without one.

    Each stands at its best rate. Across, numbers are percent of the width, as text keeps its size;
    down, they are pixels.
    """
    advice, unit, focus = view.advice(task), view.net_unit(task), view.focus(task)
    order = [focus and focus.label, *advice.candidate_labels]  # the answer's own arm comes first
    arms = sorted(view.candidates(task), key=lambda arm: order.index(arm.label))
    arms, found = [arm for arm in arms if not arm.is_full], dict[object, ArmSummary]()
    ranks = {arm.rank for arm in arms}
    by_rank = None not in ranks and (len(ranks) > 1 or len(arms) == 1)
    for arm in arms:
        found.setdefault(arm.rank if by_rank else arm.label, arm)
    shown = sorted([*found.values()][:_MOST_COLUMNS], key=lambda a: (a.rank or inf, a.label))
    full = view.best_full(task)
    nets = {a.label: a.expected.net for a in (*shown, full) if a and a.expected}
    if not shown:
        return None
    low = min(0.0, *(net.low for net in nets.values()))
    span = max(0.0, *(net.high for net in nets.values())) - low or 1.0

    def down(value: float) -> float:
        return round(TOP + HEIGHT * (1 - (value - low) / span), 1)

    def placed(arm: ArmSummary) -> dict[str, Any]:
        net, p = nets[arm.label], arm.expected.p_within_margin if arm.expected else 0.0
        value, *ends = (signed(x, unit) for x in (net.value, net.low, net.high))
        return {
            **{end: down(getattr(net, end)) for end in ("value", "low", "high")},
            "text": value,
            "name": arm.rank if by_rank else view.spec(arm).label_without("lr"),
            "likely": percent(p).replace("over ", ">") if p >= MAY_DO else "",
            "is_chosen": arm == advice.chosen,
            "told": f"{arm.label}: {value} ({' to '.join(ends)}), {percent(p)} likely",
            "open": [c.name for c in advice.open_checks if arm.label in c.labels],
        }

    points = [placed(arm) for arm in shown]
    for place, point in enumerate(points):
        point["x"] = round(LEFT + (RIGHT - LEFT) * (place + 0.5) / len(points), 2)
    of_full = placed(full) if full and full.label in nets else None
    return {
        "title": f"Net gain, {unit.difference}",
        "points": points,
        "base": down(0.0),
        "base_is_chosen": advice.decision == "do_not_fine_tune",
        "full": of_full,
        "bottom": TOP + HEIGHT + 14,
        "by_rank": by_rank,
        "open": {name for of in [*points, of_full or {"open": ()}] for name in of["open"]},
    }


def _ranks_text(advice: TaskAdvice) -> str:
    """Write ``Ranks that may do: r=8 (5 %), r=32 (61 %).``; empty if the table has them all."""
    if {rank.label for rank in advice.ranks_that_may_do} <= {row.arm.label for row in advice.rows}:
        return ""
    named = [f"r={rank.rank} ({percent(rank.p)})" for rank in advice.ranks_that_may_do]
    return f"Ranks that may do: {', '.join(named)}."


def _note(view: StudyView, task: str) -> str:
    objective, names = view.study.config.objective, view.retained(task)
    rows = view.study.task(task).rows
    items = " and ".join(f"{rows[s]:,} {s}" for s in ("validation", "test") if rows.get(s))
    seeds = max((arm.seeds for arm in view.arms(task)), default=0)
    margin = view.margin(task)
    notes = [
        f"Net gain: {objective.formula}. A configuration is among the best if its net gain is at "
        f"most {margin} below the highest of all and of the base. Several can be, so these "
        "probabilities need not add up to 100 %. All changes are against the base and expected "
        f"from all items ({items}), seeds ({seeds} of a configuration at most) and configurations "
        "together. Similar ranks and rates are moved toward each other. Sizes are in float32."
    ]
    if NATS in (view.unit(task), view.retention_unit(task)):
        notes.append("Nats measure log probability: 0.01 nats per token is 1 % of perplexity.")
    if any(row.arm.failed for row in view.advice(task).rows):
        notes.append(FAILED_NOTE)
    if names:
        notes.append(f"Retention is the mean over {join_names(names)}; below zero is forgotten.")
    return " ".join(notes)


def _role_text(advice: TaskAdvice, row: AnswerRow) -> str:
    roles: dict[str, str] = {**ROW_ROLES, "closest": _CLOSEST.get(advice.decision, "")}
    # A recommended arm with the highest net gain is not called too close to it.
    best_only = [role for role in row.roles if role != "best" or role == row.roles[0]]
    first, *others = (roles[role] for role in best_only)
    texts = [first, *(f"{name[0].lower()}{name[1:]}" for name in others)]
    texts += [] if row.arm.alpha is None else [f"alpha {row.arm.alpha:g}"]
    texts += [f'system "{row.arm.system}"'] if row.arm.system else []
    return ", ".join(texts)


def _cells(view: StudyView, arm: ArmSummary) -> Cells:
    cells = {
        f"{name.replace('_', ' ').capitalize()}, {unit.difference}": _cell(change, unit)
        for name, (change, unit) in view.expected(arm).items()
    }
    if lost := arm.worst_loss:
        title = list(cells)[1]
        cells[title] += (f"worst: {lost[0]} {brief(lost[1].value, view.unit(lost[0]))}",)
    within: tuple[str, ...] = UNKNOWN, "not scored"
    if (of := arm.expected) is not None:
        better = f"{percent(of.p_better)} likely better than the base"
        # An arm over the limit on forgetting may be better than the best that is allowed.
        below = f"on average {amount(max(0.0, of.regret), view.net_unit(arm.task))} below the best"
        if (over := of.p_over_limit or 0.0) > 0.5:
            below = f"{percent(over)} likely over the limit on forgetting"
        within = percent(of.p_within_margin), better, below
    return cells | {
        "Likely among the best": within,
        "Size": _size_cell(view, arm),
        "Training time": (duration(arm.seconds), "per run") if arm.trains else ("none",),
    }


def _size_cell(view: StudyView, arm: ArmSummary) -> tuple[str, ...]:
    """Write the size of the trained part; for a prompt, the tokens that are read for an item."""
    size, total = arm.trainable_parameters, view.study.model.num_parameters
    if arm.tokens_per_item:
        base = view.study.tokens_read(BASE, arm.task)
        of_base = (f"{base:,.0f} by the base",) if base else ()
        return f"{arm.tokens_per_item:,.0f} tokens", "read for an item", *of_base
    if not size:
        return UNKNOWN, "not known"
    # A total of 0 is not known.
    share = [f"{number(100 * size / total)} % of the model's parameters"] if total else []
    return byte_size(BYTES_PER_PARAMETER * size), *share, f"{compact(size)} parameters"


def _cell(change: ExpectedChange | None, unit: Unit) -> tuple[str, ...]:
    if change is None:
        return UNKNOWN, "not scored"
    return signed(change.value, unit), f"{signed(change.low, unit)} to {signed(change.high, unit)}"


def answer_lines(advice: TaskAdvice, *, with_reasons: bool) -> list[str]:
    """Write the answer in the order of the card; its explanation last, with reasons if asked for.

    The first line is the verdict.
    """
    lines = [f"{advice.task}: {advice.verdict}", advice.summary]
    lines.append(f"{CONFIDENCES[advice.confidence]}: {_trust_text(advice)}")
    lines += [text for text in [_ranks_text(advice)] if text]
    before, fine, further = _before_relying(advice)
    lines += ["Before you rely on it:"] * bool(before)
    for name, check, steps in before:
        lines += [f"- {name}: {check.value}. {check.text}"]
        lines += ["  " + ": ".join(filter(None, step)) for step in steps]
    lines += [f"Checked: {fine}."] * bool(fine) + ["Most useful next run:"] * bool(further)
    lines += ["- " + ": ".join(filter(None, step)) for step in further]
    reasons = [f"- {reason.text}" for reason in advice.reasons if with_reasons]
    return [*lines, f"Why: {advice.explanation}", *reasons]


def answer_html(view: StudyView) -> str:
    """Render the cards of all training tasks as one piece of HTML with its styles, for a
    notebook."""
    return render_fragment("answer.html.j2", cards=answer_cards(view))


def missing(view: StudyView) -> list[str]:
    """List things that a reader might look for and will not find, one sentence each."""
    study = view.study
    unscored = [t.name for t in study.tasks if (BASE, t.name, "test") not in study.evals]
    text = f"The base has no score on {join_names(unscored)}: changes there are unknown."
    done = any(trial.status == "done" for trial in study.trials)
    known = {type(record) for trial in study.trials for record in trial.analyses}
    absent = [a.absence for a in all_analyses() if done and a.record_type() not in known]
    return [safe_text(text, 500) for text in [text] * bool(unscored) + absent if text]
