"""An inspection as Parquet tables: by matrix, by layer, by type of module."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.records.inspection import Inspection, TunedModel
from rankscope.records.spectra import MatrixSpectrum

SIDED = (
    "similarity_index",
    "similarity_max",
    "similarity_subspace",
    "chance_index",
    "chance_max",
    "chance_subspace",
)
"""Fields that are a pair, left and right."""
AVERAGED = ("relative", "effective_rank", "stable_rank", "intruder_energy")


def write_tables(found: Inspection, folder: Path) -> None:
    """Write ``matrices``, ``layers`` and ``modules.parquet`` into a folder."""
    tables: Mapping[str, list[dict[str, object]]] = {
        "matrices": [
            model_row(model) | matrix_row(m)
            for model in found.tuned
            for m in model.spectra.matrices
        ],
        "layers": summed(found, "layer", lambda m: m.layer),
        "modules": summed(found, "module", lambda m: m.module),
    }
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def model_row(model: TunedModel) -> dict[str, object]:
    """What identifies a tuned model."""
    return {
        "model": model.name,
        "kind": model.kind,
        "rank": model.rank,
        "scaling": model.scaling,
    }


def matrix_row(matrix: MatrixSpectrum) -> dict[str, object]:
    """All of one matrix, pairs as two columns."""
    fields = matrix.model_dump(exclude={"schema_version", "shape", *SIDED})
    row: dict[str, object] = {"out": matrix.shape[0], "in": matrix.shape[1]}
    row |= {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}
    return row | sides([matrix])


def sides(matrices: Sequence[MatrixSpectrum]) -> dict[str, object]:
    """Means of the paired fields, left and right."""
    return {
        f"{name}_{side}": fmean(getattr(m, name)[place] for m in matrices)
        for name in SIDED
        for place, side in enumerate(("left", "right"))
    }


def summed(
    found: Inspection, name: str, key: Callable[[MatrixSpectrum], object]
) -> list[dict[str, object]]:
    """Rows by model and ``key``: norms add in squares, counts add, the rest are means."""
    rows = []
    for model in found.tuned:
        for value in dict.fromkeys(key(m) for m in model.spectra.matrices):
            own = [m for m in model.spectra.matrices if key(m) == value]
            row = model_row(model) | {name: value, "matrices": len(own)}
            row["frobenius"] = sum(m.frobenius**2 for m in own) ** 0.5
            row["intruders"] = sum(m.intruders for m in own)
            row["ill_conditioned"] = sum(m.ill_conditioned for m in own)
            row |= {field: fmean(getattr(m, field) for m in own) for field in AVERAGED}
            rows.append(row | sides(own))
    return rows
