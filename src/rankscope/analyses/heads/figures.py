"""Figures of the attention heads: what training did to each, and what removing it costs."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from plotly.subplots import make_subplots
from scipy.stats import t as student

from rankscope.analyses.heads.record import HeadAblation, HeadsRecord, LayerHeads
from rankscope.formatting import count, join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import (
    FLAT,
    Choice,
    Drawn,
    Figure,
    axis,
    layout,
    panel_heading,
)
from rankscope.report.charts.heat_map import Grid
from rankscope.report.figures import SECTIONS, Section, register
from rankscope.report.table_formats import table_from_rows

SECTIONS["heads"] = Section(
    60,
    "Attention heads",
    "What training did to each head of each layer, on the same items before and after.",
    folded=True,
)
HeadValues = npt.NDArray[np.float64]
OfLayer = Callable[[LayerHeads], Sequence[float | None]]

CELL = 16  # Size of a cell of a panel, pixels
NARROWEST = 110  # Least width of a panel, pixels
SKILL, LOST = "carries the trained skill, nats", "carried what was lost, nats"
MODULES = {
    "q_proj": "query heads",
    "k_proj": "key heads",
    "v_proj": "value heads",
    "o_proj": "output slices",
}


def _stacked(by_layer: Mapping[int, Sequence[float | None]]) -> HeadValues:
    """Rows by layer, filled with NaN if a layer is absent or has fewer heads."""
    width = max(map(len, by_layer.values()), default=0)
    values = np.full((max(by_layer, default=-1) + 1, width), np.nan)
    for layer, row in by_layer.items():
        values[layer, : len(row)] = [np.nan if v is None else v for v in row]
    return values


def _of_layers(layers: Sequence[LayerHeads], value: OfLayer) -> HeadValues:
    return _stacked({layer.layer: value(layer) for layer in layers})


def _moved(record: HeadsRecord, module: str) -> HeadValues:
    """|dW_h|_F / |W0_h|_F of one attention matrix; empty if training did not change it."""
    return _stacked({c.layer: c.relative for c in record.changes if c.module == module})


def _costs(change: Sequence[Sequence[float]]) -> HeadValues:
    return _stacked({layer: [-v for v in row] for layer, row in enumerate(change)})


def _cost_increase(ablation: HeadAblation) -> HeadValues:
    """How much more each removal costs after tuning than before, nats per item."""
    return _costs(ablation.tuned_gold_change) - _costs(ablation.base_gold_change)


def _largest(values: HeadValues) -> tuple[int, int]:
    """(layer, head) of the largest known value."""
    layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return int(layer), int(head)


def _head_text(values: HeadValues) -> str:
    """The head with the largest value, such as ``layer 3 head 1``."""
    return "layer {} head {}".format(*_largest(values))


def _most(values: HeadValues) -> str:
    return number(float(np.nanmax(values)))


def _grids(values: Mapping[str, HeadValues], signed: bool = False) -> dict[str, Grid]:
    """Grids by entry of a drop-down; entries without a known value are left out."""
    known = {entry: of_entry for entry, of_entry in values.items() if not np.isnan(of_entry).all()}
    return {entry: Grid(pd.DataFrame(of_entry), signed) for entry, of_entry in known.items()}


def _head_quantities(record: HeadsRecord) -> dict[str, HeadValues]:
    """What is known of the heads of one model, by its label in a drop-down."""
    roles: dict[str, dict[int, list[float | None]]] = {SKILL: {}, LOST: {}}
    for role in record.roles:
        roles[SKILL].setdefault(role.layer, []).append(role.skill)
        roles[LOST].setdefault(role.layer, []).append(role.lost)
    values = {f"{MODULES[m]} moved: |dW_h| / |W0_h| of {m}": _moved(record, m) for m in MODULES}
    measures: dict[str, OfLayer] = {
        "importance": lambda layer: layer.importance,
        "attention entropy": lambda layer: layer.entropy,
    }
    for name, measure in measures.items():
        before, after = _of_layers(record.base, measure), _of_layers(record.tuned, measure)
        values |= {f"{name}, change": after - before, f"{name} after training": after}
        values[f"{name} before training"] = before
    values["importance of key/value heads"] = _of_layers(
        record.tuned, lambda layer: layer.group_importance
    )
    values |= {name: _stacked(by_layer) for name, by_layer in roles.items()}
    return {name: v for name, v in values.items() if not np.isnan(v).all()}


def _ablation_rows(model: str, ablation: HeadAblation) -> list[dict[str, object]]:
    """A row per head, then one per layer with all its heads removed."""
    heads: list[dict[str, object]] = [
        {
            "model": model,
            "layer": layer,
            "head": head,
            "task": ablation.task,
            "cost before, nats per item": -before,
            "cost after, nats per item": -ablation.tuned_gold_change[layer][head],
            "standard error of the difference": ablation.gold_difference_error[layer][head],
            "score lost before": -ablation.base_change[layer][head],
            "score lost after": -ablation.tuned_change[layer][head],
        }
        for layer, values in enumerate(ablation.base_gold_change)
        for head, before in enumerate(values)
    ]
    layers = zip(ablation.base_layer_gold_change, ablation.tuned_layer_gold_change, strict=True)
    return heads + [
        dict.fromkeys(heads[0])
        | {"model": model, "layer": layer, "task": ablation.task}
        | {"cost before, nats per item": -before, "cost after, nats per item": -after}
        for layer, (before, after) in enumerate(layers)
    ]


def _beyond_noise(ablation: HeadAblation) -> str:
    """How many costs changed by more than two standard errors."""
    errors = [error for layer in ablation.gold_difference_error for error in layer]
    values = [float(v) for v in _cost_increase(ablation).ravel() if not np.isnan(v)]
    tested = [(v, e) for v, e in zip(values, errors, strict=True) if e is not None]
    return f"{sum(abs(v) > 2 * e for v, e in tested)} of {len(tested)}"


def _noise_text(ablations: Sequence[HeadAblation]) -> str:
    """How many heads noise alone puts beyond two standard errors, by Student's t.

    The fewest items count. One item has no standard error, so nothing is tested on it.
    """
    items = [ablation.items for ablation in ablations if ablation.items > 1]
    if not items:
        return "One item has no standard error: nothing was tested."
    return f"Noise alone would give {number(200 * float(student.sf(2, min(items) - 1)), 1)} %."


def _precision_note(dtype: str) -> str:
    """The precision of the models, and its effect on small values."""
    effect = ", whose rounding alone moves costs by hundredths of a nat"
    return f"The models ran in {dtype}{'' if dtype == 'float32' else effect}."


def _heads_of(models: AnalyzedModels) -> list[tuple[str, HeadsRecord]]:
    """Label and mean record over seeds of each model that is compared in detail."""
    by_label = {m.label: _mean_heads(m.records(HeadsRecord)) for m in models.models}
    known = [label for label, record in by_label.items() if record is not None]
    shown = [label for label in models.best if label in known] or known[:1]
    return [(i, record) for i, record in by_label.items() if i in shown and record is not None]


def _mean_heads(records: Sequence[HeadsRecord]) -> HeadsRecord | None:
    """One record with the means over seeds; a standard error then is the mean of theirs.

    Seeds are scored on the same items, so the error of the mean is at most that.
    """
    if len(records) < 2:
        return records[0] if records else None
    return HeadsRecord.model_validate(_mean([record.model_dump() for record in records]))


def _mean(values: Sequence[Any]) -> Any:
    """Average the numbers of nested structures of one shape; unknown ones are left out."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, list | tuple):
        return [_mean(column) for column in zip(*values, strict=False)]
    known = [value for value in values if isinstance(value, float)]
    return fmean(known) if known else first


_ABLATED = """Exact up to rounding: the output of the head is set to zero and the items are scored \
again. Blue heads help, orange ones hurt; costs do not add up over heads. A blue difference on the \
trained task: the head carries what was learned; an orange one on another task: it carried what \
was lost there. The table ends with whole layers, which have no head number. {}"""


@register("heads", 50, per="models")
def draw_heads_ablated(models: AnalyzedModels) -> Figure | None:
    """Costs before, after and their difference, with a drop-down over models and tasks."""
    with_heads = _heads_of(models)
    ablations = {
        f"{model}: {ablation.task}": (model, ablation)
        for model, record in with_heads
        for ablation in record.ablations
    }
    if not ablations:
        return None
    before = {entry: _costs(a.base_gold_change) for entry, (_, a) in ablations.items()}
    after = {entry: _costs(a.tuned_gold_change) for entry, (_, a) in ablations.items()}
    change = {entry: _cost_increase(a) for entry, (_, a) in ablations.items()}
    shown = {"before": before, "after": after, "difference": change}
    panels = {title: _grids(values, True) for title, values in shown.items()}
    parts = [f"{entry} {_head_text(v)}, {_most(v)} nats" for entry, v in after.items()]
    changed = [f"{entry} {_beyond_noise(a)}" for entry, (_, a) in ablations.items()]
    rows = [row for model, a in ablations.values() for row in _ablation_rows(model, a)]
    return Figure(
        **models.names("heads-ablated", "What removing each head costs"),
        finding=f"Largest cost after tuning: {join_names(parts)} of the right answer. Heads whose "
        f"cost changed by more than two standard errors: {join_names(changed)}. "
        + _noise_text([a for _, a in ablations.values()]),
        data=table_from_rows(rows),
        **_map_panels(panels, list(ablations), ("cost", "cost", "difference")),
        caption=_ABLATED.format(_precision_note(with_heads[0][1].dtype)),
        choice_name="Model and task",
    )


_COMPARE = """Rows are layers, columns heads (key/value heads for k_proj and v_proj), means over \
seeds. Importance is |z . dL/dz| of the right answer, with an l2 norm of 1 in each layer: a \
first-order estimate. Entropy 0 attends to one token, 1 to all alike. Both use {} of {}. In a \
change, orange is below the base, blue above it. A head carries the skill if removing it costs the \
tuned model more of the right answer than it costs the base. {}"""


@register("heads", 10, per="models")
def draw_heads_compared(models: AnalyzedModels) -> Figure | None:
    """A panel for each model, with a drop-down over quantities; None without records of heads."""
    with_heads = _heads_of(models)
    if not with_heads:
        return None
    by_model = {label: _head_quantities(record) for label, record in with_heads}
    entries = list(dict.fromkeys(entry for values in by_model.values() for entry in values))
    signed = {entry for entry in entries if entry.endswith(("change", "nats"))}
    panels = {
        label: _grids({e: v for e, v in values.items() if e not in signed})
        | _grids({e: v for e, v in values.items() if e in signed}, signed=True)
        for label, values in by_model.items()
    }
    rows = [
        {"arm": label, "quantity": entry, "layer": layer, "head": head, "value": float(value)}
        for entry in entries
        for label, values in by_model.items()
        for (layer, head), value in np.ndenumerate(values.get(entry, np.empty((0, 0))))
        if not np.isnan(value)
    ]
    _, record = with_heads[0]
    of_items = count(record.items, "item"), record.task, _precision_note(record.dtype)
    return Figure(
        **models.names("heads", "Attention heads"),
        finding=_finding(by_model, entries[0]),
        data=table_from_rows(rows),
        **_map_panels(panels, entries, ["all"] * len(panels)),
        caption=_COMPARE.format(*of_items),
        choice_name="Shown",
    )


def _finding(by_model: Mapping[str, Mapping[str, HeadValues]], first: str) -> str:
    drawn = {label: values[first] for label, values in by_model.items() if first in values}
    parts = "; ".join(
        f"{_head_text(v)} in {label}, {_most(v)} (median head {number(float(np.nanmedian(v)))})"
        for label, v in drawn.items()
    )
    text = f"By {first.rpartition(': ')[2]}, these heads come first: {parts}."
    label, values = next(iter(by_model.items()))
    if SKILL in values:
        text += f" Removing {_head_text(values[SKILL])} costs {label} {_most(values[SKILL])} nats "
        text += "more of the right answer than the base."
    return text


# --- maps side by side ------------------------------------------------------------------------


def _map_panels(
    panels: Mapping[str, Mapping[str, Grid]], entries: Sequence[str], scales: Sequence[str]
) -> Drawn:
    """Maps of heads by layer in a row, with a drop-down over ``entries`` that changes all.

    panels: by title, maps by entry; an entry is absent if there is nothing to show.
    scales: a name for each panel; panels with the same one share the end of the color scale.
    """
    every = [
        (scale, entry, grid)
        for scale, maps in zip(scales, panels.values(), strict=True)
        for entry, grid in maps.items()
    ]
    widths = [
        max(NARROWEST, *(CELL * len(grid.values.columns) for grid in maps.values()))
        for maps in panels.values()
    ]
    figure = make_subplots(
        1, len(panels), shared_yaxes=True, column_widths=widths, horizontal_spacing=0.03
    )
    height = 130 + max(120, CELL * max(len(grid.values) for *_, grid in every))
    figure.update_layout(layout(height, margin={"l": 48, "r": 16, "t": 40, "b": 52}))
    reaches: dict[tuple[str, str], float] = {}
    for scale, entry, grid in every:
        reaches[scale, entry] = max(reaches.get((scale, entry), 0.0), grid.largest)
    choices: list[Choice] = []
    hover = {"hovertemplate": "layer %{y}, head %{x}: %{z:.3~g}<extra></extra>"}
    for entry in entries:
        first = len(figure.data)
        for column, (scale, maps) in enumerate(zip(scales, panels.values(), strict=True), start=1):
            if entry in maps:
                trace = maps[entry].trace(gap=1, reach=reaches[scale, entry])
                figure.add_heatmap(**trace | hover, visible=not choices, row=1, col=column)
        choices.append(Choice(entry, tuple(range(first, len(figure.data)))))
    for column, title in enumerate(panels, start=1):
        at = {"row": 1, "col": column}
        figure.update_xaxes(axis("head", **FLAT), **at)
        figure.update_yaxes(axis("layer" * (column == 1), **FLAT, autorange="reversed"), **at)
        domain = figure.layout["xaxis" if column == 1 else f"xaxis{column}"].domain
        figure.add_annotation(panel_heading(title, domain[0], 1))
    return Drawn(plot=figure, choices=choices, min_width=80 + sum(width + 24 for width in widths))
