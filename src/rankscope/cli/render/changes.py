"""What ``shrink`` prints."""

from collections.abc import Iterable, Iterator, Sequence
from math import hypot

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import note_lines
from rankscope.formatting import terminal_text
from rankscope.models.scaling import layer_index
from rankscope.records import AdapterChange, MatrixChange

_RELATIVE = "/|W0|"


def changes_tables(changes: Sequence[AdapterChange]) -> RenderableType:
    """What ``shrink`` changed: per adapter written, a row per kind of matrix and the whole."""
    last = changes[-1].matrices
    grown = sum(1 for m in last if m.intruders and m.frobenius_after > m.frobenius_before)
    notes = [
        f"{grown} of {len(last)} matrices are further from the base than before, and so are their "
        "controls: intruders belong to the whole weight, so the base's share is scaled as well"
    ]
    parts = [part for change in changes for part in _change(change)]
    return Group(*parts, *note_lines(notes if grown else []))


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


def _kind_row(kind: str, matrices: Sequence[MatrixChange]) -> dict[str, object]:
    """The matrices of one kind, over all layers; norms are of all of them together."""
    before, after, error = (
        hypot(*(getattr(matrix, name) for matrix in matrices))
        for name in ("frobenius_before", "frobenius_after", "error")
    )
    worst = max(matrices, key=lambda m: m.error / m.frobenius_before if m.frobenius_before else 0.0)
    intruders = [m.intruders for m in matrices if m.intruders is not None]
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
        **({"intruders": sum(intruders)} if intruders else {}),
    }


def _span(ranks: Iterable[int]) -> str:
    known = set(ranks)
    return str(*known) if len(known) == 1 else f"{min(known)}-{max(known)}"
