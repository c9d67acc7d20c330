"""Attention heads of two models side by side, such as LoRA beside full fine-tuning."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from rankscope.formatting import count, number
from rankscope.records import HeadsRecord
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import MapPanel, map_panels
from rankscope.report.figures import register
from rankscope.report.head_values import (
    MODULES,
    BeforeAndAfter,
    HeadValues,
    grids,
    head_text,
    most,
    moved,
    precision_note,
    stacked,
)
from rankscope.report.table_formats import table_from_rows

SKILL, LOST = "carries the trained skill, nats", "carried what was lost, nats"
_CAPTION = """Rows are layers, columns heads (key/value heads for k_proj and v_proj), means over \
seeds. Importance is |z . dL/dz| of the right answer, with an l2 norm of 1 in each layer. Entropy \
1 attends to all tokens alike. Both use {} of {}. Orange is below the base, blue above it. {}"""
SKILL_NOTE = """A head carries the skill if removing it costs the tuned model more of the right \
answer than it costs the base. """


def quantities(label: str, record: HeadsRecord) -> dict[str, HeadValues]:
    """What the drop-down offers, by its label; unknown quantities are left out."""
    importance = BeforeAndAfter([(label, record)], lambda layer: layer.importance)
    entropy = BeforeAndAfter([(label, record)], lambda layer: layer.entropy)
    roles: dict[str, dict[int, list[float | None]]] = {SKILL: {}, LOST: {}}
    for role in record.roles:
        roles[SKILL].setdefault(role.layer, []).append(role.skill)
        roles[LOST].setdefault(role.layer, []).append(role.lost)
    values = {
        "query heads moved: |dW_h| / |W0_h| of q_proj": moved(record, "q_proj"),
        **{f"{MODULES[m]} moved: {m}": moved(record, m) for m in ("k_proj", "v_proj", "o_proj")},
        "importance after training": importance.after[label],
        "importance, change": importance.after[label] - importance.before[label],
        "attention entropy, change": entropy.after[label] - entropy.before[label],
        **{name: stacked(by_layer) for name, by_layer in roles.items()},
    }
    return {name: v for name, v in values.items() if not np.isnan(v).all()}


@register("heads", 10, per="models")
def draw_heads_compared(models: AnalyzedModels) -> Figure | None:
    """A panel for each model, with a drop-down over quantities; None without records of heads."""
    if not models.with_heads:
        return None
    by_model = {label: quantities(label, record) for label, record in models.with_heads}
    entries = list(dict.fromkeys(entry for values in by_model.values() for entry in values))
    signed = {entry for entry in entries if entry.endswith(("change", "nats"))}
    panels = []
    for label, values in by_model.items():
        maps = grids({e: v for e, v in values.items() if e not in signed})
        maps |= grids({e: v for e, v in values.items() if e in signed}, signed=True)
        panels.append(MapPanel(label, maps, scale="all", scaled_by_entry=True))
    rows = [
        {"arm": label, "quantity": entry, "layer": layer, "head": head, "value": float(value)}
        for entry in entries
        for label, values in by_model.items()
        if entry in values
        for (layer, head), value in np.ndenumerate(values[entry])
        if not np.isnan(value)
    ]
    _, record = models.with_heads[0]
    note = (SKILL_NOTE if SKILL in entries else "") + precision_note(record.dtype)
    return Figure(
        **models.names("heads", "Attention heads"),
        finding=_finding(by_model, entries[0]),
        data=table_from_rows(rows),
        **map_panels(panels, entries),
        caption=_CAPTION.format(count(record.items, "item"), record.task, note).rstrip(),
        choice_name="Shown",
    )


def _finding(by_model: Mapping[str, Mapping[str, HeadValues]], first: str) -> str:
    drawn = {label: values[first] for label, values in by_model.items() if first in values}
    parts = "; ".join(
        f"{head_text(v)} in {label}, {most(v)} (median head {number(float(np.nanmedian(v)))})"
        for label, v in drawn.items()
    )
    text = f"By {first.rpartition(': ')[2]}, these heads come first: {parts}."
    if len(drawn) == 2 and len({values.shape for values in drawn.values()}) == 1:
        a, b = (values.ravel() for values in drawn.values())
        both = ~(np.isnan(a) | np.isnan(b))
        rho = rank_correlation(a[both], b[both])
        if rho is not None:
            text += f" The rank correlation of the two over {count(int(both.sum()), 'head')} is "
            text += f"{number(rho, 2)}: 1 means the same heads, 0 unrelated ones."
    label, values = next(iter(by_model.items()))
    if SKILL in values:
        text += (
            f" Removing {head_text(values[SKILL])} costs {label} {most(values[SKILL])} nats more "
        )
        text += "of the right answer than the base."
    return text


def rank_correlation(a: HeadValues, b: HeadValues) -> float | None:
    """Spearman's coefficient; None if one of the two does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
