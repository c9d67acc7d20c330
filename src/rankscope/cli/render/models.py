"""What verbs of models and adapters print: ``eval``, ``inspect``, ``shrink`` and ``params``."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import hypot
from operator import itemgetter

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.analyses import all_analyses
from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import note_lines
from rankscope.device import choose_device, choose_dtype
from rankscope.formatting import (
    byte_size,
    count,
    score_text,
    terminal_text,
    unit_of,
)
from rankscope.models.parameters import (
    ADAMW_STATES,
    FLOAT32_BYTES,
    Architecture,
    largest_useful_rank,
    lora_parameters,
)
from rankscope.models.scaling import layer_index
from rankscope.records import AdapterChange, MatrixChange, ModelScore, StudyRecords
from rankscope.report.columns import Column
from rankscope.report.table_formats import frame_rows
from rankscope.report.tables import given_table

SHOWN_LEFT_OUT = 3  # Parameters named that an adapter leaves out
_TITLE = ("task", "metric", "chance")
_LEGEND = "change against the base on the same items, with 95 % interval"


def scores_tables(scores: Sequence[ModelScore]) -> RenderableType:
    """A table per task: the base and its adapters, as in the study's table of given models."""
    frame, parts = given_table(scores), list[RenderableType]()
    rows = [dict(zip(frame.columns, row, strict=True)) for row in frame_rows(frame)]
    for (task, metric, chance), group in groupby(rows, itemgetter(*_TITLE)):
        of_task = [{n: cell for n, cell in row.items() if n not in _TITLE} for row in group]
        unit = unit_of(of_task[0]["score_unit"])
        guessing = "" if chance is None else f", guessing gives {score_text(chance, unit)}"
        parts.append(terminal_table(of_task, f"{task}: {metric}{guessing}", frame.attrs["columns"]))
    return Group(*parts, Text(_LEGEND if any(score.change for score in scores) else ""))


def inspection_tables(study: StudyRecords) -> RenderableType:
    """Tables and notes of each analysis of the given models."""
    parts = [analysis.terminal(study) for analysis in all_analyses()]
    forced = [
        f"{t.spec.arm_label}: records another base; compared with this one because of --force"
        for t in study.trials
        if t.spec.given and t.spec.given.other_base is not None
    ]
    notes = [*forced, *(note for _, notes in parts for note in notes)]
    return Group(*(table for tables, _ in parts for table in tables), *note_lines(notes))


def changes_tables(changes: Sequence[AdapterChange]) -> RenderableType:
    """What ``shrink`` changed: per adapter written, a row per kind of matrix and the whole."""
    return Group(*(part for change in changes for part in _change(change)))


def _change(change: AdapterChange) -> Iterator[RenderableType]:
    kinds: dict[str, list[MatrixChange]] = {}
    for matrix in change.matrices:
        kinds.setdefault(matrix.name.rpartition(".")[2], []).append(matrix)
    ratio = "|dW-dW'|/|dW|"
    rows = [_kind_row(kind, matrices) for kind, matrices in kinds.items()]
    yield terminal_table(rows, f"{change.action}; change is {ratio}", right=("rank", "most in"))
    share = change.error / change.frobenius if change.frobenius else 0.0
    whole = f"in all {len(change.matrices)} matrices {ratio} = {share:.3g}"
    yield Text(terminal_text(f"{whole}; written to {change.out}") + "\n")
    if change.uniform is not None:
        rank, parameters, kept = change.uniform
        rows = [
            {
                "ranks": "by module",
                "parameters": f"{change.parameters:,}",
                "energy kept": change.kept,
            },
            {"ranks": f"{rank} in each", "parameters": f"{parameters:,}", "energy kept": kept},
        ]
        yield terminal_table(rows, "|dW'|^2/|dW|^2", {"energy kept": Column(digits=4)})
    if change.left_out:
        largest = sorted(change.left_out, key=lambda name: -change.left_out[name])[:SHOWN_LEFT_OUT]
        named = ", ".join(f"{name} ({change.left_out[name]:.2%})" for name in largest)
        tensors = count(len(change.left_out), "tensor")
        lost = f"{sum(change.left_out.values()):.2%} of the whole update's energy |dW|^2"
        yield Text(terminal_text(f"not in the adapter: {tensors} with {lost}: {named}") + "\n")


def _kind_row(kind: str, matrices: Sequence[MatrixChange]) -> dict[str, object]:
    """The matrices of one kind, over all layers; norms are of all of them together."""
    before, after, error = (
        hypot(*(getattr(matrix, name) for matrix in matrices))
        for name in ("frobenius_before", "frobenius_after", "error")
    )
    worst = max(matrices, key=lambda m: m.error / m.frobenius_before if m.frobenius_before else 0.0)
    layer = layer_index(worst.name)
    return {
        "matrices": kind,
        "layers": len(matrices),
        "rank": f"{_span(m.rank_before for m in matrices)} to "
        f"{_span(m.rank_after for m in matrices)}",
        "|dW|": before,
        "|dW'|": after,
        "change": error / before if before else 0.0,
        "most in": "-" if layer is None else f"layer {layer}",
    }


def _span(ranks: Iterable[int]) -> str:
    known = set(ranks)
    return str(*known) if len(known) == 1 else f"{min(known)}-{max(known)}"


def parameters_table(
    shapes: Architecture, ranks: Sequence[int], targets: Sequence[str]
) -> RenderableType:
    dtype = choose_dtype("auto", choose_device("auto"))
    counts = {str(rank): lora_parameters(shapes, rank, targets) for rank in ranks}
    counts["full"] = shapes.num_parameters
    rows = [
        {
            "rank": label,
            "trainable": f"{count:,}",
            "share": f"{count / shapes.num_parameters:.2%}",
            "weights": byte_size(count * FLOAT32_BYTES),
            "gradients": byte_size(count * FLOAT32_BYTES),
            "AdamW": byte_size(count * FLOAT32_BYTES * ADAMW_STATES),
        }
        for label, count in counts.items()
    ]
    size = byte_size(shapes.num_parameters * dtype.itemsize)
    lines = [
        f"{shapes.num_parameters:,} parameters in the base: {size} in "
        f"{str(dtype).removeprefix('torch.')}."
    ]
    cap = largest_useful_rank(shapes, targets)
    if any(rank > cap for rank in ranks):
        lines.append(
            f"Ranks above {cap}, the smaller dimension of the smallest target, add no directions."
        )
    table = terminal_table(rows, f"LoRA on {', '.join(targets)}", right=tuple(rows[0]))
    return Group(table, Text("\n".join(lines)))
