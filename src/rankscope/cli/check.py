"""Output of ``check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rankscope.cli.terminal import folded, note_lines, terminal_table
from rankscope.formatting import count, terminal_text
from rankscope.records import TaskRecord

if TYPE_CHECKING:
    from rankscope.data.encode import EncodedRow, Encoder
    from rankscope.run.prepared import PreparedStudy

LABEL_OPEN, LABEL_CLOSE = "\u27e6", "\u27e7"  # Marks around labels, which also show without color
PROMPT_STYLES = ("dim", "dim underline")
LABEL_STYLES = ("black on green", "black on bright_green")
SPECIAL_STYLE = "bold magenta"
LABELED_SPECIAL_STYLE = "bold magenta on green"
MAX_TOKENS = 2000


def check_result(prepared: PreparedStudy, rows_shown: int, next_step: str) -> RenderableType:
    """Show tasks, splits, contamination, the first rows as colored tokens, notes and advice."""
    records = prepared.task_records
    trials, groups = len(prepared.trials), len(prepared.groups)
    return Group(
        _tasks_table(prepared),
        *_sources(records),
        *(
            part
            for name in prepared.data.rows
            for part in _rows_as_tokens(prepared, name, rows_shown)
        ),
        *note_lines(prepared.notes),
        Text(f"\n{count(trials, 'trial')} in {count(groups, 'group')}: the study can run."),
        *(folded(f"warning: {advice}", "bold yellow") for advice in _advice(records)),
        folded(f"next: {next_step}"),
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
    """Yield a line per source and shape: ``pocket_med, pocket_law: multiple choice, from ...``."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for record in records:
        tasks.setdefault((record.row_shape, record.source), []).append(record.name)
    for (shape, source), names in tasks.items():
        yield folded(f"{', '.join(names)}: rows read as {shape}, from {source}")


def _rows_as_tokens(
    prepared: PreparedStudy, name: str, rows_shown: int
) -> Iterator[RenderableType]:
    rows, encoder = prepared.data.rows[name], prepared.data.encoder
    yield Text(
        f"\n{name}: {len(rows.rows):,} training rows ({encoder.prompt_format} prompts), "
        f"{rows.num_tokens:,} tokens; {rows.num_label_tokens:,} carry loss (marked). "
        f"{rows.dropped:,} rows too long, {rows.truncated:,} cut"
    )
    for row in rows.rows[:rows_shown]:
        yield Padding(_highlight_row(encoder, row), (1, 0, 0, 2))


# --- a row as tokens ----------------------------------------------------------------------------


def _token_text(encoder: Encoder, token_id: int, before: int | None) -> str:
    """Return one token's text after the token before it, with the space of a word-level token.

    A token that is part of a character is shown by its name in the vocabulary.
    """
    decode = encoder.tokenizer.decode
    text = str(decode([token_id]))
    if before is not None:
        first, pair = str(decode([before])), str(decode([before, token_id]))
        if pair.startswith(first):
            text = pair[len(first) :]
    if "\ufffd" in text or not text:
        text = str(encoder.tokenizer.convert_ids_to_tokens(token_id))
    return text


def _marked_lines(text: str) -> str:
    """Make text safe for a terminal, with a visible mark at each line break."""
    return terminal_text(text).replace("\\n", "\\n\n")


def _highlight_row(encoder: Encoder, row: EncodedRow) -> Text:
    """Show the row's tokens in alternating shades, with labels green and between marks.

    Special tokens are shown by name; only the first ``MAX_TOKENS`` are highlighted.
    """
    highlighted = Text()
    inside = False
    pairs = list(zip(row.input_ids, row.is_label, strict=True))
    for position, (token_id, is_label) in enumerate(pairs[:MAX_TOKENS]):
        if is_label != inside:
            highlighted.append(LABEL_OPEN if is_label else LABEL_CLOSE, style="bold green")
            inside = is_label
        if token_id in encoder.special_ids:
            style = LABELED_SPECIAL_STYLE if is_label else SPECIAL_STYLE
        else:
            style = (LABEL_STYLES if is_label else PROMPT_STYLES)[position % 2]
        before = pairs[position - 1][0] if position else None
        highlighted.append(_marked_lines(_token_text(encoder, token_id, before)), style=style)
    if inside:
        highlighted.append(LABEL_CLOSE, style="bold green")
    if len(pairs) > MAX_TOKENS:
        highlighted.append(f"\n... {len(pairs) - MAX_TOKENS} more tokens", style="italic")
    if row.truncated:
        highlighted.append("\n(the answer is cut at max_length)", style="bold red")
    return highlighted
