"""What ``compare`` prints."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import note_lines
from rankscope.formatting import (
    CONFIDENCES,
    join_names,
    plus_minus,
    signed,
    terminal_text,
    unit_of,
    with_interval,
)
from rankscope.records import ComparedCell
from rankscope.report.analysis_tables import TableRow
from rankscope.tools.compare import FACET_COLUMNS, StudyComparison, StudyPair

MAX_ARMS_NAMED = 8  # Arms of one study alone that are named; the others are counted


def comparison_tables(comparison: StudyComparison) -> RenderableType:
    """The answers side by side; then, pair by pair, what is the same and how arms compare."""
    several = len(comparison.pairs) > 1
    return Group(
        *_answers(comparison),
        *(part for pair in comparison.pairs for part in _pair(pair, several)),
    )


def _answers(comparison: StudyComparison) -> Iterator[RenderableType]:
    """A row for each study and training task, then the verdicts."""
    rows, verdicts = [], []
    for task in comparison.training_tasks:
        for study in comparison.studies:
            answer: TableRow = next((a for a in study.answers if a["task"] == task), {})
            rows.append(
                {
                    "task": task,
                    "study": study.label,
                    "base": study.base,
                    "trials": f"{study.done}/{study.trials}",
                    "answer": str(answer.get("decision", "not trained on")).replace("_", " "),
                    "arm": (answer["chosen_label"] or "-") if answer else "",
                    "confidence": CONFIDENCES.get(str(answer.get("confidence")), ""),
                }
            )
            if answer:
                text = terminal_text(f"{study.label}, {task}: {answer['verdict']}")
                verdicts.append(Text(text, overflow="fold"))
    yield terminal_table(rows, "answers", right=("trials",), sections=("task",))
    yield from (*verdicts, Text())


def _pair(pair: StudyPair, several: bool) -> Iterator[RenderableType]:
    """What two studies share, then a table per training task."""
    yield terminal_table(
        pair.facets,
        f"{pair.second} against {pair.first}" if several else "what they are made of",
        FACET_COLUMNS,
        right=("same",),
        styles=["" if facet["same"] else "yellow" for facet in pair.facets],
    )
    for task in dict.fromkeys(cell.trained_on for cell in pair.cells):
        yield _arms(task, [cell for cell in pair.cells if cell.trained_on == task])
    for label, arms in ((pair.first, pair.only_first), (pair.second, pair.only_second)):
        if arms:
            text = f"only in {label}: {join_names(arms, MAX_ARMS_NAMED)}"
            yield Text(terminal_text(text), overflow="fold")
    yield from note_lines([*pair.notes, *_meaning(pair)])


def _meaning(pair: StudyPair) -> list[str]:
    """How to read the differences, as one note."""
    if not pair.cells:
        return []
    parts = ["accuracies in %, differences in points: second minus first, 95 % intervals"]
    if any(not cell.paired for cell in pair.cells):
        parts.append("* other items, so not paired")
    return ["; ".join(parts)]


def _arms(task: str | None, cells: Sequence[ComparedCell]) -> Table:
    """Every arm trained on one task, or the untuned bases, by tested task."""
    rows = [
        {
            "arm": cell.arm or "base",
            "tested on": cell.tested_on,
            "first": plus_minus(cell.first, unit_of(cell.score_unit)),
            "second": plus_minus(cell.second, unit_of(cell.score_unit)),
            "difference": _difference(cell),
        }
        for cell in cells
    ]
    title = "bases, untuned" if task is None else f"trained on {task}"
    numbers = ("first", "second", "difference")
    return terminal_table(rows, title, right=numbers, sections=("arm",))


def _difference(cell: ComparedCell) -> str:
    """``+2.5 [-0.5, +5.5]``; ``*`` follows an unpaired one."""
    unit = unit_of(cell.score_unit)
    if cell.paired and cell.same_models:
        return f"{signed(cell.difference.value, unit)} same models"
    return with_interval(cell.difference, unit) + ("" if cell.paired else " *")
