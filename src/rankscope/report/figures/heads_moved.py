"""How far each head moved: |dW_h| / |W0_h| by attention matrix."""

import numpy as np

from rankscope.formatting import join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import MapPanel, map_panels
from rankscope.report.figures import register
from rankscope.report.head_values import MODULES, grids, head_text, most, moved
from rankscope.report.table_formats import table_from_rows

_CAPTION = """Rows are layers. A head is its rows of q_proj, k_proj or v_proj, or its columns of \
o_proj; a key/value head serves several query heads."""


@register("heads", 20, per="models")
def draw_heads_moved(models: AnalyzedModels) -> Figure | None:
    """A panel for each changed matrix; None if training changed no attention matrix."""
    rows = [
        {
            "model": model,
            "layer": change.layer,
            "head": head,
            "matrix": module,
            "|dW_h|_F": change.frobenius[head],
            "|dW_h|_F / |W0_h|_F": change.relative[head],
        }
        for module in MODULES
        for model, record in models.with_heads
        for change in record.changes
        if change.module == module
        for head in range(len(change.relative))
    ]
    if not rows:
        return None
    by_module = {
        f"{heads}, {module}": {m: v for m, r in models.with_heads if (v := moved(r, module)).size}
        for module, heads in MODULES.items()
    }
    panels = [MapPanel(title, grids(v), scale="moved") for title, v in by_module.items() if v]
    # The drop-down opens on its first entry, so models without a moved head are left out.
    entries = [model for model, _ in models.with_heads if any(model in p.grids for p in panels)]
    parts = []
    for model in entries:
        shown = {title: values[model] for title, values in by_module.items() if model in values}
        title, first = max(shown.items(), key=lambda pair: float(np.nanmax(pair[1])))
        median = np.nanmedian(np.concatenate([values.ravel() for values in shown.values()]))
        part = f"{model} most in {head_text(first)} ({title}), {most(first)}"
        parts.append(f"{part}; median {number(float(median))}")
    return Figure(
        **models.names("heads-moved", "How far each head moved"),
        finding=f"|dW_h|_F / |W0_h|_F: {join_names(parts)}.",
        data=table_from_rows(rows),
        **map_panels(panels, entries),
        caption=_CAPTION,
        choice_name="Model",
    )
