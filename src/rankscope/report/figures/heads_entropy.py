"""Where each head looks: attention entropy before and after."""

import numpy as np

from rankscope.formatting import join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import map_panels, panels_width
from rankscope.report.figures import register
from rankscope.report.head_values import (
    HeadValues,
    before_and_after,
    difference_panels,
    most_changed,
    pairs_frame,
)

CAPTION = """0 attends to one token, 1 to all alike; the mean over the positions of prompts with \
their right answers. In the difference, orange is narrower than before and blue wider."""


@register("heads", 40, per="models")
def draw(models: AnalyzedModels) -> Figure | None:
    """Query heads before, after and their difference."""
    if not models.with_heads:
        return None
    before, after = before_and_after(models.with_heads, lambda layer: layer.entropy)
    panels = difference_panels(before, after)
    plot, choices = map_panels(panels, list(before))
    parts = join_names(
        f"{model} {mean(before[model])} before and {mean(after[model])} after; "
        f"{most_changed(before[model], after[model])}"
        for model in before
    )
    return Figure(
        key=models.key("heads-entropy"),
        title=models.title("Where each head looks"),
        finding=f"Attention entropy, mean over heads: {parts}.",
        data=pairs_frame(before, after),
        plot=plot,
        caption=CAPTION,
        choices=choices,
        choice_name="Model",
        min_width=panels_width(panels),
    )


def mean(values: HeadValues) -> str:
    """The mean over the heads with a known value."""
    known = values[~np.isnan(values)]
    return number(float(known.mean()) if known.size else None)
