"""Learning rate x rank: whether every rank was given the rate that suits it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from rankscope.formatting import Unit, join_names, number, signed
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Choice, Column, Figure, axis, layout, name, table
from rankscope.report.study_view import StudyView
from rankscope.report.style import BETTER, INK, NEUTRAL, WORSE

ROW = 38
"""Height of a row, pixels."""
FULL_ROW = "full"


class Quantity(NamedTuple):
    """What a map shows; ``sign`` -1 where more is worse."""

    label: str
    value: Callable[[ArmSummary], float | None]
    unit: Unit
    sign: int = 1

    def of(self, arm: ArmSummary) -> float | None:
        """In the unit."""
        value = self.value(arm)
        return None if value is None else value * self.unit.scale


def draw(view: StudyView, task: str) -> Figure:
    """The map of one training task, a layer per variant (method, targets, alpha) and quantity."""
    key, title = f"rates-{view.training_tasks.index(task)}", f"Learning rate and rank, {task}"
    variants = variants_of(view, task)
    arms = [arm for group in variants.values() for arm in group]
    rates = sorted({arm.lr for arm in arms})
    if len(rates) < 2:
        said = "No LoRA arm has finished, so no rate is known to suit a rank."
        if rates:
            said = f"Every rank was trained at one learning rate, {rates[0]:g}: how much of what "
            said += "separates the ranks is due to the rate is not known."
        return Figure(key, title, said, table([], []))
    full = [arm for arm in view.arms(task) if arm.is_full]
    quantities = quantities_of(view, task)
    layers = [(label, quantity) for label in variants for quantity in quantities]
    columns = [Column("arm"), Column("rank", 0), Column("learning rate")]
    columns += [Column(f"{q.label}, {q.unit.difference}", q.unit.digits + 1) for q in quantities]
    rows = [(a.label, a.rank, a.lr, *(q.of(a) for q in quantities)) for a in [*arms, *full]]
    drawn = {label: [*group, *full] for label, group in variants.items()}
    advice = view.advice(task)
    chosen = advice.chosen if advice else None
    framed = {  # The frame is the last trace.
        label: (len(layers),)
        for label, group in drawn.items()
        if chosen is not None and any(arm.label == chosen.label for arm in group)
    }
    return Figure(
        key=key,
        title=title,
        finding=finding(variants, view, task),
        table=table(columns, rows),
        plot=plot(drawn, layers, chosen if framed else None),
        how_to_read="Each cell is one arm, the mean over its seeds; blue is better than the base, "
        "orange worse; an empty cell was not trained. The frame marks the recommended arm. Where "
        "the best rate of a rank is at the edge of its grid, a better one may lie beyond it.",
        choices=tuple(
            Choice(
                f"{label}: {q.label}" if len(variants) > 1 and label else q.label,
                (place, *framed.get(label, ())),
            )
            for place, (label, q) in enumerate(layers)
        ),
        choice_name="Shown",
        min_width=110 + 60 * len({arm.lr for arm in [*arms, *full]}),
    )


def variants_of(view: StudyView, task: str) -> dict[str, list[ArmSummary]]:
    """LoRA arms that differ in rank and rate alone, by what else they are; the answer's first."""
    found: dict[str, list[ArmSummary]] = defaultdict(list)
    lines = view.series(task)
    focus = view.focus_series(task)
    for line in sorted(lines, key=lambda line: line is not focus and line != focus):
        words = [word for word in line.label.split() if not word.startswith("lr=")]
        found[" ".join(words)] += line.arms
    return dict(found)


def quantities_of(view: StudyView, task: str) -> list[Quantity]:
    """What can be shown of the task's arms."""
    unit, forgetting = view.unit(task), view.forgetting_unit(task)
    found = [
        Quantity("gain over base", lambda a: a.gain.value if a.gain else None, unit),
        Quantity("gain on the validation split", lambda a: a.validation_gain, unit),
    ]
    if view.retained(task):
        found.append(
            Quantity(
                "forgetting", lambda a: a.forgetting.value if a.forgetting else None, forgetting, -1
            )
        )
    return found


def finding(variants: Mapping[str, Sequence[ArmSummary]], view: StudyView, task: str) -> str:
    """Of the variant that the answer speaks of: the rate of the largest gain, rank by rank."""
    arms = next(iter(variants.values()))
    best = best_rates(arms)
    if not best and any(arm.validation_gain is not None for arm in arms):
        return "No rank was trained and scored at two rates, so no rate can be called the best."
    if not best:
        return "No arm was scored on the validation split, so no rate can be called the best."
    by_rate: dict[float, list[int]] = defaultdict(list)
    for rank, (rate, _) in sorted(best.items()):
        by_rate[rate].append(rank)
    parts = [
        f"{rate:g} at {join_names(f'r={rank}' for rank in ranks)}"
        for rate, ranks in sorted(by_rate.items())
    ]
    text = f"On the validation split the gain is largest with the rate {'; '.join(parts)}."
    edge = [f"r={rank}" for rank, (rate, rates) in best.items() if rate in (rates[0], rates[-1])]
    if edge:
        text += f" That is the edge of the grid for {join_names(edge)}."
    return text


def best_rates(arms: Sequence[ArmSummary]) -> dict[int, tuple[float, list[float]]]:
    """Rank -> (rate of the largest gain on the validation split, rates tried), of two or more."""
    by_rank: dict[int, list[ArmSummary]] = defaultdict(list)
    for arm in arms:
        if arm.rank is not None and arm.validation_gain is not None:
            by_rank[arm.rank].append(arm)
    return {
        rank: (max(own, key=lambda a: a.validation_gain or 0.0).lr, sorted({a.lr for a in own}))
        for rank, own in sorted(by_rank.items())
        if len({a.lr for a in own}) > 1
    }


def row_name(arm: ArmSummary) -> str:
    """The row that an arm stands in."""
    return FULL_ROW if arm.is_full else f"r={arm.rank}"


def plot(
    drawn: Mapping[str, Sequence[ArmSummary]],
    layers: Sequence[tuple[str, Quantity]],
    chosen: ArmSummary | None,
) -> go.Figure:
    """One heat map a layer, then the chosen arm's frame; the axes hold what all of them need."""
    everything = list({id(a): a for group in drawn.values() for a in group}.values())
    rates = [f"{lr:g}" for lr in sorted({a.lr for a in everything})]
    ranks = sorted({a.rank for a in everything if a.rank is not None})
    rows = [f"r={rank}" for rank in ranks]
    rows += [FULL_ROW] if any(a.is_full for a in everything) else []
    figure = go.Figure(
        layout=layout(110 + ROW * len(rows), margin={"l": 56, "r": 20, "t": 16, "b": 56})
    )
    for place, (label, quantity) in enumerate(layers):
        cells = {(row_name(a), f"{a.lr:g}"): a for a in drawn[label]}
        grid = [[cells.get((row, rate)) for rate in rates] for row in rows]
        add_map(figure, (rates, rows), grid, quantity, place == 0)
    shared: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
    figure.update_xaxes(axis("learning rate", **shared))
    figure.update_yaxes(axis("", **shared, autorange="reversed"))
    if chosen is not None:
        cell = rates.index(f"{chosen.lr:g}"), rows.index(row_name(chosen))
        shown = any(arm.label == chosen.label for arm in drawn[layers[0][0]])
        add_frame(figure, cell, (len(rates), len(rows)), shown)
    return figure


def add_frame(
    figure: go.Figure, place: tuple[int, int], size: tuple[int, int], shown: bool
) -> None:
    """A frame around the cell at ``place`` (column, row): a trace, so that a layer can be without.

    Category axes know no place between two categories, so it has number axes over them.
    """
    (i, j), (columns, rows) = place, size
    hidden: dict[str, Any] = {"visible": False, "showgrid": False, "zeroline": False}
    figure.update_layout(
        xaxis2={"overlaying": "x", "range": [-0.5, columns - 0.5], **hidden},
        yaxis2={"overlaying": "y", "range": [rows - 0.5, -0.5], **hidden},
    )
    figure.add_scatter(
        x=[i - 0.48, i + 0.48, i + 0.48, i - 0.48, i - 0.48],
        y=[j - 0.46, j - 0.46, j + 0.46, j + 0.46, j - 0.46],
        xaxis="x2",
        yaxis="y2",
        mode="lines",
        line={"color": INK.light, "width": 2},
        hoverinfo="skip",
        visible=shown,
    )


def add_map(
    figure: go.Figure,
    axes: tuple[list[str], list[str]],
    grid: list[list[ArmSummary | None]],
    quantity: Quantity,
    shown: bool,
) -> None:
    """One quantity of one variant."""
    values = [[None if arm is None else quantity.of(arm) for arm in row] for row in grid]
    known = [abs(v) for row in values for v in row if v is not None]
    reach = max([*known, 1.0 if quantity.unit.scale == 100 else 0.01])
    digits = quantity.unit.digits
    figure.add_heatmap(
        x=axes[0],
        y=axes[1],
        z=[[None if v is None else quantity.sign * v for v in row] for row in values],
        text=[
            ["" if v is None else signed(v / quantity.unit.scale, quantity.unit) for v in row]
            for row in values
        ],
        hovertext=[
            [
                "not trained, or not finished"
                if arm is None or v is None
                else f"<b>{name(arm.label)}</b><br>{quantity.label} {number(v, digits + 1)} "
                f"{quantity.unit.difference}"
                for arm, v in zip(*pair, strict=True)
            ]
            for pair in zip(grid, values, strict=True)
        ],
        hoverinfo="text",
        texttemplate="%{text}",
        textfont={"size": 12},
        colorscale=[[0, WORSE.light], [0.5, NEUTRAL.light], [1, BETTER.light]],
        zmin=-reach,
        zmax=reach,
        xgap=2,
        ygap=2,
        showscale=False,
        visible=shown,
    )
