"""The answer: verdict, ranks that may do, a few arms with their costs, and how far to trust it.

The page of a study opens with it as a card, which a notebook shows by ``answer_html``. A terminal
shows ``answer_lines``.
"""

from collections import Counter
from dataclasses import dataclass

from rankscope.analyses import all_analyses
from rankscope.formatting import (
    UNKNOWN,
    Unit,
    amount,
    byte_size,
    compact,
    count,
    duration,
    join_names,
    number,
    percent,
    safe_text,
    signed,
)
from rankscope.records import BASE, AnswerRow, ArmSummary, ExpectedChange, TaskAdvice
from rankscope.report.page import render_fragment
from rankscope.report.study_view import StudyView

ROW_ROLES = {
    "recommended": "Recommended",
    "closest": "Leading arm",
    "smaller": "Smaller rank that may do",
    "best": "Highest expected net gain",
    "full": "Best full fine-tuning",
    "prompt": "Best prompt",
    "lora": "Best LoRA",
}
BYTES_PER_PARAMETER = 4
FAILED_NOTE = "A trial that failed counts as no net gain."


Cells = dict[str, tuple[str, str]]
"""Numbers of an arm by column, each with its interval or another note."""


@dataclass(frozen=True, slots=True)
class _AnswerCard:
    advice: TaskAdvice
    ranks: str
    rows: tuple[tuple[str, str, Cells], ...]  # Role, label, numbers
    note: str  # Meaning of the numbers


def answer_cards(view: StudyView) -> list[_AnswerCard]:
    return [answer_card(view, task) for task in view.training_tasks]


def answer_card(view: StudyView, task: str) -> _AnswerCard:
    advice = view.advice(task)
    rows = tuple((_role_text(row), row.arm.label, _cells(view, row.arm)) for row in advice.rows)
    return _AnswerCard(advice, _ranks_text(advice), rows, _note(view, task))


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
    notes = [
        f"Net gain: {objective.formula}. All changes are against the base and expected from all "
        f"items ({items}), seeds ({seeds} of an arm at most) and arms together. Arms of similar "
        "rank and rate are moved toward each other. Several arms can be within the margin, so "
        "these probabilities need not add up to 100 %."
    ]
    if any(row.arm.failed for row in view.advice(task).rows):
        notes.append(FAILED_NOTE)
    if names:
        notes.append(f"Retention is the mean over {join_names(names)}; below zero is forgotten.")
    return " ".join(notes)


def _role_text(row: AnswerRow) -> str:
    first, *others = (ROW_ROLES[role] for role in row.roles)
    texts = [first, *(f"{name[0].lower()}{name[1:]}" for name in others)]
    texts += [] if row.arm.alpha is None else [f"alpha {row.arm.alpha:g}"]
    texts += [f'system "{row.arm.system}"'] if row.arm.system else []
    return ", ".join(texts)


def _cells(view: StudyView, arm: ArmSummary) -> Cells:
    within = UNKNOWN, "not scored"
    if (of := arm.expected) is not None:
        # An arm over the limit on forgetting may be better than the best that is allowed.
        regret = amount(max(0.0, of.regret), view.net_unit(arm.task))
        better = f"{percent(of.p_better)} likely better than the base"
        within = percent(of.p_within_margin), f"{better}; on average {regret} below the best"
    return {
        f"{name.replace('_', ' ').capitalize()}, {unit.difference}": _cell(change, unit)
        for name, (change, unit) in view.expected(arm).items()
    } | {
        f"Within {view.margin(arm.task)} of the best": within,
        "Size": _size_cell(view, arm),
        "Training time": (duration(arm.seconds), "per trial") if arm.trains else ("none", ""),
    }


def _size_cell(view: StudyView, arm: ArmSummary) -> tuple[str, str]:
    """Write the size of the trained part; for a prompt, the tokens that are read for an item."""
    size, total = arm.trainable_parameters, view.study.model.num_parameters
    if arm.tokens_per_item:
        base = view.study.tokens_read(BASE, arm.task)
        of_base = f"; {base:,.0f} by the base" if base else ""
        return f"{arm.tokens_per_item:,.0f} tokens", f"read for an item{of_base}"
    if not size:
        return UNKNOWN, "not known"
    share = f", {number(100 * size / total)} % of the model" if total else ""  # 0: not known
    return byte_size(BYTES_PER_PARAMETER * size), f"{compact(size)} parameters{share}; float32"


def _cell(change: ExpectedChange | None, unit: Unit) -> tuple[str, str]:
    if change is None:
        return UNKNOWN, "not scored"
    return signed(change.value, unit), f"{signed(change.low, unit)} to {signed(change.high, unit)}"


def answer_lines(advice: TaskAdvice, *, with_reasons: bool) -> list[str]:
    """Write verdict, explanation, reasons if asked for, open checks, and the most useful next
    run."""
    lines = [f"{advice.task}: {advice.verdict}", advice.explanation]
    lines += [_ranks_text(advice)] * bool(_ranks_text(advice))
    lines += [f"- {reason.text}" for reason in advice.reasons if with_reasons]
    found = [f"- {c.value}: {c.text}" for c in advice.checks if c.status != "fine"]
    lines += ["The probabilities do not account for these:", *found] * bool(found)
    steps = [
        f"- {step.text}{': ' * bool(step.command)}{step.command}" for step in advice.next_steps
    ]
    return lines + ["Most useful next run:", *steps] * bool(steps)


def answer_html(view: StudyView) -> str:
    """Render the cards of all training tasks as one piece of HTML with its styles, for a
    notebook."""
    return render_fragment("answer.html.j2", cards=answer_cards(view))


def missing(view: StudyView) -> list[str]:
    """List things that a reader might look for and will not find, one sentence each."""
    study = view.study
    statuses = Counter(t.status for t in study.trials if t.status != "skipped")  # by a search
    total, done = statuses.total(), statuses.pop("done", 0)
    rest = ", ".join(f"{number} {status}" for status, number in statuses.items())
    unscored = [t.name for t in study.tasks if (BASE, t.name, "test") not in study.evals]
    seeds = max((a.seeds for task in view.training_tasks for a in view.arms(task)), default=0)
    sentences = {
        "The study has no trials: only the base model is shown.": not total,
        f"None of the {count(total, 'trial')} has finished: only the base is shown.": total
        and not done,
        f"{done} of {count(total, 'trial')} finished; the others: {rest}.": 0 < done < total,
        f"The base has no score on {join_names(unscored)}: changes there are unknown.": unscored,
        "There is no retention task, so what training lost is unknown.": not view.retention_tasks,
        "No arm has a second seed: the spread between seeds is assumed, not measured.": seeds == 1,
    }
    known = {type(record) for trial in study.trials for record in trial.analyses}
    sentences |= {a.absence: done and a.record_type() not in known for a in all_analyses()}
    return [safe_text(text, 500) for text, applies in sentences.items() if text and applies]
