"""The answer card: verdict, claims, three arms with what they cost, and how far to trust it.

The page of a study opens with it; a notebook shows it by ``answer_html``.
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
    safe_text,
    signed,
)
from rankscope.records import BASE, FEWEST_SEEDS, AnswerRow, ArmSummary, Estimate, TaskAdvice
from rankscope.report.page import render_fragment
from rankscope.report.study_view import StudyView

NEXT_STEPS_TITLE = "How to get a firmer answer"
ROW_ROLES = {
    "recommended": "Recommended",
    "closest": "Best so far",
    "cheapest": "Cheapest within {margin} of the best on validation items",
    "full": "Best full fine-tuning",
    "lora": "Best LoRA",
}
BYTES_PER_PARAMETER = 4


Cells = tuple[tuple[str, str], ...]
"""The numbers of an arm, each with its interval or another note."""


@dataclass(frozen=True, slots=True)
class _AnswerCard:
    advice: TaskAdvice
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, Cells], ...]  # Role, label, and one cell for each column
    note: str  # What the net gain and the retention change are


def answer_cards(view: StudyView) -> list[_AnswerCard]:
    return [answer_card(view, task) for task in view.training_tasks]


def answer_card(view: StudyView, task: str) -> _AnswerCard:
    advice, base, unit = view.advice(task), view.base(task), view.unit(task)
    has_net_gain = any(row.arm.net_gain for row in advice.rows)
    columns = (
        *([f"Net gain, {view.net_unit(task).difference}"] if has_net_gain else []),
        f"Score, {unit.score}"
        + (f" (base {number(base.score * unit.scale, unit.digits)})" if base else ""),
        f"Retention change, {view.retention_unit(task).difference}",
        "Size",
        "Training time",
    )
    rows = tuple(
        (_role_text(view, row), row.arm.label, _cells(view, row.arm, has_net_gain))
        for row in advice.rows
    )
    return _AnswerCard(advice, columns, rows, _note(view, task, has_net_gain))


def _note(view: StudyView, task: str, has_net_gain: bool) -> str:
    names, scale = view.retained(task), view.advice(task).forgetting_scale
    if not names:
        return ""
    note = f"Retention change: the mean over {join_names(names)}; below zero was forgotten."
    if has_net_gain:
        objective = view.study.config.objective
        cost = f" Cost counts too, with weight {objective.cost:g}." if objective.cost else ""
        note = (
            f"Net gain: {objective.net_formula} (gain: the score minus the base's; forgetting: "
            "the fall in retention). Arms are compared by it: on validation items to choose one, "
            f"here on test items.{cost}{_narrow(view, task)} {note}"
        )
    return note if scale.name in ("points", "unmeasured") else f"{note} {scale.text}"


def _narrow(view: StudyView, task: str) -> str:
    """Whether a net gain has a part whose items all changed alike, which gives it no spread."""
    flat: dict[str, None] = {}
    for arm in (row.arm for row in view.advice(task).rows):
        parts = {task: arm.gain, "the retention tasks": view.retention_change(arm)}
        if arm.net_gain is not None and arm.net_gain.item_error:
            flat |= dict.fromkeys(n for n, part in parts.items() if part and part.item_error == 0)
    if not flat:
        return ""
    names = join_names(flat)
    return f" Its interval may be too narrow: for some arm, all items of {names} changed alike."


def _role_text(view: StudyView, row: AnswerRow) -> str:
    unit = view.net_unit(row.arm.task)
    margin = f"{number(view.study.config.objective.margin * unit.scale)} {unit.difference}"
    first, *others = (ROW_ROLES[role].format(margin=margin) for role in row.roles)
    return ", ".join([first, *(f"{name[0].lower()}{name[1:]}" for name in others)])


def _cells(view: StudyView, arm: ArmSummary, has_net_gain: bool) -> Cells:
    size = arm.trainable_parameters
    share = number(100 * size / view.study.model.num_parameters)
    net = [_cell(arm.net_gain, view.net_unit(arm.task), sign=True)] if has_net_gain else []
    return (
        *net,
        _cell(arm.score, view.unit(arm.task)),
        _cell(view.retention_change(arm), view.retention_unit(arm.task), sign=True),
        (
            byte_size(BYTES_PER_PARAMETER * size),
            f"{compact(size)} parameters, {share} % of the model; float32",
        ),
        (duration(arm.seconds), "per trial"),
    )


def _cell(estimate: Estimate | None, unit: Unit, *, sign: bool = False) -> tuple[str, str]:
    if estimate is None:
        return UNKNOWN, "not measured"

    def shown(value: float) -> str:
        return signed(value, unit) if sign else number(value * unit.scale, unit.digits)

    if estimate.low is None or estimate.high is None:
        return shown(estimate.value), "interval unknown"
    return shown(estimate.value), f"{shown(estimate.low)} to {shown(estimate.high)}"


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
    few = sum(0 < a.seeds < FEWEST_SEEDS for task in view.training_tasks for a in view.arms(task))
    sentences = {
        "The study has no trials: only the base model is shown.": not total,
        f"None of the {count(total, 'trial')} has finished: only the base is shown.": total
        and not done,
        f"{done} of {count(total, 'trial')} finished; the others: {rest}.": 0 < done < total,
        f"The base has no score on {join_names(unscored)}: changes there are unknown.": unscored,
        "There is no retention task, so what training lost is unknown.": not view.retention_tasks,
        f"{count(few, 'arm')} {'has' if few == 1 else 'have'} fewer than {FEWEST_SEEDS} finished "
        "seeds: the spread between training runs is not known well.": few,
    }
    known = {type(record) for trial in study.trials for record in trial.analyses}
    sentences |= {a.absence: done and a.record_type() not in known for a in all_analyses()}
    return [safe_text(text, 500) for text, applies in sentences.items() if text and applies]
