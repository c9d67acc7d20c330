"""Heads of an inspection: how far each moved, what it is worth, where it looks, what it carries."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from scipy.stats import t as student

from rankscope.formatting import count, join_names, number
from rankscope.records import HeadAblation, HeadsRecord, Inspection, LayerHeads
from rankscope.report.charts.figure import Cell, Choice, Column, Figure, axis, layout, name, table
from rankscope.report.charts.head_maps import (
    FLAT,
    Map,
    Panel,
    largest,
    min_width,
    panels_plot,
    precision,
    stacked,
)
from rankscope.report.style import BETTER, NEUTRAL, WORSE

MODULES = {
    "q_proj": "query heads",
    "k_proj": "key heads",
    "v_proj": "value heads",
    "o_proj": "output slices",
}
MOST_ROWS = 16
"""Heads of the ablation matrix."""
PER_LAYER = (Column("model"), Column("layer", 0), Column("head", 0))


def looked_at(found: Inspection) -> list[tuple[str, HeadsRecord]]:
    """(model, its heads) of the models whose heads were looked at."""
    return [(model.name, model.heads) for model in found.tuned if model.heads is not None]


def head_figures(found: Inspection) -> tuple[Figure, ...]:
    """All figures of heads in reading order; empty where none were looked at."""
    models = looked_at(found)
    if not models:
        return ()
    drawn = [draw_changes(models), draw_importance(models), draw_entropy(models)]
    if any(heads.ablations for _, heads in models):
        drawn += [draw_ablations(models), draw_matrix(models)]
    return tuple(figure for figure in drawn if figure is not None)


def draw_changes(models: Sequence[tuple[str, HeadsRecord]]) -> Figure | None:
    """|dW_h| / |W0_h| of every query head, key/value head and output slice; None where no attention
    matrix was changed."""
    panels, rows = [], []
    for module, title in MODULES.items():
        values = {}
        for model, heads in models:
            own = [c for c in heads.changes if c.module == module]
            grid = stacked({c.layer: c.relative for c in own})
            if grid is not None:
                values[model] = grid
            rows += [
                (model, c.layer, head, module, c.frobenius[head], c.relative[head])
                for c in own
                for head in range(len(c.relative))
            ]
        if values:
            panels.append(Panel(f"{title}, {module}", values, scale="moved"))
    if not panels:
        return None
    # The drop-down opens on its first entry: one of a model with nothing to show would be blank.
    has_any = [model for model, _ in models if any(model in panel.values for panel in panels)]
    plot, choices = panels_plot(panels, has_any)
    columns = (*PER_LAYER, Column("matrix"), Column("|dW_h|_F"), Column("|dW_h|_F / |W0_h|_F"))
    said = []
    for model, _ in models:
        shown = [(p.title, p.values[model]) for p in panels if model in p.values]
        if shown:
            title, grid = max(shown, key=lambda pair: float(np.nanmax(pair[1])))
            layer, head = largest(grid)
            said.append(
                f"{model} most in layer {layer} head {head} ({title}), "
                f"{number(float(np.nanmax(grid)))}; its median "
                f"{number(float(np.nanmedian(np.concatenate([g.ravel() for _, g in shown]))))}"
            )
    return Figure(
        key="heads-moved",
        title="How far each head moved",
        finding=f"|dW_h|_F / |W0_h|_F: {join_names(said)}.",
        table=table(columns, rows),
        plot=plot,
        how_to_read="Rows are layers. A head is its rows of q_proj, k_proj or v_proj, or its "
        "columns of o_proj; a key/value head serves several query heads.",
        choices=tuple(choices),
        choice_name="Model",
        min_width=min_width(panels),
    )


def draw_importance(models: Sequence[tuple[str, HeadsRecord]]) -> Figure:
    """|z . dL/dz| of every query head before and after, and of key/value heads after."""
    panels = before_after(models, lambda layer: layer.importance)
    groups = {
        model: grid(heads.tuned, lambda layer: layer.group_importance) for model, heads in models
    }
    panels.append(Panel("key/value heads, after", groups))
    plot, choices = panels_plot(panels, [model for model, _ in models])
    task, items = models[0][1].task, models[0][1].items
    return Figure(
        key="heads-importance",
        title="What each head is worth, by gradient",
        finding=f"Importance on {count(items, 'item')} of {task}: "
        f"{join_names(f'{model} {shift(panels, model)}' for model, _ in models)}.",
        table=table((*PER_LAYER, Column("before"), Column("after")), pairs(panels, models)),
        plot=plot,
        how_to_read="|z . dL/dz| of the right answer, each layer's l2 norm 1: heads of one layer "
        "are compared. First order alone: where heads stand in for each other it says little, and "
        "ablation is exact. In the difference orange is less and blue more than before.",
        choices=tuple(choices),
        choice_name="Model",
        min_width=min_width(panels),
    )


def draw_entropy(models: Sequence[tuple[str, HeadsRecord]]) -> Figure:
    """Attention entropy of every query head before and after."""
    panels = before_after(models, lambda layer: layer.entropy)
    plot, choices = panels_plot(panels, [model for model, _ in models])
    said = []
    for model, _ in models:
        before, after = (number(mean(panel.values[model])) for panel in panels[:2])
        said.append(f"{model} {before} before and {after} after, {shift(panels, model)}")
    return Figure(
        key="heads-entropy",
        title="Where each head looks",
        finding=f"Attention entropy, mean over heads: {join_names(said)}.",
        table=table((*PER_LAYER, Column("before"), Column("after")), pairs(panels, models)),
        plot=plot,
        how_to_read="0 looks at one token, 1 at all alike; mean over the positions of prompts with "
        "their right answers. In the difference orange is narrower and blue wider than before.",
        choices=tuple(choices),
        choice_name="Model",
        min_width=min_width(panels),
    )


def draw_ablations(models: Sequence[tuple[str, HeadsRecord]]) -> Figure:
    """What removing each head costs on the right answer, before and after, by task."""
    before: dict[str, Map] = {}
    after: dict[str, Map] = {}
    rows: list[tuple[Cell, ...]] = []
    said = []
    for model, heads in models:
        for ablation in heads.ablations:
            label = f"{model}: {ablation.task}"
            before[label] = costs(ablation.base_gold_change)
            after[label] = costs(ablation.tuned_gold_change)
            rows += ablated(model, ablation)
            layer, head = largest(after[label])
            most = (
                f"{label} layer {layer} head {head}, {number(float(np.nanmax(after[label])))} nats"
            )
            if whole := ablation.tuned_layer_gold_change:
                costliest = min(range(len(whole)), key=whole.__getitem__)
                most += f" (all of layer {costliest}, {number(-whole[costliest])})"
            said.append(most)
    difference = {label: after[label] - before[label] for label in before}
    panels = [
        Panel("before", before, True, "cost", is_scaled_by_entry=True),
        Panel("after", after, True, "cost", is_scaled_by_entry=True),
        Panel("difference", difference, True, is_scaled_by_entry=True),
    ]
    plot, choices = panels_plot(panels, list(before))
    columns = (
        *PER_LAYER,
        Column("task"),
        Column("cost before, nats per item"),
        Column("cost after, nats per item"),
        Column("standard error of the difference"),
        Column("score lost before"),
        Column("score lost after"),
    )
    return Figure(
        key="heads-ablated",
        title="What removing each head costs",
        finding=f"Most costly after tuning: {join_names(said)} of the right answer.",
        table=table(columns, rows),
        plot=plot,
        how_to_read="Exact but for rounding: the head's output is set to zero and the items are "
        "scored again. Blue heads are of use, orange ones in the way; costs do not add up over "
        "heads. The table ends with whole layers, where no head is named. "
        f"{precision(models[0][1].dtype)}".rstrip(),
        choices=tuple(choices),
        choice_name="Model and task",
        min_width=min_width(panels),
    )


def draw_matrix(models: Sequence[tuple[str, HeadsRecord]]) -> Figure:
    """Heads x tasks: how much more each head's removal costs after tuning than before."""
    ablated_on = [(model, heads) for model, heads in models if heads.ablations]
    tasks = list(dict.fromkeys(a.task for _, heads in ablated_on for a in heads.ablations))
    found = {
        model: {ablation.task: more_costly(ablation) for ablation in heads.ablations}
        for model, heads in ablated_on
    }
    said = [beyond_noise(model, a) for model, heads in ablated_on for a in heads.ablations]
    rows: list[tuple[Cell, ...]] = [
        (model, role.layer, role.head, role.skill, role.lost)
        for model, heads in ablated_on
        for role in heads.roles
    ]
    trained = models[0][1].task
    titles = [name(f"{task} (trained)" if task == trained else task) for task in tasks]
    return Figure(
        key="heads-matrix",
        title="Which heads carry the tuned skill, which carried what was lost",
        finding=f"Heads whose cost changed by more than two standard errors: {join_names(said)}. "
        f"{by_noise([a for _, heads in ablated_on for a in heads.ablations])}",
        table=table((*PER_LAYER, Column("skill, nats"), Column("lost, nats")), rows),
        plot=matrix_plot(found, tasks, titles),
        how_to_read="How much more removing a head costs after tuning than before, nats per item, "
        f"of the {MOST_ROWS} heads that differ most. Blue on the trained task: it carries what was "
        "learned. Orange on another: it carried what was lost there. The table has every head.",
        choices=tuple(Choice(model, (i,)) for i, model in enumerate(found)),
        choice_name="Model",
        min_width=160 + 90 * len(tasks),
    )


def matrix_plot(
    found: Mapping[str, Mapping[str, Map]], tasks: Sequence[str], titles: Sequence[str]
) -> go.Figure:
    """Of every model the heads that differ most on any task, a column per task."""
    plot = go.Figure(
        layout=layout(110 + 20 * MOST_ROWS, margin={"l": 110, "r": 16, "t": 36, "b": 48})
    )
    reach = max(float(np.nanmax(np.abs(grid))) for own in found.values() for grid in own.values())
    for place, own in enumerate(found.values()):
        chosen = most_apart(list(own.values()))
        plot.add_heatmap(
            x=titles,
            y=[f"layer {layer}, head {head}" for layer, head in chosen],
            z=[[float(own[t][at]) if t in own else None for t in tasks] for at in chosen],
            colorscale=[[0, WORSE.light], [0.5, NEUTRAL.light], [1, BETTER.light]],
            zmin=-(reach or 1.0),
            zmax=reach or 1.0,
            xgap=2,
            ygap=1,
            texttemplate="%{z:.2~g}",
            hovertemplate="%{y}, %{x}: %{z:.3~g} nats<extra></extra>",
            showscale=False,
            visible=place == 0,
        )
    plot.update_xaxes(axis(**FLAT))
    plot.update_yaxes(axis(**FLAT, autorange="reversed"))
    return plot


def most_apart(grids: Sequence[Map]) -> list[tuple[int, int]]:
    """(layer, head) of the largest values, signs aside, in any of the grids; by layer."""
    spread = np.max([np.nan_to_num(np.abs(grid)) for grid in grids], axis=0)
    order = np.argsort(-spread.ravel(), kind="stable")[:MOST_ROWS]
    return sorted((int(at) // spread.shape[1], int(at) % spread.shape[1]) for at in order)


def before_after(
    models: Sequence[tuple[str, HeadsRecord]],
    value: Callable[[LayerHeads], Sequence[float | None]],
) -> list[Panel]:
    """Three panels: of the base, of the tuned model, and the difference."""
    before = {model: grid(heads.base, value) for model, heads in models}
    after = {model: grid(heads.tuned, value) for model, heads in models}
    return [
        Panel("before", before, scale="value"),
        Panel("after", after, scale="value"),
        Panel("difference", {model: after[model] - before[model] for model in before}, True),
    ]


def grid(
    layers: Sequence[LayerHeads], value: Callable[[LayerHeads], Sequence[float | None]]
) -> Map:
    """A value of every head, (layers, heads)."""
    found = stacked({layer.layer: value(layer) for layer in layers})
    return np.zeros((0, 0)) if found is None else found


def pairs(
    panels: Sequence[Panel], models: Sequence[tuple[str, HeadsRecord]]
) -> list[tuple[Cell, ...]]:
    """A row per model and head: before and after."""
    return [
        (model, *map(int, at), known(float(value)), known(float(panels[1].values[model][at])))
        for model, _ in models
        for at, value in np.ndenumerate(panels[0].values[model])
    ]


def known(value: float) -> float | None:
    """None for NaN."""
    return None if np.isnan(value) else float(value)


def mean(values: Map) -> float | None:
    """Over the heads whose value is known; None where there is none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else None


def shift(panels: Sequence[Panel], model: str) -> str:
    """Which head changed most from the first panel to the second."""
    difference = panels[2].values[model]
    if np.isnan(difference).all():
        return "unknown of every head"
    layer, head = largest(np.abs(difference))
    return f"most changed in layer {layer} head {head}, by {number(float(difference[layer, head]))}"


def costs(change: Sequence[Sequence[float]]) -> Map:
    """What removing each head costs: minus the change, (layers, heads)."""
    found = stacked({layer: [-v for v in values] for layer, values in enumerate(change)})
    return np.zeros((0, 0)) if found is None else found


def more_costly(ablation: HeadAblation) -> Map:
    """How much more each removal costs after tuning than before, nats per item."""
    return costs(ablation.tuned_gold_change) - costs(ablation.base_gold_change)


def ablated(model: str, ablation: HeadAblation) -> list[tuple[Cell, ...]]:
    """A row per head of one model on one task, then one per layer with all its heads."""
    heads: list[tuple[Cell, ...]] = [
        (
            model,
            layer,
            head,
            ablation.task,
            -ablation.base_gold_change[layer][head],
            -ablation.tuned_gold_change[layer][head],
            ablation.gold_difference_error[layer][head],
            -ablation.base_change[layer][head],
            -ablation.tuned_change[layer][head],
        )
        for layer, values in enumerate(ablation.base_gold_change)
        for head in range(len(values))
    ]
    return heads + [
        (model, layer, None, ablation.task, -before, -after, None, None, None)
        for layer, (before, after) in enumerate(
            zip(ablation.base_layer_gold_change, ablation.tuned_layer_gold_change, strict=True)
        )
    ]


def beyond_noise(model: str, ablation: HeadAblation) -> str:
    """How many heads' costs changed by more than two standard errors."""
    errors = [error for layer in ablation.gold_difference_error for error in layer]
    values = [float(v) for v in more_costly(ablation).ravel() if not np.isnan(v)]
    tested = [(v, e) for v, e in zip(values, errors, strict=True) if e is not None]
    beyond = sum(abs(v) > 2 * e for v, e in tested)
    return f"{model} on {ablation.task} {beyond} of {len(tested)}"


def by_noise(ablations: Sequence[HeadAblation]) -> str:
    """How many heads noise alone puts beyond two standard errors, at the fewest items; by Student's
    t. One item has no standard error, so nothing was tested on it."""
    tested = [ablation.items for ablation in ablations if ablation.items > 1]
    if not tested:
        return "One item has no standard error: nothing was tested."
    return f"Noise alone would give {number(200 * float(student.sf(2, min(tested) - 1)), 1)} %."
