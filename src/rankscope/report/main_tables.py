"""The tables of a study that go into a paper or a notebook, by the name of their file."""

from rankscope.formatting import NATS, Unit
from rankscope.records import ArmSummary, Estimate, StudyRecords
from rankscope.report.charts.figure import Cell, Column, DataTable, table
from rankscope.report.figures.transfer import change
from rankscope.report.study_view import StudyView
from rankscope.report.tables import failed_trials, tasks_read, training_rows, without_contamination

SIGNIFICANT = 4
"""Digits after the point of a p value."""


def main_tables(view: StudyView) -> dict[str, DataTable]:
    """Name -> table; those without a row are left out. Scores of the test split."""
    return {name: made for name, made in all_tables(view).items() if made.rows}


def all_tables(view: StudyView) -> dict[str, DataTable]:
    """Name -> table, those without a row too."""
    return {
        "arms": arms(view),
        "changes": changes(view),
        "comparisons": comparisons(view),
        "answers": answers(view),
        "tasks": tasks_read(view),
        "training": training_rows(view),
        "failed": failed_trials(view),
        "without-contamination": without_contamination(view),
    }


def answers(view: StudyView) -> DataTable:
    """What was decided on every training task."""
    columns = [Column(title) for title in ("task", "decision", "confidence", "arm", "answer")]
    rows = [
        (
            a.task,
            a.decision.replace("_", " "),
            a.confidence,
            a.chosen.label if a.chosen else None,
            a.headline,
        )
        for a in view.recommendation.advice
    ]
    return table(columns, rows)


def arms(view: StudyView) -> DataTable:
    """Every arm of every training task: settings, scores with 95 % intervals, cost.

    Accuracies in per cent, differences in points; log probabilities in nats per token.
    """
    columns = [
        *(Column(c) for c in ("task", "arm", "method")),
        *(Column("rank", 0), Column("alpha"), Column("learning rate")),
        *(Column("seeds", 0), Column("failed", 0)),
        *interval_columns(view, "score"),
        *interval_columns(view, "gain"),
        *(Column("p", SIGNIFICANT), Column("p, Holm", SIGNIFICANT)),
        *interval_columns(view, "forgetting"),
        *(
            Column("unit"),
            Column("unit of forgetting"),
            Column("trainable parameters", 0),
            Column("seconds a trial", 1),
        ),
        *(Column("peak memory, bytes", 0), Column("recommended")),
    ]
    return table(columns, [arm_row(view, a) for t in view.training_tasks for a in view.arms(t)])


def interval_columns(view: StudyView, title: str) -> list[Column]:
    """A value with the ends of its interval: two digits of points, four where there are nats."""
    digits = 4 if any(view.unit(task.name) == NATS for task in view.study.tasks) else 2
    return [Column(name, digits) for name in (title, f"{title}, low", f"{title}, high")]


def ends(estimate: Estimate | None, unit: Unit) -> tuple[Cell, Cell, Cell]:
    """Value, low and high in the task's unit; None is unknown."""
    if estimate is None:
        return None, None, None
    low, high = (None if e is None else e * unit.scale for e in (estimate.low, estimate.high))
    return estimate.value * unit.scale, low, high


def arm_row(view: StudyView, arm: ArmSummary) -> tuple[Cell, ...]:
    """One arm."""
    unit, gain = view.unit(arm.task), arm.gain
    advice = view.advice(arm.task)
    chosen = advice is not None and advice.chosen is not None and advice.chosen.label == arm.label
    return (
        *(arm.task, arm.label, arm.method, arm.rank, arm.alpha, arm.lr, arm.seeds, arm.failed),
        *ends(arm.score, unit),
        *ends(gain, unit),
        *((None, None) if gain is None else (gain.p, gain.p_holm)),
        *ends(arm.forgetting, view.forgetting_unit(arm.task)),
        *(unit.score, view.forgetting_unit(arm.task).difference),
        *(arm.trainable_parameters or None, arm.seconds, arm.peak_memory_bytes),
        "yes" if chosen else "no",
    )


def changes(view: StudyView) -> DataTable:
    """Every arm on every task it was tested on: change against the base."""
    columns = [
        *(Column(c) for c in ("trained on", "arm", "tested on", "role")),
        *interval_columns(view, "change"),
        *(Column("p", SIGNIFICANT), Column("items", 0), Column("seeds", 0), Column("unit")),
    ]
    rows = [
        (
            *(task, arm.label, tested.name, role(view.study, task, tested.name)),
            *ends(found, view.unit(tested.name)),
            *(found.p, found.n, found.seeds, view.unit(tested.name).difference),
        )
        for task in view.training_tasks
        for arm in view.arms(task)
        for tested in view.study.tasks
        if (found := change(arm, tested.name)) is not None
    ]
    return table(columns, rows)


def role(study: StudyRecords, trained: str, tested: str) -> str:
    """What a tested task is to an arm trained on another."""
    if trained == tested:
        return "in domain"
    return "retention" if "retention" in study.task(tested).roles else "cross domain"


def comparisons(view: StudyView) -> DataTable:
    """LoRA against full fine-tuning and ranks against each other, on the same items."""
    columns = [
        *(Column(c) for c in ("task", "first", "second")),
        *interval_columns(view, "difference"),
        *(Column("p", SIGNIFICANT), Column("p, Holm", SIGNIFICANT), Column("unit")),
    ]
    rows = [
        (
            *(advice.task, c.first_label, c.second_label),
            *ends(c.difference, view.unit(advice.task)),
            *(c.difference.p, c.difference.p_holm, view.unit(advice.task).difference),
        )
        for advice in view.recommendation.advice
        for c in advice.comparisons
    ]
    return table(columns, rows)
