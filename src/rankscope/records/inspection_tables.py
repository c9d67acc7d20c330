"""An inspection as Parquet tables: by matrix, by layer, by type of module, by attention head."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.records.heads import HeadsRecord
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
    """Write ``matrices``, ``layers`` and ``modules.parquet`` into a folder, and where heads were
    looked at ``heads``, ``kv_heads`` and ``head_ablations.parquet``."""
    tables: dict[str, list[dict[str, object]]] = {
        "matrices": [
            model_row(model) | matrix_row(m)
            for model in found.tuned
            for m in model.spectra.matrices
        ],
        "layers": summed(found, "layer", lambda m: m.layer),
        "modules": summed(found, "module", lambda m: m.module),
    }
    looked_at = [(model_row(m), m.heads) for m in found.tuned if m.heads is not None]
    by_head = {
        "heads": [row for model, heads in looked_at for row in head_rows(model, heads)],
        "kv_heads": [row for model, heads in looked_at for row in kv_head_rows(model, heads)],
        "head_ablations": [row for model, heads in looked_at for row in ablated(model, heads)],
    }
    tables |= {name: rows for name, rows in by_head.items() if rows}
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


# --- heads ---------------------------------------------------------------------------------------


def head_rows(model: Mapping[str, object], heads: HeadsRecord) -> Iterator[dict[str, object]]:
    """A row per query head: how far its slices moved, importance, entropy, what it carries."""
    moved = head_change_columns(heads, ("q_proj", "o_proj"))
    roles = {(role.layer, role.head): role for role in heads.roles}
    for before, after in zip(heads.base, heads.tuned, strict=True):
        for head in range(len(after.importance)):
            place = (after.layer, head)
            role = roles.get(place)
            yield {
                **model,
                "layer": after.layer,
                "head": head,
                **moved(place),
                "importance_before": before.importance[head],
                "importance_after": after.importance[head],
                "entropy_before": before.entropy[head],
                "entropy_after": after.entropy[head],
                "skill": None if role is None else role.skill,
                "lost": None if role is None else role.lost,
            }


def kv_head_rows(model: Mapping[str, object], heads: HeadsRecord) -> Iterator[dict[str, object]]:
    """A row per key/value head."""
    moved = head_change_columns(heads, ("k_proj", "v_proj"))
    for before, after in zip(heads.base, heads.tuned, strict=True):
        for head in range(len(after.group_importance)):
            yield {
                **model,
                "layer": after.layer,
                "head": head,
                **moved((after.layer, head)),
                "importance_before": before.group_importance[head],
                "importance_after": after.group_importance[head],
            }


def head_change_columns(
    heads: HeadsRecord, modules: Sequence[str]
) -> Callable[[tuple[int, int]], dict[str, object]]:
    """Columns of |dW_h|_F and |dW_h|_F / |W0_h|_F by (layer, head), None where nothing changed."""
    found = {
        (change.module, change.layer, head): (change.frobenius[head], change.relative[head])
        for change in heads.changes
        for head in range(len(change.relative))
    }

    def columns(place: tuple[int, int]) -> dict[str, object]:
        row: dict[str, object] = {}
        for module in modules:
            row[f"{module}_frobenius"], row[f"{module}_relative"] = found.get(
                (module, *place), (None, None)
            )
        return row

    return columns


def ablated(model: Mapping[str, object], heads: HeadsRecord) -> Iterator[dict[str, object]]:
    """A row per task and query head removed: changes of the score and of the right answer's
    log-probability, before and after, and the standard error of their difference. Then one per
    layer removed whole, whose head is None: of it the log-probability alone is recorded."""
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
                "head": None,
                "score_change_before": None,
                "score_change_after": None,
                "gold_change_before": before,
                "gold_change_after": after,
                "gold_difference_error": None,
            }
