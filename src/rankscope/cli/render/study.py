"""What ``check`` and ``plan`` print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import note_lines
from rankscope.data.preview import highlight_row
from rankscope.formatting import byte_size, count, rough_duration, terminal_text
from rankscope.records import TaskRecord

if TYPE_CHECKING:
    from rankscope.run.plan import Plan
    from rankscope.run.prepared import PreparedStudy

CONTAMINATION_KINDS = {"exact": "exact", "ngram13": "13-gram"}


def check_result(prepared: PreparedStudy, rows_shown: int) -> RenderableType:
    """Tasks, splits, contamination, notes, and the first training rows as coloured tokens."""
    return Group(
        _tasks_table(prepared.task_records),
        *_sources(prepared.task_records),
        *(part for name in prepared.rows for part in _rows_as_tokens(prepared, name, rows_shown)),
        *note_lines(prepared.notes),
        Text(f"\n{_counts(len(prepared.trials), len(prepared.groups))}: the study can run."),
    )


def _tasks_table(records: Sequence[TaskRecord]) -> Table:
    rows: list[dict[str, object]] = []
    for record in records:
        counts = record.contamination.items()
        kinds = [f"{n} {CONTAMINATION_KINDS[kind]}" for kind, n in counts if n]
        rows.append(
            {
                "task": record.name,
                "roles": ", ".join(role.replace("_", "-") for role in record.roles),
                "metric": record.metric,
                "train": record.rows["train"] if record.trained_on else None,
                "validation": record.rows["validation"],
                "test": record.rows["test"],
                "contamination": (", ".join(kinds) or "none") if record.trained_on else None,
            }
        )
    return terminal_table(rows, "tasks")


def _sources(records: Sequence[TaskRecord]) -> Iterator[RenderableType]:
    """Where rows came from, a line per source: ``pocket_med, pocket_law: rows from ...``."""
    tasks: dict[str, list[str]] = {}
    for record in records:
        tasks.setdefault(record.source, []).append(record.name)
    for source, names in tasks.items():
        yield Text(terminal_text(f"{', '.join(names)}: rows from {source}"), overflow="fold")


def _rows_as_tokens(
    prepared: PreparedStudy, name: str, rows_shown: int
) -> Iterator[RenderableType]:
    """Counts of a task's training rows, and the first rows as coloured tokens."""
    rows, encoder = prepared.rows[name], prepared.encoder
    yield Text(
        f"\n{name}: {len(rows.rows):,} training rows ({encoder.prompt_format} prompts), "
        f"{rows.num_tokens:,} tokens; {rows.num_label_tokens:,} carry loss (marked). "
        f"{rows.dropped:,} rows dropped, {rows.truncated:,} cut"
    )
    for row in rows.rows[:rows_shown]:
        yield Padding(highlight_row(encoder, row), (1, 0, 0, 2))


def _counts(trials: int, groups: int) -> str:
    return f"{count(trials, 'trial')} in {count(groups, 'group')}"


def _trial_names(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{len(labels)} adapters"


def plan_table(plan: Plan) -> RenderableType:
    """A row per group of trials, then totals."""
    several = len({group.task for group in plan.groups}) > 1
    rows = [
        {
            "group": number,
            **({"task": group.task} if several else {}),
            "trials": _trial_names(group.labels),
            "steps": group.steps,
            "tokens": group.num_tokens,
            "memory": byte_size(group.memory_bytes),
            "time": rough_duration(group.seconds),
            "limit": group.limited_by.split()[0],
        }
        for number, group in enumerate(plan.groups, 1)
    ]
    title = f"{plan.study} on {plan.model} ({plan.device}, {plan.dtype})"
    curve = f" and {plan.curve_evaluations:,} while training" if plan.curve_evaluations else ""
    totals = (
        f"{_counts(plan.trials, len(plan.groups))}, {plan.evaluations:,} evaluations{curve}: "
        f"{plan.train_tokens:,} tokens to train on, {plan.evaluation_tokens:,} to score; "
        f"about {byte_size(plan.disk_bytes)} on disk and {rough_duration(plan.seconds)} "
        f"(estimated from {plan.measured_gflops:,.0f} GFLOP/s measured here)."
    )
    table = terminal_table(rows, title, right=("memory", "time"))
    return Group(table, Text(totals), *note_lines(plan.notes))
