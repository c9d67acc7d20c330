"""Attention heads of two models side by side, such as LoRA beside full fine-tuning."""

from collections.abc import Mapping

import numpy as np

from rankscope.formatting import count, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import MapPanel, map_panels
from rankscope.report.figures import register
from rankscope.report.head_values import (
    SKILL,
    HeadValues,
    grids,
    head_quantities,
    head_text,
    most,
    precision_note,
    rank_correlation,
)
from rankscope.report.table_formats import table_from_rows

_CAPTION = """Rows are layers, columns heads (key/value heads for k_proj and v_proj), means over \
seeds. Importance is |z . dL/dz| of the right answer, with an l2 norm of 1 in each layer: a \
first-order estimate. Entropy 0 attends to one token, 1 to all alike. Both use {} of {}. In a \
change, orange is below the base, blue above it. A head carries the skill if removing it costs the \
tuned model more of the right answer than it costs the base. {}"""


@register("heads", 10, per="models")
def draw_heads_compared(models: AnalyzedModels) -> Figure | None:
    """A panel for each model, with a drop-down over quantities; None without records of heads."""
    if not models.with_heads:
        return None
    by_model = {label: head_quantities(record) for label, record in models.with_heads}
    entries = list(dict.fromkeys(entry for values in by_model.values() for entry in values))
    signed = {entry for entry in entries if entry.endswith(("change", "nats"))}
    panels = []
    for label, values in by_model.items():
        maps = grids({e: v for e, v in values.items() if e not in signed})
        maps |= grids({e: v for e, v in values.items() if e in signed}, signed=True)
        panels.append(MapPanel(label, maps, scale="all"))
    rows = [
        {"arm": label, "quantity": entry, "layer": layer, "head": head, "value": float(value)}
        for entry in entries
        for label, values in by_model.items()
        for (layer, head), value in np.ndenumerate(values.get(entry, np.empty((0, 0))))
        if not np.isnan(value)
    ]
    _, record = models.with_heads[0]
    of_items = count(record.items, "item"), record.task, precision_note(record.dtype)
    return Figure(
        **models.names("heads", "Attention heads"),
        finding=_finding(by_model, entries[0]),
        data=table_from_rows(rows),
        **map_panels(panels, entries),
        caption=_CAPTION.format(*of_items),
        choice_name="Shown",
    )


def _finding(by_model: Mapping[str, Mapping[str, HeadValues]], first: str) -> str:
    drawn = {label: values[first] for label, values in by_model.items() if first in values}
    parts = "; ".join(
        f"{head_text(v)} in {label}, {most(v)} (median head {number(float(np.nanmedian(v)))})"
        for label, v in drawn.items()
    )
    text = f"By {first.rpartition(': ')[2]}, these heads come first: {parts}."
    if len(drawn) == 2 and (rho := rank_correlation(*drawn.values())) is not None:
        text += f" The rank correlation of the two is {number(rho, 2)}: 1 means the same heads, "
        text += "0 unrelated ones."
    label, values = next(iter(by_model.items()))
    if SKILL in values:
        text += f" Removing {head_text(values[SKILL])} costs {label} {most(values[SKILL])} nats "
        text += "more of the right answer than the base."
    return text
