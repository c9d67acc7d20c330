"""What each head is worth by gradient, before and after."""

from rankscope.formatting import count, join_names
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import MapPanel, map_panels
from rankscope.report.figures import register
from rankscope.report.head_values import BeforeAndAfter, grids, of_layers

_CAPTION = """|z . dL/dz| of the right answer, with an l2 norm of 1 in each layer, so heads of \
one layer can be compared. It is a first-order estimate: if heads can replace each other it says \
little, and ablation is exact. In the difference, orange is less than before and blue more."""


@register("heads", 30, per="models")
def draw_heads_importance(models: AnalyzedModels) -> Figure | None:
    """Query heads before, after and their difference, and key/value heads after."""
    if not models.with_heads:
        return None
    values = BeforeAndAfter(models.with_heads, lambda layer: layer.importance)
    groups = {
        m: of_layers(r.tuned, lambda layer: layer.group_importance) for m, r in models.with_heads
    }
    panels = [*values.panels(), MapPanel("key/value heads, after", grids(groups))]
    _, record = models.with_heads[0]
    parts = join_names(f"in {model}, {values.most_changed(model)}" for model in groups)
    return Figure(
        **models.names("heads-importance", "What each head is worth, by gradient"),
        finding=f"Importance on {count(record.items, 'item')} of {record.task}: {parts}.",
        data=values.table(),
        **map_panels(panels, list(groups)),
        caption=_CAPTION,
        choice_name="Model",
    )
