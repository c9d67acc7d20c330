"""Figures of the attention heads: the change of each by training, and the cost of removing it."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from plotly.subplots import make_subplots
from scipy.stats import t as student

from rankscope.extensions.heads.record import HeadsRecord
from rankscope.extensions.heads.tables import head_tables
from rankscope.formatting import count, join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.concentration import effective_number
from rankscope.report.charts.figure import (
    FLAT,
    Choice,
    Drawn,
    Figure,
    axis,
    layout,
    panel_heading,
    records,
)
from rankscope.report.charts.heat_map import Grid
from rankscope.report.charts.rank_lines import Panel, rank_plot
from rankscope.report.figures import Section, in_section
from rankscope.report.table_formats import table

HEADS_SECTION = Section(
    "heads",
    60,
    "Attention heads",
    "What training did to each head of each layer, on the same items before and after.",
    folded=True,
)
HeadValues = npt.NDArray[np.float64]

CELL = 16  # Size of a cell of a panel, pixels
NARROWEST = 110  # Least width of a panel, pixels
SKILL, LOST = "carries the trained skill, nats", "carried what was lost, nats"
MODULES = {
    "q_proj": "query heads",
    "k_proj": "key heads",
    "v_proj": "value heads",
    "o_proj": "output slices",
}
MOVED = {f"{words} moved: |dW_h| / |W0_h| of {m}": m for m, words in MODULES.items()}
CHANGES = {name: f"{name}, change" for name in ("importance", "attention entropy")}
BEFORE, AFTER = "cost before, nats per item", "cost after, nats per item"
COST_ERROR = "standard error of the difference"
COSTS = {
    BEFORE: ("gold_change_before", -1),
    AFTER: ("gold_change_after", -1),
    COST_ERROR: ("gold_difference_error", 1),
    "score lost before": ("score_change_before", -1),
    "score lost after": ("score_change_after", -1),
}
"""Maps a title to the column of ``head_ablations`` and its sign."""


def _heads_of(
    models: AnalyzedModels,
) -> list[tuple[str, HeadsRecord, dict[str, pd.DataFrame]]]:
    """Return label, a record and the tables (means over seeds) of each model compared in detail."""
    found = {m.label: seeds for m in models.models if (seeds := m.records(HeadsRecord))}
    shown = [label for label in models.best if label in found] or [*found][:1]
    return [(i, seeds[0], _mean_tables(seeds)) for i, seeds in found.items() if i in shown]


def _mean_tables(seeds: Sequence[HeadsRecord]) -> dict[str, pd.DataFrame]:
    """Average the tables of seeds.

    Seeds are scored on the same items, so the error of a mean is at most the mean error.
    """
    tables = head_tables([({}, record) for record in seeds])
    for name, found in tables.items():
        keys = [key for key in ("task", "items", "layer", "head") if key in found]
        numbers = found.astype({column: float for column in found if column not in keys})
        if len(seeds) > 1 and keys:
            numbers = numbers.groupby(keys, sort=False, dropna=False, as_index=False).mean()
        tables[name] = numbers
    return tables


def _by_head(table: pd.DataFrame, column: str) -> HeadValues:
    """Return a column as (layers, heads); NaN if unknown, or if a layer has fewer heads."""
    values: HeadValues = table.pivot(index="layer", columns="head", values=column).to_numpy(float)
    return values


def _largest(values: HeadValues) -> tuple[int, int]:
    """Return (layer, head) of the largest known value."""
    layer, head = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return int(layer), int(head)


def _head_text(values: HeadValues) -> str:
    """Name the head with the largest value, such as ``layer 3 head 1``."""
    return "layer {} head {}".format(*_largest(values))


def _most(values: HeadValues) -> str:
    return number(float(np.nanmax(values)))


def _grids(values: Mapping[str, HeadValues], signed: bool = False) -> dict[str, Grid]:
    """Return grids by entry of a drop-down; entries without a known value are left out."""
    known = {entry: of_entry for entry, of_entry in values.items() if not np.isnan(of_entry).all()}
    return {entry: Grid(pd.DataFrame(of_entry), signed) for entry, of_entry in known.items()}


def _head_quantities(tables: Mapping[str, pd.DataFrame]) -> dict[str, HeadValues]:
    """Return the known quantities of one model's heads, by their labels in a drop-down."""
    heads, groups = tables["heads"], tables["kv_heads"]
    values = {}
    for title, module in MOVED.items():
        table = groups if module in ("k_proj", "v_proj") else heads
        values[title] = _by_head(table, f"{module}_relative")
    for name, column in (("importance", "importance"), ("attention entropy", "entropy")):
        before, after = (_by_head(heads, f"{column}_{when}") for when in ("before", "after"))
        values |= {CHANGES[name]: after - before, f"{name} after training": after}
        values[f"{name} before training"] = before
    values["importance of key/value heads"] = _by_head(groups, "importance_after")
    values |= {SKILL: _by_head(heads, "skill"), LOST: _by_head(heads, "lost")}
    return {name: v for name, v in values.items() if not np.isnan(v).all()}


def _removals(label: str, ablations: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield by task what removing each head costs, then each layer, without a head.

    A whole layer loses all of its heads. The columns are titles.
    """
    for task, of_task in ablations.groupby("task", sort=False) if len(ablations) else ():
        table = of_task[["items", "layer", "head", "task"]].astype({"head": "Int64"})
        table.insert(1, "model", label)
        for title, (column, sign) in COSTS.items():
            table[title] = sign * of_task[column]
        yield f"{label}: {task}", table


def _beyond_noise(costs: pd.DataFrame) -> str:
    """Say how many costs changed by more than two standard errors."""
    tested = costs.dropna(subset=[COST_ERROR])
    changes = (tested[AFTER] - tested[BEFORE]).abs()
    return f"{int((changes > 2 * tested[COST_ERROR]).sum())} of {len(tested)}"


def _noise_text(items: Sequence[int]) -> str:
    """Say how many heads noise alone puts beyond two standard errors, by Student's t.

    The fewest items count. One item has no standard error, so nothing is tested on it.
    """
    tested = [n for n in items if n > 1]
    if not tested:
        return "One item has no standard error: nothing was tested."
    return f"Noise alone would give {number(200 * float(student.sf(2, min(tested) - 1)), 1)} %."


def _precision_note(dtype: str) -> str:
    """State the precision of the models, and its effect on small values."""
    effect = ", whose rounding alone moves costs by hundredths of a nat"
    return f"The models ran in {dtype}{'' if dtype == 'float32' else effect}."


_ABLATED = """Exact up to rounding: the output of the head is set to zero and the items are scored \
again. Blue heads help, orange ones hurt; costs do not add up over heads. A blue difference on the \
trained task: the head carries what was learned; an orange one on another task: it carried what \
was lost there. The table ends with whole layers, which have no head number. {}"""


@in_section("heads", 50, per="models")
def draw_heads_ablated(models: AnalyzedModels) -> Figure | None:
    """Draw costs before, after and their difference, with a drop-down over models and tasks."""
    with_heads = _heads_of(models)
    removals = dict(
        entry
        for label, _, tables in with_heads
        for entry in _removals(label, tables["head_ablations"])
    )
    if not removals:
        return None
    heads = {entry: table.dropna(subset=["head"]) for entry, table in removals.items()}
    before, after = (
        {entry: _by_head(table, title) for entry, table in heads.items()}
        for title in (BEFORE, AFTER)
    )
    change = {entry: after[entry] - before[entry] for entry in heads}
    shown = {"before": before, "after": after, "difference": change}
    panels = {title: _grids(values, True) for title, values in shown.items()}
    parts = [f"{entry} {_head_text(v)}, {_most(v)} nats" for entry, v in after.items()]
    changed = [f"{entry} {_beyond_noise(table)}" for entry, table in heads.items()]
    every = pd.concat(removals.values())
    return Figure(
        **models.names("heads-ablated", "What removing each head costs"),
        finding=f"Largest cost after tuning: {join_names(parts)} of the right answer. Heads whose "
        f"cost changed by more than two standard errors: {join_names(changed)}. "
        + _noise_text(every["items"].tolist()),
        data=table(records(every.drop(columns="items"))),
        **_map_panels(panels, list(removals), ("cost", "cost", "difference")),
        caption=_ABLATED.format(_precision_note(with_heads[0][1].dtype)),
        choice_name="Model and task",
    )


_COMPARE = """Rows are layers, columns heads (key/value heads for k_proj and v_proj), means over \
seeds. Importance is |z . dL/dz| of the right answer, with an l2 norm of 1 in each layer: a \
first-order estimate. Entropy 0 attends to one token, 1 to all alike. Both use {} of {}. In a \
change, orange is below the base, blue above it. A head carries the skill if removing it costs the \
tuned model more of the right answer than it costs the base. {}"""


@in_section("heads", 10, per="models")
def draw_heads_compared(models: AnalyzedModels) -> Figure | None:
    """Draw a panel for each model, with a drop-down over quantities; None without records of
    heads."""
    with_heads = _heads_of(models)
    if not with_heads:
        return None
    by_model = {label: _head_quantities(tables) for label, _, tables in with_heads}
    entries = list(dict.fromkeys(entry for values in by_model.values() for entry in values))
    signed = {*CHANGES.values(), SKILL, LOST}
    panels = {
        label: _grids({e: v for e, v in values.items() if e not in signed})
        | _grids({e: v for e, v in values.items() if e in signed}, signed=True)
        for label, values in by_model.items()
    }
    rows = [
        {"arm": label, "quantity": entry, "layer": layer, "head": head, "value": float(value)}
        for entry in entries
        for label, values in by_model.items()
        for (layer, head), value in np.ndenumerate(values.get(entry, np.empty((0, 0))))
        if not np.isnan(value)
    ]
    _, record, _ = with_heads[0]
    of_items = count(record.items, "item"), record.task, _precision_note(record.dtype)
    return Figure(
        **models.names("heads", "Attention heads"),
        finding=_finding(by_model, entries[0]),
        data=table(rows),
        **_map_panels(panels, entries, ["all"] * len(panels)),
        caption=_COMPARE.format(*of_items),
        choice_name="Shown",
    )


def _finding(by_model: Mapping[str, Mapping[str, HeadValues]], first: str) -> str:
    drawn = {label: values[first] for label, values in by_model.items() if first in values}
    parts = "; ".join(
        f"{_head_text(v)} in {label}, {_most(v)} (median head {number(float(np.nanmedian(v)))})"
        for label, v in drawn.items()
    )
    measure = f"|dW_h| / |W0_h| of {MOVED[first]}" if first in MOVED else first
    text = f"By {measure}, these heads come first: {parts}."
    label, values = next(iter(by_model.items()))
    if SKILL in values:
        text += f" Removing {_head_text(values[SKILL])} costs {label} {_most(values[SKILL])} nats "
        text += "more of the right answer than the base."
    return text


HEAD_KINDS = {"query heads": ("q_proj", "o_proj"), "key/value heads": ("k_proj", "v_proj")}
_CONCENTRATION = """The energy of a head is |dW_h|_F² summed over its slices of {}; the effective \
number is exp of the entropy of the shares: an update that is spread evenly over n heads counts n, \
one in a single head counts 1. The table also counts the other kind of heads."""


@in_section("heads", 15, per="models")
def draw_head_concentration(models: AnalyzedModels) -> Figure | None:
    """Draw whether an update is in few heads or in all; None without adapters of several ranks."""
    found = [record for m in models.models for record in m.records(HeadsRecord)]
    kinds = {k: names for k, names in HEAD_KINDS.items() if any(r.energies(names) for r in found)}
    if not kinds:
        return None

    def effective(names: Sequence[str]) -> Callable[[HeadsRecord], float | None]:
        return lambda r: effective_number(e) if (e := r.energies(names)) else None

    frame = models.over_seeds(
        HeadsRecord, {f"effective number of {k}": effective(names) for k, names in kinds.items()}
    )
    kind, names = next(iter(kinds.items()))
    plot = rank_plot(models.rank_axis, [Panel(frame, f"effective number of {kind}")])
    if plot is None:
        return None
    known = [
        f"{number(value)} for {m.label}"
        for m in models.models
        if (value := m.mean(HeadsRecord, effective(names))) is not None
    ]
    most = max(len(r.energies(names)) for r in found)
    return Figure(
        **models.names("heads-concentration", "In few heads or in all"),
        finding=f"Effective number of {kind}, of {most}: {join_names(known[:8])}.",
        data=frame,
        plot=plot,
        caption=_CONCENTRATION.format(" and ".join(names)),
    )


# --- maps side by side ------------------------------------------------------------------------


def _map_panels(
    panels: Mapping[str, Mapping[str, Grid]], entries: Sequence[str], scales: Sequence[str]
) -> Drawn:
    """Draw maps of heads by layer in a row, with a drop-down over ``entries`` that changes all.

    Args:
        panels: maps by title and entry; an entry is absent if there is nothing to show.
        scales: a name for each panel; panels with the same one share the end of the color scale.
    """
    every = [
        (scale, entry, grid)
        for scale, maps in zip(scales, panels.values(), strict=True)
        for entry, grid in maps.items()
    ]
    widths = [
        max(NARROWEST, *(CELL * len(grid.values.columns) for grid in maps.values()))
        for maps in panels.values()
    ]
    figure = make_subplots(
        1, len(panels), shared_yaxes=True, column_widths=widths, horizontal_spacing=0.03
    )
    height = 130 + max(120, CELL * max(len(grid.values) for *_, grid in every))
    figure.update_layout(layout(height, margin={"l": 48, "r": 16, "t": 40, "b": 52}))
    reaches: dict[tuple[str, str], float] = {}
    for scale, entry, grid in every:
        reaches[scale, entry] = max(reaches.get((scale, entry), 0.0), grid.largest)
    choices: list[Choice] = []
    hover = {"hovertemplate": "layer %{y}, head %{x}: %{z:.3~g}<extra></extra>"}
    for entry in entries:
        first = len(figure.data)
        for column, (scale, maps) in enumerate(zip(scales, panels.values(), strict=True), start=1):
            if entry in maps:
                trace = maps[entry].trace(gap=1, reach=reaches[scale, entry])
                figure.add_heatmap(**trace | hover, visible=not choices, row=1, col=column)
        choices.append(Choice(entry, tuple(range(first, len(figure.data)))))
    for column, title in enumerate(panels, start=1):
        at = {"row": 1, "col": column}
        figure.update_xaxes(axis("head", **FLAT), **at)
        figure.update_yaxes(axis("layer" * (column == 1), **FLAT, autorange="reversed"), **at)
        domain = figure.layout["xaxis" if column == 1 else f"xaxis{column}"].domain
        figure.add_annotation(panel_heading(title, domain[0], 1))
    return Drawn(plot=figure, choices=choices, min_width=80 + sum(width + 24 for width in widths))
