"""Values of attention heads as arrays (layers, heads), NaN where unknown."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from rankscope.formatting import number
from rankscope.records import HeadAblation, HeadsRecord, LayerHeads
from rankscope.report.charts.heat_map import Grid, MapPanel
from rankscope.report.table_formats import table_from_rows

HeadValues = npt.NDArray[np.float64]
OfLayer = Callable[[LayerHeads], Sequence[float | None]]

MODULES = {
    "q_proj": "query heads",
    "k_proj": "key heads",
    "v_proj": "value heads",
    "o_proj": "output slices",
}


def stacked(by_layer: Mapping[int, Sequence[float | None]]) -> HeadValues:
    """Rows by layer, filled with NaN if a layer is absent or has fewer heads."""
    width = max(map(len, by_layer.values()), default=0)
    values = np.full((max(by_layer, default=-1) + 1, width), np.nan)
    for layer, row in by_layer.items():
        values[layer, : len(row)] = [np.nan if v is None else v for v in row]
    return values


def of_layers(layers: Sequence[LayerHeads], value: OfLayer) -> HeadValues:
    """One value of every head of a model."""
    return stacked({layer.layer: value(layer) for layer in layers})


def moved(record: HeadsRecord, module: str) -> HeadValues:
    """|dW_h|_F / |W0_h|_F of one attention matrix; empty if training did not change it."""
    return stacked({c.layer: c.relative for c in record.changes if c.module == module})


def costs(change: Sequence[Sequence[float]]) -> HeadValues:
    """The cost of removing each head: minus the change."""
    return stacked({layer: [-v for v in row] for layer, row in enumerate(change)})


def cost_increase(ablation: HeadAblation) -> HeadValues:
    """How much more each removal costs after tuning than before, nats per item."""
    return costs(ablation.tuned_gold_change) - costs(ablation.base_gold_change)


def largest(values: HeadValues) -> tuple[int, int]:
    """(layer, head) of the largest known value."""
    layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return int(layer), int(head)


def head_text(values: HeadValues) -> str:
    """The head with the largest value, such as ``layer 3 head 1``."""
    return "layer {} head {}".format(*largest(values))


def most(values: HeadValues) -> str:
    """The largest known value."""
    return number(float(np.nanmax(values)))


def grids(values: Mapping[str, HeadValues], signed: bool = False) -> dict[str, Grid]:
    """Grids by entry of a drop-down; entries without a known value are left out."""
    known = {entry: of_entry for entry, of_entry in values.items() if not np.isnan(of_entry).all()}
    return {entry: Grid(pd.DataFrame(of_entry), signed) for entry, of_entry in known.items()}


class BeforeAndAfter:
    """One value of every head of the base and of the tuned model, by model."""

    def __init__(self, models: Sequence[tuple[str, HeadsRecord]], value: OfLayer) -> None:
        self.before = {model: of_layers(record.base, value) for model, record in models}
        self.after = {model: of_layers(record.tuned, value) for model, record in models}

    def panels(self) -> list[MapPanel]:
        """Three panels: before, after, and their difference with a color scale of its own."""
        change = {model: self.after[model] - before for model, before in self.before.items()}
        return [
            MapPanel("before", grids(self.before), scale="value"),
            MapPanel("after", grids(self.after), scale="value"),
            MapPanel("difference", grids(change, signed=True)),
        ]

    def table(self) -> pd.DataFrame:
        """A row per model and head."""
        return table_from_rows(
            [
                {
                    "model": model,
                    "layer": layer,
                    "head": head,
                    "before": None if np.isnan(value) else float(value),
                    "after": None if np.isnan(v := self.after[model][layer, head]) else float(v),
                }
                for model, before in self.before.items()
                for (layer, head), value in np.ndenumerate(before)
            ]
        )

    def most_changed(self, model: str) -> str:
        """The head that changed most, in words."""
        change = self.after[model] - self.before[model]
        if np.isnan(change).all():
            return "no head has a known value"
        at = largest(np.abs(change))
        return f"{head_text(np.abs(change))} changed most, by {number(float(change[at]))}"


def precision_note(dtype: str | None) -> str:
    """The precision of the models, and its effect on small values; empty if unknown."""
    if dtype is None:
        return ""
    effect = ", whose rounding alone moves costs by hundredths of a nat"
    return f"The models ran in {dtype}{'' if dtype == 'float32' else effect}."
