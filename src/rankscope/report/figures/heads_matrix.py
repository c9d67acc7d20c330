"""Heads by tasks: how much more each removal costs after tuning than before."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

from rankscope.formatting import join_names, number
from rankscope.records import HeadAblation
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import Grid, heat_map
from rankscope.report.figures import register
from rankscope.report.head_values import HeadValues, cost_increase
from rankscope.report.table_formats import table_from_rows

MOST_ROWS = 16
"""Heads drawn."""
_CAPTION = """How much more removing a head costs after tuning than before, nats per item, for \
the {} heads that differ most. Blue on the trained task: the head carries what was learned. \
Orange on another task: it carried what was lost there. The table has every head."""


@register("heads", 60, per="models")
def draw_heads_matrix(models: AnalyzedModels) -> Figure | None:
    """The heads that differ most on any task; None without ablations."""
    ablated = [(model, record) for model, record in models.with_heads if record.ablations]
    if not ablated:
        return None
    tasks = list(dict.fromkeys(a.task for _, record in ablated for a in record.ablations))
    trained = ablated[0][1].task
    titles = [f"{task} (trained)" if task == trained else task for task in tasks]
    increases = {
        model: {a.task: cost_increase(a) for a in record.ablations} for model, record in ablated
    }
    every = [values for by_task in increases.values() for values in by_task.values()]
    reach = max(float(np.nanmax(np.abs(values))) for values in every)
    grids = {
        model: Grid(wide(by_task, tasks).set_axis(titles, axis=1), True, reach)
        for model, by_task in increases.items()
    }
    rows = [
        {"model": m, "layer": r.layer, "head": r.head, "skill, nats": r.skill, "lost, nats": r.lost}
        for m, record in ablated
        for r in record.roles
    ]
    parts = [beyond_noise(model, a) for model, record in ablated for a in record.ablations]
    noise = noise_text([a for _, record in ablated for a in record.ablations])
    return Figure(
        **models.names(
            "heads-matrix", "Which heads carry the tuned skill, which carried what was lost"
        ),
        finding=f"Heads whose cost changed by more than two standard errors: {join_names(parts)}. "
        f"{noise}",
        data=table_from_rows(rows),
        **heat_map(grids, row_height=20, cell_format="%{z:.2~g}"),
        caption=_CAPTION.format(MOST_ROWS),
        choice_name="Model",
    )


def wide(by_task: dict[str, HeadValues], tasks: Sequence[str]) -> pd.DataFrame:
    """A row for each of the heads with the largest value on any task, by layer."""
    spread = np.max([np.nan_to_num(np.abs(values)) for values in by_task.values()], axis=0)
    order = np.argsort(-spread.ravel(), kind="stable")[:MOST_ROWS]
    heads = sorted((int(at) // spread.shape[1], int(at) % spread.shape[1]) for at in order)
    return pd.DataFrame(
        {t: [by_task[t][at] if t in by_task else np.nan for at in heads] for t in tasks},
        index=[f"layer {layer}, head {head}" for layer, head in heads],
    )


def beyond_noise(model: str, ablation: HeadAblation) -> str:
    """How many costs changed by more than two standard errors."""
    errors = [error for layer in ablation.gold_difference_error for error in layer]
    values = [float(v) for v in cost_increase(ablation).ravel() if not np.isnan(v)]
    tested = [(v, e) for v, e in zip(values, errors, strict=True) if e is not None]
    return f"{model} on {ablation.task} {sum(abs(v) > 2 * e for v, e in tested)} of {len(tested)}"


def noise_text(ablations: Sequence[HeadAblation]) -> str:
    """How many heads noise alone puts beyond two standard errors, by Student's t.

    The fewest items count. One item has no standard error, so nothing is tested on it.
    """
    items = [ablation.items for ablation in ablations if ablation.items > 1]
    if not items:
        return "One item has no standard error: nothing was tested."
    return f"Noise alone would give {number(200 * float(student.sf(2, min(items) - 1)), 1)} %."
