"""An inspection as Parquet tables: by matrix, layer, module type and attention head."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rankscope.records import HeadsRecord, Inspection, MatrixSpectrum, TunedModel

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
MODEL = ["model", "kind", "rank", "scaling"]
BY_HEAD = {
    "score_change_before": "base_change",
    "score_change_after": "tuned_change",
    "gold_change_before": "base_gold_change",
    "gold_change_after": "tuned_gold_change",
    "gold_difference_error": "gold_difference_error",
}
BY_LAYER = {
    "gold_change_before": "base_layer_gold_change",
    "gold_change_after": "tuned_layer_gold_change",
}
"""Columns of ablations, and the fields of the record with the values."""
TableRow = dict[str, object]


def write_tables(inspection: Inspection, folder: Path) -> None:
    """Write a Parquet file per table; those of heads only with heads."""
    matrices = pd.DataFrame(
        [_identity(m) | matrix_row(x) for m in inspection.tuned for x in m.spectra.matrices]
    )
    heads = [(_identity(m), m.heads) for m in inspection.tuned if m.heads is not None]
    tables = {
        "matrices": matrices,
        "layers": _summed(matrices, "layer"),
        "modules": _summed(matrices, "module"),
        "heads": pd.DataFrame(row for m, h in heads for row in _head_rows(m, h, True)),
        "kv_heads": pd.DataFrame(row for m, h in heads for row in _head_rows(m, h, False)),
        "head_ablations": pd.DataFrame(row for m, h in heads for row in _ablation_rows(m, h)),
    }
    for name, table in tables.items():
        if len(table):
            integers = {column: "Int64" for column in ("rank", "layer", "head") if column in table}
            table.astype(integers).to_parquet(folder / f"{name}.parquet", index=False)


def _identity(model: TunedModel) -> TableRow:
    return {"model": model.name, "kind": model.kind, "rank": model.rank, "scaling": model.scaling}


def matrix_row(matrix: MatrixSpectrum) -> TableRow:
    """The fields of a matrix; each pair (left, right) as two columns."""
    row: TableRow = {"out": matrix.shape[0], "in": matrix.shape[1]}
    row |= matrix.model_dump(exclude={"schema_version", "shape", *SIDED})
    for name in SIDED:
        row[f"{name}_left"], row[f"{name}_right"] = getattr(matrix, name)
    return row


def _summed(matrices: pd.DataFrame, key: str) -> pd.DataFrame:
    """One row per model and ``key``: norms add in squares, counts add, the rest are means."""
    squares = matrices.assign(frobenius=matrices["frobenius"] ** 2, matrices=1)
    sums = dict.fromkeys(("matrices", "frobenius", "intruders", "ill_conditioned"), "sum")
    groups = squares.groupby([*MODEL, key], sort=False, dropna=False)
    table = groups.agg({**sums, **dict.fromkeys(AVERAGED, "mean")}).reset_index()
    return table.assign(frobenius=table["frobenius"] ** 0.5)


def _head_rows(model: TableRow, heads: HeadsRecord, is_query: bool) -> Iterator[TableRow]:
    """One row per query head, or key/value head: the change of its slices, and its importance."""
    modules = ("q_proj", "o_proj") if is_query else ("k_proj", "v_proj")
    fields = ("importance", "entropy") if is_query else ("group_importance",)
    changes = {(c.module, c.layer): (c.frobenius, c.relative) for c in heads.changes}
    roles = {(role.layer, role.head): (role.skill, role.lost) for role in heads.roles}
    for before, after in zip(heads.base, heads.tuned, strict=True):
        for head in range(len(getattr(after, fields[0]))):
            row = {**model, "layer": after.layer, "head": head}
            for module in modules:
                for name, values in zip(
                    ("frobenius", "relative"),
                    changes.get((module, after.layer), (None, None)),
                    strict=True,
                ):
                    row[f"{module}_{name}"] = None if values is None else values[head]
            for field in fields:
                name = field.removeprefix("group_")
                row[f"{name}_before"] = getattr(before, field)[head]
                row[f"{name}_after"] = getattr(after, field)[head]
            if is_query:
                row["skill"], row["lost"] = roles.get((after.layer, head), (None, None))
            yield row


def _ablation_rows(model: TableRow, heads: HeadsRecord) -> Iterator[TableRow]:
    """Rows by task and removed query head; those without a head are of whole layers."""
    for ablation in heads.ablations:
        identity = {**model, "task": ablation.task, "items": ablation.items}
        for layer, errors in enumerate(ablation.gold_difference_error):
            for head in range(len(errors)):
                by_head = {c: getattr(ablation, f)[layer][head] for c, f in BY_HEAD.items()}
                yield {**identity, "layer": layer, "head": head, **by_head}
        for layer in range(len(ablation.base_layer_gold_change)):
            by_layer = {c: getattr(ablation, f)[layer] for c, f in BY_LAYER.items()}
            yield {**identity, "layer": layer, **by_layer}
