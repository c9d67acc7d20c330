"""Heads as tables, by query head, by key/value head and by ablation, and in the terminal."""

from collections.abc import Iterator, Sequence

import pandas as pd
from rich.console import RenderableType
from rich.table import Table

from rankscope.analyses.heads.record import HeadsRecord
from rankscope.analyses.tables import TableRow
from rankscope.cli.render.table import terminal_table
from rankscope.formatting import number
from rankscope.records import StudyRecords
from rankscope.report.columns import Column

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


def head_tables(models: Sequence[tuple[TableRow, HeadsRecord]]) -> dict[str, pd.DataFrame]:
    """``heads``, ``kv_heads`` and ``head_ablations``; rows begin with their model's."""
    return {
        "heads": pd.DataFrame(row for m, h in models for row in _head_rows(m, h, True)),
        "kv_heads": pd.DataFrame(row for m, h in models for row in _head_rows(m, h, False)),
        "head_ablations": pd.DataFrame(row for m, h in models for row in _ablation_rows(m, h)),
    }


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


def heads_terminal(study: StudyRecords) -> tuple[list[RenderableType], list[str]]:
    """The heads that moved most, and what removing heads costs, model by model."""
    tables: list[RenderableType] = []
    for trial in study.trials:
        if (heads := trial.analysis(HeadsRecord)) is not None:
            tables.append(_heads(trial.spec.arm_label, heads))
            if heads.ablations:
                tables.append(_ablations(trial.spec.arm_label, heads))
    return tables, []


def _heads(name: str, heads: HeadsRecord) -> Table:
    """The heads whose q_proj or o_proj slices moved most, as layer.head."""
    roles = {(role.layer, role.head): role for role in heads.roles}
    rows = []
    for layer, head, moved in _most_moved_heads(heads):
        base, tuned, role = heads.base[layer], heads.tuned[layer], roles.get((layer, head))
        row: dict[str, object] = {
            "head": f"{layer}.{head}",
            "|dW_h|/|W0_h|": moved,
            "importance": base.importance[head],
            "importance after": tuned.importance[head],
            "entropy": base.entropy[head],
            "entropy after": tuned.entropy[head],
        }
        rows.append(row | ({"skill": role.skill, "lost": role.lost} if role else {}))
    columns = dict.fromkeys(
        ("importance", "importance after", "entropy", "entropy after", "skill", "lost"),
        Column(digits=3),
    )
    title = f"{name}, heads that moved most (layer.head); {heads.items} items of {heads.task}"
    title += f", {heads.dtype}"
    return terminal_table(rows, title, columns, right=("head",))


def _ablations(name: str, heads: HeadsRecord) -> Table:
    """Scores by task, and the head and the layer of heads whose removal costs most."""
    rows = []
    for ablation in heads.ablations:
        head_costs = [
            (-change, f"{layer}.{head}")
            for layer, changes in enumerate(ablation.tuned_gold_change)
            for head, change in enumerate(changes)
        ]
        layer_costs = [(-c, layer) for layer, c in enumerate(ablation.tuned_layer_gold_change)]
        (head_cost, head), (layer_cost, layer) = max(head_costs), max(layer_costs)
        rows.append(
            {
                "task": ablation.task,
                "score": ablation.metric,
                "items": ablation.items,
                "before": ablation.base_score,
                "after": ablation.tuned_score,
                "head, nats": f"{head}: {number(head_cost, 3)}",
                "layer, nats": f"{layer}: {number(layer_cost, 3)}",
            }
        )
    title = f"{name}, heads removed: scores; costliest head and layer after tuning, right answer"
    columns = dict.fromkeys(("before", "after"), Column(digits=3))
    return terminal_table(rows, title, columns, right=("head, nats", "layer, nats"))


def _most_moved_heads(record: HeadsRecord, most: int = 8) -> Sequence[tuple[int, int, float]]:
    """(layer, query head, |dW_h| / |W0_h|) of the heads whose q_proj or o_proj moved most."""
    moved: dict[tuple[int, int], float] = {}
    for change in record.changes:
        if change.module in ("q_proj", "o_proj"):
            for head, relative in enumerate(change.relative):
                key = (change.layer, head)
                moved[key] = max(moved.get(key, 0.0), relative)
    ordered = sorted(moved.items(), key=lambda item: -item[1])[:most]
    return [(layer, head, relative) for (layer, head), relative in ordered]
