"""Spectra as tables: by matrix, layer and module type."""

from collections.abc import Sequence

import pandas as pd

from rankscope.analyses.spectra.record import MatrixSpectrum, SpectraRecord
from rankscope.analyses.tables import TableRow

SIDED = (
    "similarity_index",
    "similarity_max",
    "similarity_subspace",
    "chance_index",
    "chance_max",
    "chance_subspace",
)
"""Fields that are pairs (left, right); each becomes two columns."""
AVERAGED = (
    *("relative", "effective_rank", "stable_rank", "intruder_energy"),
    *(f"{name}_{side}" for name in SIDED for side in ("left", "right")),
)


def spectra_tables(models: Sequence[tuple[TableRow, SpectraRecord]]) -> dict[str, pd.DataFrame]:
    """``matrices``, ``layers`` and ``modules``; rows begin with the columns of their model."""
    rows = [model | matrix_row(matrix) for model, found in models for matrix in found.matrices]
    if not rows:
        return {}
    matrices, identity = pd.DataFrame(rows), list(models[0][0])
    return {
        "matrices": matrices,
        "layers": _summed(matrices, [*identity, "layer"]),
        "modules": _summed(matrices, [*identity, "module"]),
    }


def matrix_row(matrix: MatrixSpectrum) -> TableRow:
    """The fields of a matrix; each pair (left, right) as two columns."""
    row: TableRow = {"out": matrix.shape[0], "in": matrix.shape[1]}
    row |= matrix.model_dump(exclude={"schema_version", "shape", *SIDED})
    for name in SIDED:
        row[f"{name}_left"], row[f"{name}_right"] = getattr(matrix, name)
    return row


def _summed(matrices: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row per value of ``keys``: norms add in squares, counts add, the rest are means."""
    squares = matrices.assign(frobenius=matrices["frobenius"] ** 2, matrices=1)
    sums = dict.fromkeys(("matrices", "frobenius", "intruders", "ill_conditioned"), "sum")
    groups = squares.groupby(keys, sort=False, dropna=False)
    table = groups.agg({**sums, **dict.fromkeys(AVERAGED, "mean")}).reset_index()
    return table.assign(frobenius=table["frobenius"] ** 0.5)
