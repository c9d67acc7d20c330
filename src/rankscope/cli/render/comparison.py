"""What ``compare`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.cli.render.tables import listing, notes_lines
from rankscope.formatting import terminal_text
from rankscope.records import ComparedCell, Estimate, StudyComparison, StudyPair

MAX_NAMES = 8
"""Arms of one study alone that are named; the others are counted."""


def comparison_screen(found: StudyComparison) -> RenderableType:
    """The answers side by side; then, pair by pair, what is the same and how arms compare."""
    return Group(
        answers_table(found),
        *headlines(found),
        *(part for pair in found.pairs for part in pair_parts(pair, len(found.pairs) > 1)),
    )


def answers_table(found: StudyComparison) -> Table:
    """A row per training task and study: base, trials, decision, arm, confidence."""
    headings = ("task", "study", "base", "trials", "answer", "arm", "confidence")
    table = listing("answers", headings, frozenset({"trials"}))
    for place, task in enumerate(training_tasks(found)):
        if place:
            table.add_section()
        for position, study in enumerate(found.studies):
            answer = next((a for a in study.answers if a.task == task), None)
            table.add_row(
                terminal_text(task) if not position else "",
                terminal_text(study.label),
                terminal_text(study.base),
                f"{study.done}/{study.trials}",
                answer.decision.replace("_", " ") if answer else "not trained on",
                terminal_text(answer.chosen_label or "-") if answer else "",
                answer.confidence if answer else "",
            )
    return table


def training_tasks(found: StudyComparison) -> list[str]:
    """Tasks that any of the studies answers."""
    return list(dict.fromkeys(a.task for study in found.studies for a in study.answers))


def headlines(found: StudyComparison) -> list[RenderableType]:
    """The answers in words; equal ones once."""
    lines: list[RenderableType] = []
    for task in training_tasks(found):
        said: dict[str, list[str]] = {}
        for study in found.studies:
            for answer in study.answers:
                if answer.task == task:
                    said.setdefault(answer.headline, []).append(study.label)
        lines += [
            Text(
                f"{', '.join(map(terminal_text, labels))}: {terminal_text(headline)}",
                overflow="fold",
            )
            for headline, labels in said.items()
        ]
    return [*lines, Text()]


def pair_parts(pair: StudyPair, several: bool) -> list[RenderableType]:
    """What is the same, then a table per training task, of one pair of studies."""
    title = f"{pair.second} against {pair.first}" if several else "what they are made of"
    same = listing(title, ("what", "same", "in words"), frozenset({"same"}))
    for facet in pair.facets:
        style = "" if facet.same else "yellow"
        same.add_row(
            terminal_text(facet.what),
            "yes" if facet.same else "no",
            terminal_text(facet.text),
            style=style,
        )
    groups: dict[str | None, list[ComparedCell]] = {}
    for cell in pair.cells:
        groups.setdefault(cell.trained_on, []).append(cell)
    return [
        same,
        *(cells_table(pair, task, cells) for task, cells in groups.items()),
        *alone("first", pair.first, pair.only_first),
        *alone("second", pair.second, pair.only_second),
        *notes_lines([*pair.notes, *meaning(pair)]),
    ]


def meaning(pair: StudyPair) -> list[str]:
    """How to read the differences."""
    if not pair.cells:
        return []
    words = ["accuracies in %, differences in points: second minus first, 95 % intervals"]
    if any(cell.paired and cell.arm for cell in pair.cells):
        words.append("p of arms within the family of all paired arms and tasks (Holm)")
    if any(cell.difference.p is not None and cell.arm is None for cell in pair.cells):
        words.append("p of the bases: not adjusted")
    if any(not cell.paired for cell in pair.cells):
        words.append("* not the same items: unpaired")
    return ["; ".join(words)]


def cells_table(pair: StudyPair, task: str | None, cells: Sequence[ComparedCell]) -> Table:
    """Every arm trained on one task (None: the bases), task by task."""
    title = "bases, untuned" if task is None else f"trained on {task}"
    numbers = ("first", "second", "difference", "p")
    table = listing(title, ("arm", "tested on", *numbers), frozenset(numbers))
    last = ""
    for cell in cells:
        arm = cell.arm or "base"
        if last and arm != last:
            table.add_section()
        table.add_row(
            terminal_text(arm) if arm != last else "",
            terminal_text(cell.tested_on),
            level(cell.first, cell),
            level(cell.second, cell),
            difference(cell.difference, cell),
            p_value(cell.difference),
        )
        last = arm
    return table


def level(estimate: Estimate, cell: ComparedCell) -> str:
    """``51.2 ±1.0``: half the 95 % interval, ``±?`` where it is unknown."""
    scale, digits = scale_of(cell)
    if estimate.low is None or estimate.high is None:
        return f"{scale * estimate.value:.{digits}f} ±?"
    half = scale * (estimate.high - estimate.low) / 2
    return f"{scale * estimate.value:.{digits}f} ±{half:.{digits}f}"


def difference(estimate: Estimate, cell: ComparedCell) -> str:
    """``+2.5 [-0.5, +5.5]``; ``*`` marks an unpaired one."""
    scale, digits = scale_of(cell)
    star = "" if cell.paired else "*"
    value = f"{round(scale * estimate.value, digits) + 0.0:+.{digits}f}{star}"
    if cell.same_models and cell.paired:
        return f"{value} same models"
    if estimate.low is None or estimate.high is None:
        return f"{value} [?]"
    low, high = (round(scale * end, digits) + 0.0 for end in (estimate.low, estimate.high))
    return f"{value} [{low:+.{digits}f}, {high:+.{digits}f}]"


def p_value(estimate: Estimate) -> str:
    """Within the family where it belongs to one; empty where no test was made."""
    p = estimate.p if estimate.p_holm is None else estimate.p_holm
    if p is None:
        return ""
    return "<.001" if p < 0.001 else f"{p:.3f}"


def scale_of(cell: ComparedCell) -> tuple[int, int]:
    """Factor and digits after the point: per cent and points, or nats per token."""
    return (100, 1) if cell.score_unit == "accuracy" else (1, 3)


def alone(which: str, label: str, arms: Sequence[str]) -> list[RenderableType]:
    """Arms that one study alone has."""
    if not arms:
        return []
    more = f" and {len(arms) - MAX_NAMES} more" if len(arms) > MAX_NAMES else ""
    names = ", ".join(map(terminal_text, arms[:MAX_NAMES]))
    return [Text(f"in the {which} alone ({terminal_text(label)}): {names}{more}", overflow="fold")]
