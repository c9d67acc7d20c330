"""The answer: verdict, the ranks that may do, a few arms with what they cost, how far to trust it.

The page of a study opens with it as a card, which a notebook shows by ``answer_html``; a terminal
shows ``answer_lines``.
"""

from collections import Counter
from dataclasses import dataclass

from rankscope.analyses import all_analyses
from rankscope.formatting import (
    UNKNOWN,
    Unit,
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
from rankscope.records import BASE, AnswerRow, ArmSummary, Estimate, TaskAdvice
from rankscope.report.page import render_fragment
from rankscope.report.study_view import StudyView

NEXT_STEPS_TITLE = "How to get a surer answer"
ROW_ROLES = {
    "recommended": "Recommended",
    "closest": "Closest",
    "smaller": "Smaller rank that may do",
    "best": "Highest expected net gain",
    "full": "Best full fine-tuning",
    "prompt": "Best prompt",
    "lora": "Best LoRA",
}
BYTES_PER_PARAMETER = 4


Cells = tuple[tuple[str, str], ...]
"""The numbers of an arm, each with its interval or another note."""


@dataclass(frozen=True, slots=True)
class _AnswerCard:
    advice: TaskAdvice
    ranks: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, Cells], ...]  # Role, label, and one cell for each column
    note: str  # What is expected, and what was measured


def answer_cards(view: StudyView) -> list[_AnswerCard]:
    return [answer_card(view, task) for task in view.training_tasks]


def answer_card(view: StudyView, task: str) -> _AnswerCard:
    advice, base, unit = view.advice(task), view.base(task), view.unit(task)
    columns = (
        f"Expected net gain, {view.net_unit(task).difference}",
        f"Within {view.margin(task)} of the best",
        f"Test score, {unit.score}"
        + (f" (base {number(base.score * unit.scale, unit.digits)})" if base else ""),
        f"Retention change, {view.retention_unit(task).difference}",
        "Size",
        "Training time",
    )
    rows = tuple((_role_text(row), row.arm.label, _cells(view, row.arm)) for row in advice.rows)
    return _AnswerCard(advice, _ranks_text(advice), columns, rows, _note(view, task))


def _ranks_text(advice: TaskAdvice) -> str:
    """``Ranks that may do: r=8 (5 %), r=32 (61 %).``; empty if the verdict names them all."""
    named = {advice.chosen.label} if advice.chosen else set()
    texts = {f"r={r.rank} ({percent(r.p)})": r.label for r in advice.ranks_that_may_do}
    if all(label in named or text in advice.verdict for text, label in texts.items()):
        return ""
    return f"Ranks that may do: {', '.join(texts)}."


def _note(view: StudyView, task: str) -> str:
    objective, names = view.study.config.objective, view.retained(task)
    rows = view.study.task(task).rows
    items = " and ".join(f"{rows[s]:,} {s}" for s in ("validation", "test") if rows.get(s))
    seeds = max((arm.seeds for arm in view.arms(task)), default=0)
    notes = [
        f"Net gain: {objective.formula}. It is expected from all items ({items}), seeds "
        f"({seeds} of an arm at most) and arms together: arms of similar rank and rate are moved "
        "toward each other. Several arms can be within the margin, so these probabilities need not "
        "add up to 100 %. Score and retention are as measured on test items."
    ]
    if names:
        notes.append(f"Retention is the mean over {join_names(names)}; below zero was forgotten.")
    return " ".join(notes)


def _role_text(row: AnswerRow) -> str:
    first, *others = (ROW_ROLES[role] for role in row.roles)
    texts = [first, *(f"{name[0].lower()}{name[1:]}" for name in others)]
    texts += [] if row.arm.alpha is None else [f"alpha {row.arm.alpha:g}"]
    texts += [f'system "{row.arm.system}"'] if row.arm.system else []
    return ", ".join(texts)


def _cells(view: StudyView, arm: ArmSummary) -> Cells:
    of, numbers = arm.expected, view.numbers(arm)
    # An arm over the limit on forgetting may be better than the best that is allowed.
    regret = signed(max(0.0, of.regret), view.net_unit(arm.task)).removeprefix("+") if of else ""
    return (
        _cell(*numbers["expected_net_gain"], sign=True),
        (
            percent(of.p_within_margin),
            f"loses {regret} expected; {percent(of.p_better)} better than the base",
        )
        if of
        else (UNKNOWN, "not scored"),
        _cell(*numbers["score"]),
        _cell(*numbers["retention_change"], sign=True),
        _size_cell(view, arm),
        (duration(arm.seconds), "per trial") if arm.trains else ("none", ""),
    )


def _size_cell(view: StudyView, arm: ArmSummary) -> tuple[str, str]:
    """Of what is trained; of a prompt, by the tokens that are read for an item."""
    size, total = arm.trainable_parameters, view.study.model.num_parameters
    if arm.tokens_per_item:
        base = view.study.tokens_read(BASE, arm.task)
        of_base = f"; {base:,.0f} by the base" if base else ""
        return f"{arm.tokens_per_item:,.0f} tokens", f"read for an item{of_base}"
    if not size:
        return UNKNOWN, "not known"
    share = f", {number(100 * size / total)} % of the model" if total else ""  # 0: not known
    return byte_size(BYTES_PER_PARAMETER * size), f"{compact(size)} parameters{share}; float32"


def _cell(estimate: Estimate | None, unit: Unit, *, sign: bool = False) -> tuple[str, str]:
    if estimate is None:
        return UNKNOWN, "not measured"

    def shown(value: float) -> str:
        return signed(value, unit) if sign else number(value * unit.scale, unit.digits)

    if estimate.low is None or estimate.high is None:
        return shown(estimate.value), "interval unknown"
    return shown(estimate.value), f"{shown(estimate.low)} to {shown(estimate.high)}"


def answer_lines(advice: TaskAdvice, *, with_reasons: bool) -> list[str]:
    """Verdict, explanation and weak points; if asked for, the reasons and the next steps too."""
    lines = [f"{advice.task}: {advice.verdict}", advice.explanation]
    lines += [_ranks_text(advice)] * bool(_ranks_text(advice))
    weak = [check for check in advice.checks if check.status != "fine"]
    if not with_reasons:
        return lines + [f"Weak points: {'; '.join(c.value for c in weak)}."] * bool(weak)
    lines += [f"- {reason.text}" for reason in advice.reasons]
    lines += ["What weakens this answer:"] * bool(weak)
    lines += [f"- {check.value}: {check.text}" for check in weak]
    lines += [f"{NEXT_STEPS_TITLE}:"] * bool(advice.next_steps)
    return lines + [f"- {step}" for step in advice.next_steps]


def answer_html(view: StudyView) -> str:
    """The cards of all training tasks as one piece of HTML with its styles, for a notebook."""
    return render_fragment("answer.html.j2", cards=answer_cards(view))


def missing(view: StudyView) -> list[str]:
    """What a reader might look for and will not find, one sentence each."""
    study = view.study
    statuses = Counter(trial.status for trial in study.trials)
    total, done = len(study.trials), statuses.pop("done", 0)
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
