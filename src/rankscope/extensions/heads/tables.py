"""Heads as tables: by query head, by key/value head and by ablation."""

from collections.abc import Iterator, Sequence

import pandas as pd

from rankscope.extensions.heads.record import HeadsRecord
from rankscope.report.analysis_tables import TableRow

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
"""Maps columns of ablations to the record's fields with the values."""


def head_tables(models: Sequence[tuple[TableRow, HeadsRecord]]) -> dict[str, pd.DataFrame]:
    """Return ``heads``, ``kv_heads`` and ``head_ablations``; rows begin with their model's
    columns."""
    return {
        "heads": pd.DataFrame(row for m, h in models for row in _head_rows(m, h, True)),
        "kv_heads": pd.DataFrame(row for m, h in models for row in _head_rows(m, h, False)),
        "head_ablations": pd.DataFrame(row for m, h in models for row in _ablation_rows(m, h)),
    }


def _head_rows(model: TableRow, heads: HeadsRecord, is_query: bool) -> Iterator[TableRow]:
    """Yield one row per query head, or key/value head: the change of its slices, and its
    importance."""
    modules = ("q_proj", "o_proj") if is_query else ("k_proj", "v_proj")
    fields = {"importance": "importance", "entropy": "entropy"}
    fields = fields if is_query else {"importance": "group_importance"}
    changes = {(c.module, c.layer): (c.frobenius, c.relative) for c in heads.changes}
    for before, after in zip(heads.base, heads.tuned, strict=True):
        for head in range(len(getattr(after, fields["importance"]))):
            row = {**model, "layer": after.layer, "head": head}
            for module in modules:
                for name, values in zip(
                    ("frobenius", "relative"),
                    changes.get((module, after.layer), (None, None)),
                    strict=True,
                ):
                    row[f"{module}_{name}"] = None if values is None else values[head]
            for name, field in fields.items():
                row[f"{name}_before"] = getattr(before, field)[head]
                row[f"{name}_after"] = getattr(after, field)[head]
            if is_query:
                for name, roles in (("skill", heads.skill), ("lost", heads.lost)):
                    row[name] = roles[after.layer][head] if roles else None
            yield row


def _ablation_rows(model: TableRow, heads: HeadsRecord) -> Iterator[TableRow]:
    """Yield rows by task and removed query head; those without a head are of whole layers."""
    for ablation in heads.ablations:
        identity = {**model, "task": ablation.task, "items": ablation.items}
        for layer, errors in enumerate(ablation.gold_difference_error):
            for head in range(len(errors)):
                by_head = {c: getattr(ablation, f)[layer][head] for c, f in BY_HEAD.items()}
                yield {**identity, "layer": layer, "head": head, **by_head}
        for layer in range(len(ablation.base_layer_gold_change)):
            by_layer = {c: getattr(ablation, f)[layer] for c, f in BY_LAYER.items()}
            yield {**identity, "layer": layer, **by_layer}
