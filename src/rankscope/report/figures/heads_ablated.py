"""What removing each head costs on the right answer, before and after, by task."""

from rankscope.formatting import join_names, number
from rankscope.records import HeadAblation
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import MapPanel, map_panels
from rankscope.report.figures import register
from rankscope.report.head_values import (
    cost_increase,
    costs,
    grids,
    head_text,
    most,
    precision_note,
)
from rankscope.report.table_formats import table_from_rows

_CAPTION = """Exact up to rounding: the output of the head is set to zero and the items are \
scored again. Blue heads help, orange ones hurt; costs do not add up over heads. The table ends \
with whole layers, which have no head number. {}"""


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
        MapPanel("before", grids(before, True), "cost", scaled_by_entry=True),
        MapPanel("after", grids(after, True), "cost", scaled_by_entry=True),
        MapPanel("difference", grids(change, True), scaled_by_entry=True),
    ]
    parts = []
    for entry, (_, ablation) in ablations.items():
        text = f"{entry} {head_text(after[entry])}, {most(after[entry])} nats"
        if whole := ablation.tuned_layer_gold_change:
            costliest = min(range(len(whole)), key=whole.__getitem__)
            text += f" (all of layer {costliest}, {number(-whole[costliest])})"
        parts.append(text)
    dtype = models.with_heads[0][1].dtype
    return Figure(
        **models.names("heads-ablated", "What removing each head costs"),
        finding=f"Largest cost after tuning: {join_names(parts)} of the right answer.",
        data=table_from_rows([row for model, a in ablations.values() for row in rows(model, a)]),
        **map_panels(panels, list(ablations)),
        caption=_CAPTION.format(precision_note(dtype)).rstrip(),
        choice_name="Model and task",
    )


def rows(model: str, ablation: HeadAblation) -> list[dict[str, object]]:
    """A row per head, then one per layer with all its heads removed."""
    titles = (
        *("model", "layer", "head", "task", "cost before, nats per item"),
        *("cost after, nats per item", "standard error of the difference"),
        *("score lost before", "score lost after"),
    )
    heads: list[tuple[object, ...]] = [
        (
            *(model, layer, head, ablation.task),
            *(-before, -ablation.tuned_gold_change[layer][head]),
            ablation.gold_difference_error[layer][head],
            *(-ablation.base_change[layer][head], -ablation.tuned_change[layer][head]),
        )
        for layer, values in enumerate(ablation.base_gold_change)
        for head, before in enumerate(values)
    ]
    layers = zip(ablation.base_layer_gold_change, ablation.tuned_layer_gold_change, strict=True)
    heads += [
        (model, layer, None, ablation.task, -before, -after, None, None, None)
        for layer, (before, after) in enumerate(layers)
    ]
    return [dict(zip(titles, cells, strict=True)) for cells in heads]
