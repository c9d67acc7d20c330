"""Values of attention heads as arrays (layers, heads), NaN where unknown."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata
from scipy.stats import t as student

from rankscope.analyses.heads.record import HeadAblation, HeadsRecord, LayerHeads
from rankscope.formatting import number
from rankscope.report.charts.heat_map import Grid

HeadValues = npt.NDArray[np.float64]
OfLayer = Callable[[LayerHeads], Sequence[float | None]]

SKILL, LOST = "carries the trained skill, nats", "carried what was lost, nats"
MODULES = {
    "q_proj": "query heads",
    "k_proj": "key heads",
    "v_proj": "value heads",
    "o_proj": "output slices",
}


def stacked(by_layer: Mapping[int, Sequence[float | None]]) -> HeadValues:
    """Rows by layer, filled with NaN if a layer is absent or has fewer heads."""
    width = max(map(len, by_layer.values()), default=0)
    values = np.full((max(by_layer, default=-1) + 1, width), np.nan)
    for layer, row in by_layer.items():
        values[layer, : len(row)] = [np.nan if v is None else v for v in row]
    return values


def _of_layers(layers: Sequence[LayerHeads], value: OfLayer) -> HeadValues:
    return stacked({layer.layer: value(layer) for layer in layers})


def moved(record: HeadsRecord, module: str) -> HeadValues:
    """|dW_h|_F / |W0_h|_F of one attention matrix; empty if training did not change it."""
    return stacked({c.layer: c.relative for c in record.changes if c.module == module})


def costs(change: Sequence[Sequence[float]]) -> HeadValues:
    return stacked({layer: [-v for v in row] for layer, row in enumerate(change)})


def cost_increase(ablation: HeadAblation) -> HeadValues:
    """How much more each removal costs after tuning than before, nats per item."""
    return costs(ablation.tuned_gold_change) - costs(ablation.base_gold_change)


def largest(values: HeadValues) -> tuple[int, int]:
    """(layer, head) of the largest known value."""
    layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return int(layer), int(head)


def head_text(values: HeadValues) -> str:
    """The head with the largest value, such as ``layer 3 head 1``."""
    return "layer {} head {}".format(*largest(values))


def most(values: HeadValues) -> str:
    return number(float(np.nanmax(values)))


def grids(values: Mapping[str, HeadValues], signed: bool = False) -> dict[str, Grid]:
    """Grids by entry of a drop-down; entries without a known value are left out."""
    known = {entry: of_entry for entry, of_entry in values.items() if not np.isnan(of_entry).all()}
    return {entry: Grid(pd.DataFrame(of_entry), signed) for entry, of_entry in known.items()}


def head_quantities(record: HeadsRecord) -> dict[str, HeadValues]:
    """What is known of the heads of one model, by its label in a drop-down."""
    roles: dict[str, dict[int, list[float | None]]] = {SKILL: {}, LOST: {}}
    for role in record.roles:
        roles[SKILL].setdefault(role.layer, []).append(role.skill)
        roles[LOST].setdefault(role.layer, []).append(role.lost)
    values = {f"{MODULES[m]} moved: |dW_h| / |W0_h| of {m}": moved(record, m) for m in MODULES}
    measures: dict[str, OfLayer] = {
        "importance": lambda layer: layer.importance,
        "attention entropy": lambda layer: layer.entropy,
    }
    for name, measure in measures.items():
        before, after = _of_layers(record.base, measure), _of_layers(record.tuned, measure)
        values |= {f"{name}, change": after - before, f"{name} after training": after}
        values[f"{name} before training"] = before
    values["importance of key/value heads"] = _of_layers(
        record.tuned, lambda layer: layer.group_importance
    )
    values |= {name: stacked(by_layer) for name, by_layer in roles.items()}
    return {name: v for name, v in values.items() if not np.isnan(v).all()}


def rank_correlation(a: HeadValues, b: HeadValues) -> float | None:
    """Spearman's coefficient over the heads known in both; None if one of them does not vary."""
    if a.shape != b.shape:
        return None
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def ablation_rows(model: str, ablation: HeadAblation) -> list[dict[str, object]]:
    """A row per head, then one per layer with all its heads removed."""
    heads: list[dict[str, object]] = [
        {
            "model": model,
            "layer": layer,
            "head": head,
            "task": ablation.task,
            "cost before, nats per item": -before,
            "cost after, nats per item": -ablation.tuned_gold_change[layer][head],
            "standard error of the difference": ablation.gold_difference_error[layer][head],
            "score lost before": -ablation.base_change[layer][head],
            "score lost after": -ablation.tuned_change[layer][head],
        }
        for layer, values in enumerate(ablation.base_gold_change)
        for head, before in enumerate(values)
    ]
    layers = zip(ablation.base_layer_gold_change, ablation.tuned_layer_gold_change, strict=True)
    return heads + [
        dict.fromkeys(heads[0])
        | {"model": model, "layer": layer, "task": ablation.task}
        | {"cost before, nats per item": -before, "cost after, nats per item": -after}
        for layer, (before, after) in enumerate(layers)
    ]


def beyond_noise(ablation: HeadAblation) -> str:
    """How many costs changed by more than two standard errors."""
    errors = [error for layer in ablation.gold_difference_error for error in layer]
    values = [float(v) for v in cost_increase(ablation).ravel() if not np.isnan(v)]
    tested = [(v, e) for v, e in zip(values, errors, strict=True) if e is not None]
    return f"{sum(abs(v) > 2 * e for v, e in tested)} of {len(tested)}"


def noise_text(ablations: Sequence[HeadAblation]) -> str:
    """How many heads noise alone puts beyond two standard errors, by Student's t.

    The fewest items count. One item has no standard error, so nothing is tested on it.
    """
    items = [ablation.items for ablation in ablations if ablation.items > 1]
    if not items:
        return "One item has no standard error: nothing was tested."
    return f"Noise alone would give {number(200 * float(student.sf(2, min(items) - 1)), 1)} %."


def precision_note(dtype: str) -> str:
    """The precision of the models, and its effect on small values."""
    effect = ", whose rounding alone moves costs by hundredths of a nat"
    return f"The models ran in {dtype}{'' if dtype == 'float32' else effect}."
