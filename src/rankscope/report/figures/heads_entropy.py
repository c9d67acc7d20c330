"""Where each head looks: attention entropy before and after."""

import numpy as np

from rankscope.formatting import join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import map_panels
from rankscope.report.figures import register
from rankscope.report.head_values import BeforeAndAfter, HeadValues

_CAPTION = """0 attends to one token, 1 to all alike; the mean over the positions of prompts with \
their right answers. In the difference, orange is narrower than before and blue wider."""


@register("heads", 40, per="models")
def draw_heads_entropy(models: AnalyzedModels) -> Figure | None:
    """Query heads before, after and their difference."""
    if not models.with_heads:
        return None
    values = BeforeAndAfter(models.with_heads, lambda layer: layer.entropy)
    panels = values.panels()
    parts = join_names(
        f"{model} {known_mean(before)} before and {known_mean(values.after[model])} after; "
        f"{values.most_changed(model)}"
        for model, before in values.before.items()
    )
    return Figure(
        **models.names("heads-entropy", "Where each head looks"),
        finding=f"Attention entropy, mean over heads: {parts}.",
        data=values.table(),
        **map_panels(panels, list(values.before)),
        caption=_CAPTION,
        choice_name="Model",
    )


def known_mean(values: HeadValues) -> str:
    known = values[~np.isnan(values)]
    return number(float(known.mean()) if known.size else None)
