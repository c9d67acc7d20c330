"""Attention heads of two models side by side, such as LoRA beside full fine-tuning."""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from rankscope.formatting import count, number
from rankscope.records import HeadsRecord
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure, tidy
from rankscope.report.charts.heat_map import MapPanel, map_panels, panels_width
from rankscope.report.figures import register
from rankscope.report.head_values import (
    MODULES,
    HeadValues,
    grids,
    largest,
    moved,
    of_layers,
    precision_note,
    stacked,
)

SKILL = "carries the trained skill, nats"
SIGNED = ("change", "nats")
"""Words of the quantities that have a sign."""


def role(record: HeadsRecord, value: Callable[..., float | None]) -> HeadValues | None:
    """A value of the roles of all heads."""
    by_layer: dict[int, list[float | None]] = {}
    for head in record.roles:
        by_layer.setdefault(head.layer, []).append(value(head))
    return stacked(by_layer)


def quantities(record: HeadsRecord) -> dict[str, HeadValues]:
    """What the drop-down offers, by its label; unknown quantities are left out."""
    importance, entropy = (
        [of_layers(layers, value) for layers in (record.base, record.tuned)]
        for value in (lambda layer: layer.importance, lambda layer: layer.entropy)
    )
    values = {
        "query heads moved: |dW_h| / |W0_h| of q_proj": moved(record, "q_proj"),
        **{f"{MODULES[m]} moved: {m}": moved(record, m) for m in ("k_proj", "v_proj", "o_proj")},
        "importance after training": importance[1],
        "importance, change": importance[1] - importance[0],
        "attention entropy, change": entropy[1] - entropy[0],
        SKILL: role(record, lambda head: head.skill),
        "carried what was lost, nats": role(record, lambda head: head.lost),
    }
    return {k: v for k, v in values.items() if v is not None and not np.isnan(v).all()}


@register("heads", 10, per="models")
def draw(models: AnalyzedModels) -> Figure | None:
    """A panel for each model, with a drop-down over quantities; None without records of heads."""
    if not models.with_heads:
        return None
    by_model = {label: quantities(record) for label, record in models.with_heads}
    entries = list(dict.fromkeys(entry for values in by_model.values() for entry in values))
    panels = [
        MapPanel(
            label,
            {e: g for e in values for g in grids({e: values[e]}, e.endswith(SIGNED)).values()},
            scale="all",
            scaled_by_entry=True,
        )
        for label, values in by_model.items()
    ]  # fmt: skip
    cells = [
        (label, entry, *at, float(values[entry][at]))
        for entry in entries
        for label, values in by_model.items()
        if entry in values
        for at in np.ndindex(values[entry].shape)
        if not np.isnan(values[entry][at])
    ]
    titles = ("arm", "quantity", "layer", "head", "value")
    plot, choices = map_panels(panels, entries)
    _, record = models.with_heads[0]
    caption = (
        "Rows are layers, columns heads (key/value heads for k_proj and v_proj), means over seeds. "
        "Importance is |z . dL/dz| of the right answer, with an l2 norm of 1 in each layer. "
        "Entropy 1 attends to all tokens alike. Both use "
        f"{count(record.items, 'item')} of {record.task}. Orange is below the base, blue above it. "
    )
    if SKILL in entries:
        caption += (
            "A head carries the skill if removing it costs the tuned model more of the right "
        )
        caption += "answer than it costs the base. "
    return Figure(
        key=models.key("heads"),
        title=models.title("Attention heads"),
        finding=finding(by_model, entries[0]),
        data=tidy(
            {title: [cell[i] for cell in cells] for i, title in enumerate(titles)},
            {"layer": 0, "head": 0},
        ),
        plot=plot,
        caption=f"{caption}{precision_note(record.dtype)}".rstrip(),
        choices=choices,
        choice_name="Shown",
        min_width=panels_width(panels),
    )


def finding(by_model: dict[str, dict[str, HeadValues]], first: str) -> str:
    """The first head of each model, whether both order heads alike, and who has the skill."""
    drawn = [(label, values[first]) for label, values in by_model.items() if first in values]
    parts = []
    for label, values in drawn:
        layer, head = largest(values)
        parts.append(
            f"layer {layer} head {head} in {label}, {number(float(np.nanmax(values)))} "
            f"(median head {number(float(np.nanmedian(values)))})"
        )
    text = f"By {first.rpartition(': ')[2]}, these heads come first: {'; '.join(parts)}."
    if len(drawn) == 2 and drawn[0][1].shape == drawn[1][1].shape:
        a, b = (values.ravel() for _, values in drawn)
        both = ~(np.isnan(a) | np.isnan(b))
        rho = rank_correlation(a[both], b[both])
        if rho is not None:
            text += f" The rank correlation of the two over {count(int(both.sum()), 'head')} is "
            text += f"{number(rho, 2)}: 1 means the same heads, 0 unrelated ones."
    label, of_first = next(iter(by_model.items()))
    if SKILL in of_first:
        layer, head = largest(of_first[SKILL])
        cost = number(float(np.nanmax(of_first[SKILL])))
        text += f" Removing layer {layer} head {head} costs {label} {cost} nats more of the right "
        text += "answer than the base."
    return text


def rank_correlation(a: HeadValues, b: HeadValues) -> float | None:
    """Spearman's coefficient; None if one of the two does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
