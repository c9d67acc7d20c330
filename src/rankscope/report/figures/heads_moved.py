"""How far each head moved: |dW_h| / |W0_h| by attention matrix."""

import numpy as np

from rankscope.formatting import join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure, tidy
from rankscope.report.charts.heat_map import MapPanel, map_panels, panels_width
from rankscope.report.figures import register
from rankscope.report.head_values import MODULES, grids, largest, moved

CAPTION = """Rows are layers. A head is its rows of q_proj, k_proj or v_proj, or its columns of \
o_proj; a key/value head serves several query heads."""


@register("heads", 20, per="models")
def draw(models: AnalyzedModels) -> Figure | None:
    """A panel for each changed matrix; None if training changed no attention matrix."""
    changed = [
        (model, c.layer, head, c.module, c.frobenius[head], c.relative[head])
        for module in MODULES
        for model, record in models.with_heads
        for c in record.changes
        if c.module == module
        for head in range(len(c.relative))
    ]
    if not changed:
        return None
    titles = ("model", "layer", "head", "matrix", "|dW_h|_F", "|dW_h|_F / |W0_h|_F")
    by_module = {
        f"{heads}, {module}": {
            model: values
            for model, record in models.with_heads
            if (values := moved(record, module)) is not None
        }
        for module, heads in MODULES.items()
    }
    panels = [MapPanel(title, grids(v), scale="moved") for title, v in by_module.items() if v]
    # The drop-down opens on its first entry, so models without a moved head are left out.
    entries = [model for model, _ in models.with_heads if any(model in p.grids for p in panels)]
    plot, choices = map_panels(panels, entries)
    parts = []
    for model in entries:
        shown = {title: values[model] for title, values in by_module.items() if model in values}
        title, most = max(shown.items(), key=lambda pair: float(np.nanmax(pair[1])))
        layer, head = largest(most)
        median = np.nanmedian(np.concatenate([values.ravel() for values in shown.values()]))
        parts.append(
            f"{model} most in layer {layer} head {head} ({title}), "
            f"{number(float(np.nanmax(most)))}; median {number(float(median))}"
        )
    return Figure(
        key=models.key("heads-moved"),
        title=models.title("How far each head moved"),
        finding=f"|dW_h|_F / |W0_h|_F: {join_names(parts)}.",
        data=tidy(
            {title: [row[i] for row in changed] for i, title in enumerate(titles)},
            {"layer": 0, "head": 0},
        ),
        plot=plot,
        caption=CAPTION,
        choices=choices,
        choice_name="Model",
        min_width=panels_width(panels),
    )
