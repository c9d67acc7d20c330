"""What removing each head costs on the right answer, before and after, by task."""

from rankscope.formatting import join_names
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import MapPanel, map_panels
from rankscope.report.figures import register
from rankscope.report.head_values import (
    ablation_rows,
    beyond_noise,
    cost_increase,
    costs,
    grids,
    head_text,
    most,
    noise_text,
    precision_note,
)
from rankscope.report.table_formats import table_from_rows

_CAPTION = """Exact up to rounding: the output of the head is set to zero and the items are scored \
again. Blue heads help, orange ones hurt; costs do not add up over heads. A blue difference on the \
trained task: the head carries what was learned; an orange one on another task: it carried what \
was lost there. The table ends with whole layers, which have no head number. {}"""


@register("heads", 50, per="models")
def draw_heads_ablated(models: AnalyzedModels) -> Figure | None:
    """Costs before, after and their difference, with a drop-down over models and tasks."""
    ablations = {
        f"{model}: {ablation.task}": (model, ablation)
        for model, record in models.with_heads
        for ablation in record.ablations
    }
    if not ablations:
        return None
    before = {entry: costs(a.base_gold_change) for entry, (_, a) in ablations.items()}
    after = {entry: costs(a.tuned_gold_change) for entry, (_, a) in ablations.items()}
    change = {entry: cost_increase(a) for entry, (_, a) in ablations.items()}
    panels = [
        MapPanel("before", grids(before, True), "cost"),
        MapPanel("after", grids(after, True), "cost"),
        MapPanel("difference", grids(change, True)),
    ]
    parts = [f"{entry} {head_text(v)}, {most(v)} nats" for entry, v in after.items()]
    changed = [f"{entry} {beyond_noise(a)}" for entry, (_, a) in ablations.items()]
    rows = [row for model, a in ablations.values() for row in ablation_rows(model, a)]
    return Figure(
        **models.names("heads-ablated", "What removing each head costs"),
        finding=f"Largest cost after tuning: {join_names(parts)} of the right answer. Heads whose "
        f"cost changed by more than two standard errors: {join_names(changed)}. "
        + noise_text([a for _, a in ablations.values()]),
        data=table_from_rows(rows),
        **map_panels(panels, list(ablations)),
        caption=_CAPTION.format(precision_note(models.with_heads[0][1].dtype)),
        choice_name="Model and task",
    )
