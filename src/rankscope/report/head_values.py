"""Values of attention heads as arrays (layers, heads), NaN where unknown."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from rankscope.formatting import number
from rankscope.records import HeadAblation, HeadsRecord, LayerHeads
from rankscope.report.charts.figure import tidy
from rankscope.report.charts.heat_map import Grid, MapPanel

HeadValues = npt.NDArray[np.float64]
OfLayer = Callable[[LayerHeads], Sequence[float | None]]

MODULES = {
    "q_proj": "query heads",
    "k_proj": "key heads",
    "v_proj": "value heads",
    "o_proj": "output slices",
}


def stacked(by_layer: Mapping[int, Sequence[float | None]]) -> HeadValues | None:
    """Rows by layer, filled with NaN if a layer is absent or has fewer heads; None if empty."""
    if not by_layer:
        return None
    width = max(map(len, by_layer.values()))
    values = np.full((max(by_layer) + 1, width), np.nan)
    for layer, row in by_layer.items():
        values[layer, : len(row)] = [np.nan if v is None else v for v in row]
    return values


def of_layers(layers: Sequence[LayerHeads], value: OfLayer) -> HeadValues:
    """One value of every head of a model."""
    values = stacked({layer.layer: value(layer) for layer in layers})
    return np.zeros((0, 0)) if values is None else values


def moved(record: HeadsRecord, module: str) -> HeadValues | None:
    """|dW_h|_F / |W0_h|_F of one attention matrix; None if training did not change it."""
    return stacked({c.layer: c.relative for c in record.changes if c.module == module})


def costs(change: Sequence[Sequence[float]]) -> HeadValues:
    """The cost of removing each head: minus the change."""
    values = stacked({layer: [-v for v in row] for layer, row in enumerate(change)})
    return np.zeros((0, 0)) if values is None else values


def cost_increase(ablation: HeadAblation) -> HeadValues:
    """How much more each removal costs after tuning than before, nats per item."""
    return costs(ablation.tuned_gold_change) - costs(ablation.base_gold_change)


def largest(values: HeadValues) -> tuple[int, int]:
    """(layer, head) of the largest known value."""
    layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return int(layer), int(head)


def grids(values: Mapping[str, HeadValues], signed: bool = False) -> dict[str, Grid]:
    """Grids by entry of a drop-down; entries without a known value are left out."""
    return {
        entry: Grid(pd.DataFrame(of_entry), signed)
        for entry, of_entry in values.items()
        if not np.isnan(of_entry).all()
    }


def before_and_after(
    models: Sequence[tuple[str, HeadsRecord]], value: OfLayer
) -> tuple[dict[str, HeadValues], dict[str, HeadValues]]:
    """One value of every head of the base and of the tuned model, by model."""
    before = {model: of_layers(record.base, value) for model, record in models}
    after = {model: of_layers(record.tuned, value) for model, record in models}
    return before, after


def difference_panels(
    before: Mapping[str, HeadValues], after: Mapping[str, HeadValues]
) -> list[MapPanel]:
    """Three panels: before, after, and their difference with a color scale of its own."""
    change = {entry: after[entry] - before[entry] for entry in before}
    return [
        MapPanel("before", grids(before), scale="value"),
        MapPanel("after", grids(after), scale="value"),
        MapPanel("difference", grids(change, signed=True)),
    ]


def pairs_frame(before: Mapping[str, HeadValues], after: Mapping[str, HeadValues]) -> pd.DataFrame:
    """A row per model and head."""
    cells = [(model, *at) for model, values in before.items() for at in np.ndindex(values.shape)]

    def column(values: Mapping[str, HeadValues]) -> list[float | None]:
        found = [float(values[model][layer, head]) for model, layer, head in cells]
        return [None if np.isnan(value) else value for value in found]

    columns = [list(column) for column in zip(*cells, strict=True)] or [[], [], []]
    return tidy(
        dict(zip(("model", "layer", "head"), columns, strict=True))
        | {"before": column(before), "after": column(after)},
        {"layer": 0, "head": 0},
    )


def most_changed(before: HeadValues, after: HeadValues) -> str:
    """The head that changed most, in words."""
    change = after - before
    if np.isnan(change).all():
        return "no head has a known value"
    layer, head = largest(np.abs(change))
    return f"layer {layer} head {head} changed most, by {number(float(change[layer, head]))}"


def precision_note(dtype: str | None) -> str:
    """The precision of the models, and its effect on small values; empty if unknown."""
    if dtype is None:
        return ""
    effect = "" if dtype == "float32" else ", whose rounding alone moves costs by .01 nats and more"
    return f"The models ran in {dtype}{effect}."
