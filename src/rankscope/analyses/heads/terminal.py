"""Heads of given models, as the terminal shows them."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from rankscope.analyses.heads.record import HeadsRecord
from rankscope.cli.render.table import terminal_table
from rankscope.formatting import number
from rankscope.records import StudyRecords
from rankscope.report.columns import Column


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
