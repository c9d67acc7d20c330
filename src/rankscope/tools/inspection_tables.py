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
        "heads": pd.DataFrame([row for model, h in heads for row in _head_rows(model, h)]),
        "kv_heads": pd.DataFrame([row for model, h in heads for row in _kv_head_rows(model, h)]),
        "head_ablations": pd.DataFrame(
            [row for model, h in heads for row in _ablation_rows(model, h)]
        ),
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


def _head_rows(model: TableRow, heads: HeadsRecord) -> Iterator[TableRow]:
    roles = {(role.layer, role.head): role for role in heads.roles}
    changes = _changes(heads)
    for before, after in zip(heads.base, heads.tuned, strict=True):
        for head in range(len(after.importance)):
            role = roles.get((after.layer, head))
            yield {
                **model,
                "layer": after.layer,
                "head": head,
                **_change_columns(changes, ("q_proj", "o_proj"), after.layer, head),
                "importance_before": before.importance[head],
                "importance_after": after.importance[head],
                "entropy_before": before.entropy[head],
                "entropy_after": after.entropy[head],
                "skill": None if role is None else role.skill,
                "lost": None if role is None else role.lost,
            }


def _kv_head_rows(model: TableRow, heads: HeadsRecord) -> Iterator[TableRow]:
    changes = _changes(heads)
    for before, after in zip(heads.base, heads.tuned, strict=True):
        for head in range(len(after.group_importance)):
            yield {
                **model,
                "layer": after.layer,
                "head": head,
                **_change_columns(changes, ("k_proj", "v_proj"), after.layer, head),
                "importance_before": before.group_importance[head],
                "importance_after": after.group_importance[head],
            }


def _changes(heads: HeadsRecord) -> dict[tuple[str, int, int], tuple[float, float]]:
    """(|dW_h|_F, |dW_h|_F / |W0_h|_F) by module, layer and head."""
    return {
        (change.module, change.layer, head): pair
        for change in heads.changes
        for head, pair in enumerate(zip(change.frobenius, change.relative, strict=True))
    }


def _change_columns(
    changes: dict[tuple[str, int, int], tuple[float, float]],
    modules: tuple[str, ...],
    layer: int,
    head: int,
) -> TableRow:
    row: TableRow = {}
    for module in modules:
        pair = changes.get((module, layer, head), (None, None))
        row[f"{module}_frobenius"], row[f"{module}_relative"] = pair
    return row


def _ablation_rows(model: TableRow, heads: HeadsRecord) -> Iterator[TableRow]:
    """Rows by task and removed query head; those without a head are of whole layers."""
    for ablation in heads.ablations:
        identity = {**model, "task": ablation.task, "items": ablation.items}
        for layer, errors in enumerate(ablation.gold_difference_error):
            for head, error in enumerate(errors):
                yield {
                    **identity,
                    "layer": layer,
                    "head": head,
                    "score_change_before": ablation.base_change[layer][head],
                    "score_change_after": ablation.tuned_change[layer][head],
                    "gold_change_before": ablation.base_gold_change[layer][head],
                    "gold_change_after": ablation.tuned_gold_change[layer][head],
                    "gold_difference_error": error,
                }
        whole = zip(ablation.base_layer_gold_change, ablation.tuned_layer_gold_change, strict=True)
        for layer, (before, after) in enumerate(whole):
            yield {
                **identity,
                "layer": layer,
                "gold_change_before": before,
                "gold_change_after": after,
            }
