"""What ``check`` prints."""

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
from rankscope.formatting import count, terminal_text
from rankscope.records import TaskRecord

if TYPE_CHECKING:
    from rankscope.run.prepared import PreparedStudy


def check_result(prepared: PreparedStudy, rows_shown: int, next_step: str) -> RenderableType:
    """Tasks, splits, contamination, the first rows as colored tokens, notes and what to do."""
    records = prepared.task_records
    trials, groups = len(prepared.trials), len(prepared.groups)
    return Group(
        _tasks_table(prepared),
        *_sources(records),
        *(part for name in prepared.rows for part in _rows_as_tokens(prepared, name, rows_shown)),
        *note_lines(prepared.notes),
        Text(f"\n{count(trials, 'trial')} in {count(groups, 'group')}: the study can run."),
        *(Text(terminal_text(advice), style="bold") for advice in _advice(records)),
        Text(f"next: {terminal_text(next_step)}", overflow="fold"),
    )


def _tasks_table(prepared: PreparedStudy) -> Table:
    rows: list[dict[str, object]] = []
    for record in prepared.task_records:
        splits = [record.rows[split] for split in ("train", "validation", "test")]
        splits[0] = splits[0] if record.trained_on else 0
        rows.append(
            {
                "task": record.name,
                "used for": ", ".join(role.replace("_", "-") for role in record.roles),
                "scorer": prepared.data.tasks[record.name].spec.scorer,
                "train/val/test": "/".join(f"{n:,}" for n in splits),
                "dropped": record.dropped,
                "seen in train": _overlap(record),
            }
        )
    return terminal_table(rows, "tasks")


def _overlap(record: TaskRecord) -> str | None:
    if not record.trained_on:
        return None
    found = sum(record.contamination.values())
    return f"{found:,} of {record.rows['test']:,}" if found else "none"


def _advice(records: Sequence[TaskRecord]) -> Iterator[str]:
    for record in records:
        if record.trained_on and record.is_contaminated:
            yield (
                f"{record.name}: more than 1 % of the test rows are in the training rows. Remove "
                "them from one of the two, or read the scores without them in the records."
            )
    if not any("retention" in record.roles for record in records):
        yield (
            "No retention task: forgetting will not be measured. Add evaluate.retention, such as "
            "[common_facts], which is built in."
        )


def _sources(records: Sequence[TaskRecord]) -> Iterator[RenderableType]:
    """A line per source and shape: ``pocket_med, pocket_law: multiple choice, from ...``."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for record in records:
        tasks.setdefault((record.row_shape, record.source), []).append(record.name)
    for (shape, source), names in tasks.items():
        line = f"{', '.join(names)}: rows read as {shape}, from {source}"
        yield Text(terminal_text(line), overflow="fold")


def _rows_as_tokens(
    prepared: PreparedStudy, name: str, rows_shown: int
) -> Iterator[RenderableType]:
    rows, encoder = prepared.rows[name], prepared.encoder
    yield Text(
        f"\n{name}: {len(rows.rows):,} training rows ({encoder.prompt_format} prompts), "
        f"{rows.num_tokens:,} tokens; {rows.num_label_tokens:,} carry loss (marked). "
        f"{rows.dropped:,} rows too long, {rows.truncated:,} cut"
    )
    for row in rows.rows[:rows_shown]:
        yield Padding(highlight_row(encoder, row), (1, 0, 0, 2))
