"""Tables of a study: the terminal's summary, and the page's lists of failures and data."""

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from rankscope.formatting import (
    MAX_NAME,
    NATS,
    UNKNOWN,
    clock,
    compact,
    number,
    plus_minus,
    safe_text,
)
from rankscope.records import ArmSummary, Recommendation, StudyRecords
from rankscope.report.charts.figure import Cell, Column, DataTable, table
from rankscope.report.study_view import StudyView


def summary_table(study: StudyRecords, recommendation: Recommendation) -> Table:
    """The study in the terminal: one row per arm, the base first, the recommended arm marked.

    Scores are of the test split, in per cent (or nats per token); differences in points; ``±`` is
    half the 95 % interval, ``±?`` where it is unknown; seeds ``2/3``: one of three trials failed.
    """
    view = StudyView(study, recommendation)
    drawn = Table(
        title=escape(safe_text(study.name, MAX_NAME)),
        title_justify="left",
        caption=_caption(view),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    drawn.add_column("", no_wrap=True)
    # Eighty columns must hold the table, and an arm's name is the last thing to give way.
    drawn.add_column("arm", overflow="fold", min_width=15)
    for heading in ("seeds", "in-domain", "gain", "forgetting", "params", "time"):
        drawn.add_column(heading, justify="right")
    for place, task in enumerate(view.training_tasks):
        if place:
            drawn.add_section()
        if len(view.training_tasks) > 1:
            drawn.add_row("", f"[bold]{escape(safe_text(task, MAX_NAME))}[/bold]")
        drawn.add_row(*_base_row(view, task))
        advice = view.advice(task)
        chosen = advice.chosen.label if advice and advice.chosen else None
        for arm in view.arms(task):
            style = "bold green" if arm.label == chosen else ""
            drawn.add_row(*_arm_row(view, arm, arm.label == chosen), style=style)
        if not view.arms(task):
            drawn.add_row("", "no arm has finished")
    return drawn


def _caption(view: StudyView) -> str:
    units = {view.unit(task) for task in view.training_tasks}
    scores = "in-domain in %, gain and forgetting in points"
    if NATS in units:
        scores = "nats per token" if units == {NATS} else f"{scores}, or nats per token"
    return f"{scores}; ± half the 95 % interval; time per trial"


def _base_row(view: StudyView, task: str) -> list[str]:
    base, unit = view.base(task), view.unit(task)
    shown = number(base.score * unit.scale, unit.digits) if base else "not scored"
    return ["", "base", "", shown, "", "", "", ""]


def _arm_row(view: StudyView, arm: ArmSummary, chosen: bool) -> list[str]:
    unit = view.unit(arm.task)
    seeds = f"[red]{arm.seeds}/{arm.seeds + arm.failed}[/red]" if arm.failed else str(arm.seeds)
    return [
        "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}" if chosen else "",
        escape(safe_text(arm.label, MAX_NAME)),
        seeds,
        plus_minus(arm.score, unit),
        plus_minus(arm.gain, unit, sign=True),
        plus_minus(arm.forgetting, view.forgetting_unit(arm.task), sign=True),
        compact(arm.trainable_parameters) if arm.trainable_parameters else UNKNOWN,
        clock(arm.seconds),
    ]


def failed_trials(view: StudyView) -> DataTable:
    """Trials that ended without a result, each with its reason."""
    columns = [Column("trial"), Column("status"), Column("reason"), Column("last step", 0)]
    rows = [
        (
            t.spec.label,
            t.status,
            t.failure or "no reason recorded",
            t.train.losses[-1].step if t.train and t.train.losses else None,
        )
        for t in view.failed()
    ]
    return table(columns, rows)


def tasks_read(view: StudyView) -> DataTable:
    """What each task was read from, its rows per split, and what was left out or contaminated."""
    columns = [
        *(Column("task"), Column("role"), Column("metric"), Column("chance score")),
        *(Column("train rows", 0), Column("validation rows", 0), Column("test rows", 0)),
        *(Column("dropped on reading", 0), Column("contamination, exact", 0)),
        *(Column("contamination, 13-gram", 0), Column("source"), Column("sha256, first digits")),
    ]
    rows = [
        (
            task.name,
            ", ".join(role.replace("_", " ") for role in task.roles),
            task.metric,
            task.chance,
            *(task.rows.get(split) for split in ("train", "validation", "test")),
            task.dropped,
            *(task.contamination.get(kind) for kind in ("exact", "ngram13")),
            task.source,
            task.sha256[:16],
        )
        for task in view.study.tasks
    ]
    return table(columns, rows)


def without_contamination(view: StudyView) -> DataTable:
    """Every test score of a task with contaminated rows, with and without them; the same rows for all.

    Scores are of the record: a share of 1, or nats per token.
    """
    columns = [
        *(Column("task"), Column("model"), Column("score"), Column("items", 0)),
        *(Column("without contaminated rows"), Column("standard error"), Column("items", 0)),
        Column("contaminated rows", 0),
    ]
    labels = {trial.spec.trial_id: trial.spec.label for trial in view.study.trials}
    rows = [
        (
            record.task,
            labels.get(record.trial_id, record.trial_id),
            record.score,
            record.n,
            record.without_contamination.score,
            record.without_contamination.standard_error,
            record.without_contamination.n,
            record.without_contamination.contaminated,
        )
        for record in view.study.evals.values()
        if record.without_contamination is not None
    ]
    return table(columns, rows)


def training_rows(view: StudyView) -> DataTable:
    """Rows and tokens training used per task, the same for every finished trial of the task.

    Where trials differ, the smallest and the largest have a column each.
    """
    fields = {
        "rows": "rows used",
        "rows_dropped": "dropped",
        "rows_truncated": "cut",
        "steps": "optimizer steps",
        "num_tokens": "tokens",
        "num_label_tokens": "label tokens",
    }
    trained = {
        task: [t.train for t in view.study.trials if t.spec.task == task and t.train]
        for task in view.training_tasks
    }
    columns = [Column("training task"), Column("finished trials", 0)]
    rows: list[list[Cell]] = [[task, len(records)] for task, records in trained.items()]
    for field, title in fields.items():
        found = [[int(getattr(r, field)) for r in records] for records in trained.values()]
        pick: list[tuple[str, Callable[[list[int]], int]]] = [(title, min)]
        if any(len(set(values)) > 1 for values in found):
            pick = [(f"{title}, smallest", min), (f"{title}, largest", max)]
        for heading, of in pick:
            columns.append(Column(heading, 0))
            for row, values in zip(rows, found, strict=True):
                row.append(of(values) if values else None)
    return table(columns, rows)
