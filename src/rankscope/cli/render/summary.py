"""What ``run`` and ``report`` print: one row per arm, and the answer in words."""

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import print_line
from rankscope.formatting import (
    UNKNOWN,
    clock,
    compact,
    number,
    percent,
    plus_minus,
    terminal_text,
)
from rankscope.records import LEFT_OUT, ArmSummary, Recommendation, StudyRecords
from rankscope.report.answer import answer_lines
from rankscope.report.page_limit import limited, not_shown
from rankscope.report.study_view import StudyView

CHOSEN = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"
_NUMBERS = ("seeds", "net gain", "P within", "score", "retention", "params", "time")


def summary_table(study: StudyRecords, recommendation: Recommendation) -> Group:
    """A table per training task: the base, then one row per arm, the recommended one marked.

    ``±`` is half the 95 % interval, ``±?`` an unknown one; seeds ``2/3``: one of three failed.
    """
    whole = StudyView(study, recommendation)
    view = limited(whole)
    notes = [_caption(view), *not_shown(whole, view)]
    tables = [_task_table(view, task) for task in view.training_tasks]
    return Group(*tables, *(Text(terminal_text(note)) for note in notes))


def _task_table(view: StudyView, task: str) -> Table:
    base, unit, chosen = view.base(task), view.unit(task), view.advice(task).chosen
    score = number(base.score * unit.scale, unit.digits) if base else "not scored"
    rows = [{"": "", "arm": "base"} | dict.fromkeys(_NUMBERS, "") | {"score": score}]
    rows += [
        {"": CHOSEN if arm == chosen else "", "arm": arm.label}
        | dict(zip(_NUMBERS, _numbers(view, arm), strict=True))
        for arm in view.arms(task)
    ]
    if not view.arms(task):
        rows.append({"arm": "no arm has finished"})
    styles = ["bold green" if row.get("") else "" for row in rows]
    return terminal_table(rows, f"{view.study.name}, {task}", right=_NUMBERS, styles=styles)


def _numbers(view: StudyView, arm: ArmSummary) -> Iterator[str]:
    numbers = view.numbers(arm)
    yield f"{arm.seeds}/{arm.seeds + arm.failed}" if arm.failed else str(arm.seeds)
    yield plus_minus(*numbers["expected_net_gain"], sign=True)
    yield percent(arm.expected.p_within_margin) if arm.expected else UNKNOWN
    yield plus_minus(*numbers["score"])
    yield plus_minus(*numbers["retention_change"], sign=True)
    is_known = arm.trainable_parameters or not arm.trains
    yield compact(arm.trainable_parameters) if is_known else UNKNOWN
    yield clock(arm.seconds)


def _caption(view: StudyView) -> str:
    """What the columns are, with their units; tasks of a study may differ."""
    tasks = view.training_tasks

    def either(texts: list[str]) -> str:
        return " or ".join(sorted(set(texts)))

    parts = [
        f"net gain: {view.study.config.objective.formula}, expected from all items, seeds and "
        f"arms, in {either([view.net_unit(task).difference for task in tasks])}",
        f"P within: probability of being within {either([view.margin(task) for task in tasks])} "
        "of the best",
        f"score and retention change: measured on test items, in "
        f"{either([view.unit(task).score for task in tasks])} and "
        f"{either([view.retention_unit(task).difference for task in tasks])}",
        "± half the 95 % interval; time per trial",
    ]
    without = [arm for task in tasks for arm in view.arms(task) if arm.score is None]
    if without:
        statuses = {trial.status for arm in without for trial in view.trials(arm)}
        by_choice = view.study.config.strategy == "adaptive" and statuses <= {"done", *LEFT_OUT}
        reason = ", as only finalists are" if by_choice else ""
        parts.append(f"{UNKNOWN} not scored on test items{reason}")
    return "; ".join(parts)


def print_answer(recommendation: Recommendation, *, with_reasons: bool) -> None:
    """Print the answer for each training task, with its reasons if asked for."""
    for advice in recommendation.advice:
        verdict, *lines = answer_lines(advice, with_reasons=with_reasons)
        print_line(verdict, "bold")
        print_line("\n".join(f"  {line}" for line in lines))
