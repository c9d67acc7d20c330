"""Layer x head maps: what training did to each attention head, LoRA beside full fine-tuning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from plotly.subplots import make_subplots
from scipy.stats import rankdata

from rankscope.formatting import count, number
from rankscope.records import ArmSummary, HeadsRecord, LayerHeads
from rankscope.report.charts.figure import Choice, Column, Figure, axis, layout, name, table
from rankscope.report.charts.head_maps import Map, heat, largest, precision, stacked
from rankscope.report.study_view import StudyView
from rankscope.report.style import MUTED

Measure = Callable[[HeadsRecord], Map | None]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One map of the drop-down."""

    label: str
    measure: Measure
    has_sign: bool = False


def moved(module: str) -> Measure:
    """|dW_h| / |W0_h| of one attention matrix."""

    def measure(record: HeadsRecord) -> Map | None:
        return stacked({c.layer: c.relative for c in record.changes if c.module == module})

    return measure


def of_layers(
    value: Callable[[LayerHeads], Sequence[float | None]], less_base: bool = False
) -> Measure:
    """A value of the tuned model's heads, as it is or minus the base's."""

    def measure(record: HeadsRecord) -> Map | None:
        tuned = stacked({layer.layer: value(layer) for layer in record.tuned})
        base = stacked({layer.layer: value(layer) for layer in record.base})
        if not less_base or tuned is None or base is None:
            return tuned
        return tuned - base

    return measure


def role(lost: bool) -> Measure:
    """What a head carries of the tuned skill, or carried of the lost one, nats per item."""

    def measure(record: HeadsRecord) -> Map | None:
        by_layer: dict[int, list[float | None]] = {}
        for head in record.roles:
            by_layer.setdefault(head.layer, []).append(head.lost if lost else head.skill)
        found = stacked(by_layer)
        return None if found is None or np.isnan(found).all() else found

    return measure


SKILL = "carries the trained skill, nats"

QUANTITIES = (
    Quantity("query heads moved: |dW_h| / |W0_h| of q_proj", moved("q_proj")),
    Quantity("key heads moved: k_proj", moved("k_proj")),
    Quantity("value heads moved: v_proj", moved("v_proj")),
    Quantity("output slices moved: o_proj", moved("o_proj")),
    Quantity("importance after training", of_layers(lambda layer: layer.importance)),
    Quantity("importance, change", of_layers(lambda layer: layer.importance, True), True),
    Quantity("attention entropy, change", of_layers(lambda layer: layer.entropy, True), True),
    Quantity(SKILL, role(lost=False), True),
    Quantity("carried what was lost, nats", role(lost=True), True),
)


def draw(view: StudyView, task: str) -> Figure | None:
    """Maps of the best LoRA arm and the best full one; None without records of heads."""
    named = [arm for arm in (view.best_lora(task), view.best_full(task)) if arm is not None]
    arms = [arm for arm in named if _records(view, arm)]
    if not arms:
        arms = [arm for arm in view.arms(task) if _records(view, arm)][:1]
    if not arms:
        return None
    maps = {
        (quantity.label, arm.label): found
        for quantity in QUANTITIES
        for arm in arms
        if (found := _mean(view, arm, quantity.measure)) is not None
    }
    shown = [q for q in QUANTITIES if any((q.label, arm.label) in maps for arm in arms)]
    plot, choices = _plot(arms, shown, maps)
    rows = [
        (arm.label, quantity.label, layer, head, float(value))
        for quantity in shown
        for arm in arms
        if (found := maps.get((quantity.label, arm.label))) is not None
        for (layer, head), value in np.ndenumerate(found)
        if not np.isnan(value)
    ]
    columns = [
        Column("arm"),
        Column("what"),
        Column("layer", 0),
        Column("head", 0),
        Column("value"),
    ]
    record = _records(view, arms[0])[0]
    how = (
        "Rows are layers, columns heads (key/value heads for k_proj and v_proj), means over seeds. "
        f"Importance is |z . dL/dz| of the right answer, each layer's l2 norm 1, and entropy 1 "
        f"looks everywhere alike: both on {count(record.items, 'item')} of {record.task}. "
    )
    how += "Orange is less, blue more, than the base."
    if any(_records(view, arm)[0].roles for arm in arms):
        how += (
            " A head carries the skill where removing it costs the tuned model more on the right "
            "answer than it costs the base."
        )
    widest = max(found.shape[1] for found in maps.values())
    how = f"{how} {precision(record.dtype)}".rstrip()
    return Figure(
        key=f"heads-{view.training_tasks.index(task)}",
        title=f"Attention heads, {task}",
        finding=_finding(arms, shown, maps),
        table=table(columns, rows),
        plot=plot,
        how_to_read=how,
        choices=tuple(choices),
        choice_name="Shown",
        min_width=140 + len(arms) * max(120, 16 * widest),
    )


def _records(view: StudyView, arm: ArmSummary) -> list[HeadsRecord]:
    return [trial.heads for trial in view.trials(arm) if trial.heads is not None]


def _mean(view: StudyView, arm: ArmSummary, measure: Measure) -> Map | None:
    found = [m for record in _records(view, arm) if (m := measure(record)) is not None]
    return np.mean(found, axis=0) if found else None


def _plot(
    arms: Sequence[ArmSummary], shown: Sequence[Quantity], maps: dict[tuple[str, str], Map]
) -> tuple[Any, list[Choice]]:
    """A panel for each arm, a layer of heat maps for each quantity."""
    num_layers = max(found.shape[0] for found in maps.values())
    figure = make_subplots(1, len(arms), shared_yaxes=True, horizontal_spacing=0.06)
    figure.update_layout(
        layout(130 + max(120, 16 * num_layers), margin={"l": 48, "r": 20, "t": 40, "b": 52})
    )
    choices = []
    for place, quantity in enumerate(shown):
        found = {arm.label: maps.get((quantity.label, arm.label)) for arm in arms}
        values = [m for m in found.values() if m is not None]
        reach = max(1e-12, *(float(np.nanmax(np.abs(m))) for m in values))
        traces = []
        for column, arm in enumerate(arms):
            m = found[arm.label]
            if m is None:
                continue
            traces.append(len(figure.data))
            figure.add_heatmap(
                **heat(m, quantity.has_sign, reach) | {"showscale": len(traces) == 1},
                colorbar={
                    "thickness": 10,
                    "outlinewidth": 0,
                    "tickfont": {"color": MUTED.light},
                    "ticks": "",
                },
                visible=place == 0,
                row=1,
                col=column + 1,
            )
        choices.append(Choice(quantity.label, tuple(traces)))
    shared: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
    for column, arm in enumerate(arms):
        figure.update_xaxes(axis("head", **shared), row=1, col=column + 1)
        figure.update_yaxes(
            axis("layer" if column == 0 else "", **shared, autorange="reversed"),
            row=1,
            col=column + 1,
        )
        start = figure.layout["xaxis" if column == 0 else f"xaxis{column + 1}"].domain[0]
        figure.add_annotation(
            text=name(arm.label),
            x=start,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=6,
            showarrow=False,
            font={"size": 13, "color": MUTED.light},
        )
    return figure, choices


def _finding(
    arms: Sequence[ArmSummary], shown: Sequence[Quantity], maps: dict[tuple[str, str], Map]
) -> str:
    """Which head comes first in each arm, whether both order them alike, who has the skill."""
    first = shown[0]
    what = first.label.rpartition(": ")[2]
    found = [(arm, m) for arm in arms if (m := maps.get((first.label, arm.label))) is not None]
    parts = []
    for arm, m in found:
        layer, head = largest(m)
        parts.append(
            f"layer {layer} head {head} in {arm.label}, {number(float(np.nanmax(m)))} (the median "
            f"head {number(float(np.nanmedian(m)))})"
        )
    text = f"By {what}, these heads come first: {'; '.join(parts)}."
    if len(found) == 2 and found[0][1].shape == found[1][1].shape:
        a, b = (m.ravel() for _, m in found)
        both = ~(np.isnan(a) | np.isnan(b))
        rho = rank_correlation(a[both], b[both])
        if rho is not None:
            text += (
                f" Over {count(int(both.sum()), 'head')} the two arms' rank correlation is "
                f"{number(rho, 2)}: 1 is the same heads, 0 unrelated ones."
            )
    for arm in arms[:1]:
        if (skill := maps.get((SKILL, arm.label))) is not None:
            layer, head = largest(skill)
            text += (
                f" Removing layer {layer} head {head} costs {arm.label} "
                f"{number(float(np.nanmax(skill)))} nats more of the right answer than the base."
            )
    return text


def rank_correlation(a: Map, b: Map) -> float | None:
    """Spearman's coefficient; None where one of the two does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
