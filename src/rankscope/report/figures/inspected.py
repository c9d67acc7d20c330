"""Figures of an inspection: where an update sits, how large, how new, how it grows with rank."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from rankscope.formatting import join_names, number
from rankscope.records import Inspection, MatrixSpectrum, NormGrowth, TunedModel
from rankscope.report.charts.figure import Cell, Choice, Column, Figure, axis, layout, name, table
from rankscope.report.style import MANY, MUTED, NONE_YET

ROW = 22
"""Height of a heat map's row, pixels."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a matrix, as a heat map shows it."""

    key: str
    title: str
    unit: str
    value: Callable[[MatrixSpectrum], float]
    how_to_read: str


MEASURES = (
    Measure(
        "relative",
        "Size of the update by layer and module",
        "|dW|_F / |W0|_F",
        lambda m: m.relative,
        "Frobenius norm of the update over that of the base weight.",
    ),
    Measure(
        "effective",
        "Directions the update uses",
        "effective rank of dW",
        lambda m: m.effective_rank,
        "exp of the entropy of the shares of dW's singular values; at most its rank.",
    ),
    Measure(
        "kept",
        "Leading singular vectors kept",
        "subspace similarity",
        lambda m: fmean(m.similarity_subspace),
        "|C|_F² / k of the top-k vectors of W0 and W, mean of left and right; 1 is unchanged, k/d "
        "is chance, which the table has beside it.",
    ),
    Measure(
        "intruders",
        "Intruder dimensions",
        "intruders",
        lambda m: m.intruders,
        "Leading left vectors of W that resemble no single vector of W0 (Shuttleworth et al., "
        "2410.21228). A sign of spread-out change, not a verdict.",
    ),
)


def draw_measure(found: Inspection, measure: Measure) -> Figure:
    """Heat maps layer x module of one measure, a drop-down over the tuned models."""
    matrices = [m for model in found.tuned for m in model.spectra.matrices]
    modules = list(dict.fromkeys(m.module for m in matrices))
    layers = sorted({-1 if m.layer is None else m.layer for m in matrices})
    most = max([measure.value(m) for m in matrices], default=0.0)
    figure = go.Figure(
        layout=layout(90 + ROW * len(modules), margin={"l": 80, "r": 20, "t": 12, "b": 48})
    )
    for model in found.tuned:
        cells = by_place(model, measure.value)
        figure.add_heatmap(
            x=["other" if layer < 0 else str(layer) for layer in layers],
            y=[name(module) for module in modules],
            z=[[cells.get((layer, module)) for layer in layers] for module in modules],
            colorscale=[[0, NONE_YET.light], [1, MANY.light]],
            zmin=0,
            zmax=most or 1.0,
            xgap=1,
            ygap=2,
            hovertemplate=f"layer %{{x}}, %{{y}}: %{{z:.3~g}} {measure.unit}<extra></extra>",
            showscale=False,
        )
    figure.update_xaxes(axis("layer", **FLAT))
    figure.update_yaxes(axis(**FLAT, autorange="reversed"))
    return Figure(
        key=f"map-{measure.key}",
        title=measure.title,
        finding=finding_of(found, measure),
        table=table(
            [Column("model"), Column("matrix"), Column(measure.unit), *CHANCES],
            [
                (model.name, m.name, measure.value(m), *chances(m))
                for model in found.tuned
                for m in model.spectra.matrices
            ],
        ),
        plot=figure,
        how_to_read=measure.how_to_read,
        choices=tuple(Choice(model.name, (i,)) for i, model in enumerate(found.tuned)),
        choice_name="Model",
        min_width=150 + 18 * len(layers),
    )


FLAT: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
CHANCES = (
    Column("k"),
    Column("chance of subspace, left"),
    Column("right"),
    Column("ill-conditioned vectors"),
)


def chances(matrix: MatrixSpectrum) -> tuple[float, ...]:
    """What the similarities of a matrix are to be read against."""
    return (matrix.top_k, *matrix.chance_subspace, matrix.ill_conditioned)


def by_place(
    model: TunedModel, value: Callable[[MatrixSpectrum], float]
) -> dict[tuple[int, str], float]:
    """(layer, module) -> value, the mean where several matrices share a place."""
    found: dict[tuple[int, str], list[float]] = {}
    for m in model.spectra.matrices:
        found.setdefault((-1 if m.layer is None else m.layer, m.module), []).append(value(m))
    return {place: fmean(values) for place, values in found.items()}


def finding_of(found: Inspection, measure: Measure) -> str:
    """What to see: mean and extreme of each model."""
    said = []
    for model in found.tuned:
        matrices = model.spectra.matrices
        if not matrices:
            continue
        values = [measure.value(m) for m in matrices]
        if measure.key == "intruders":
            said.append(f"{model.name} {int(sum(values))} in {len(matrices)} matrices")
            continue
        low = measure.key == "kept"
        place = (min if low else max)(range(len(values)), key=values.__getitem__)
        word = "least" if low else "most"
        said.append(
            f"{model.name} {number(fmean(values))} on average, {word} {number(values[place])} in "
            f"{matrices[place].name}"
        )
    return f"{measure.unit}: {join_names(said)}." if said else "Nothing was changed."


def draw_modules(found: Inspection) -> Figure:
    """All models side by side, by type of module: low-rank adapters against full fine-tuning."""
    modules = list(dict.fromkeys(m.module for t in found.tuned for m in t.spectra.matrices))
    rows: list[tuple[Cell, ...]] = []
    cells: list[list[float | None]] = []
    for model in found.tuned:
        line: list[float | None] = []
        for module in modules:
            own = [m for m in model.spectra.matrices if m.module == module]
            line.append(fmean(m.relative for m in own) if own else None)
            if own:
                rows.append((model.name, model.kind, module, *means(own)))
        cells.append(line)
    figure = go.Figure(
        layout=layout(90 + ROW * len(found.tuned), margin={"l": 120, "r": 20, "t": 12, "b": 48})
    )
    figure.add_heatmap(
        x=[name(module) for module in modules],
        y=[name(model.name) for model in found.tuned],
        z=cells,
        colorscale=[[0, NONE_YET.light], [1, MANY.light]],
        zmin=0,
        xgap=1,
        ygap=2,
        texttemplate="%{z:.2~g}",
        hovertemplate="%{y}, %{x}: %{z:.3~g}<extra></extra>",
        showscale=False,
    )
    figure.update_xaxes(axis(**FLAT))
    figure.update_yaxes(axis(**FLAT, autorange="reversed"))
    columns = [Column("model"), Column("kind"), Column("module"), *MEANS]
    kinds = join_names([f"{model.name} ({model.kind})" for model in found.tuned])
    return Figure(
        key="modules",
        title="The models side by side",
        finding=f"Mean of |dW|_F / |W0|_F over layers: {kinds}.",
        table=table(columns, rows),
        plot=figure,
        how_to_read="A row per model, a column per type of module; the table has other measures.",
    )


MEANS = (
    Column("|dW|_F / |W0|_F"),
    Column("effective rank"),
    Column("stable rank"),
    Column("index-matched"),
    Column("max-matched"),
    Column("subspace"),
    Column("chance index"),
    Column("chance max"),
    Column("chance subspace"),
    Column("intruders", 0),
    Column("energy share"),
)


def means(own: Sequence[MatrixSpectrum]) -> tuple[float, ...]:
    """Means over matrices of one type, left and right together; intruders are summed."""
    return (
        fmean(m.relative for m in own),
        fmean(m.effective_rank for m in own),
        fmean(m.stable_rank for m in own),
        fmean(fmean(m.similarity_index) for m in own),
        fmean(fmean(m.similarity_max) for m in own),
        fmean(fmean(m.similarity_subspace) for m in own),
        fmean(fmean(m.chance_index) for m in own),
        fmean(fmean(m.chance_max) for m in own),
        fmean(fmean(m.chance_subspace) for m in own),
        sum(m.intruders for m in own),
        fmean(m.intruder_energy for m in own),
    )


def draw_growth(growth: NormGrowth) -> Figure:
    """|dW|_F against rank with its logarithmic fit (claimed by arXiv 2512.15634)."""
    figure = go.Figure(layout=layout(320))
    low, high = min(growth.ranks), max(growth.ranks)
    steps = [low * (high / low) ** (i / 40) for i in range(41)]
    figure.add_scatter(
        x=steps,
        y=[growth.start + growth.slope * math.log(r) for r in steps],
        mode="lines",
        line={"color": MUTED.light, "width": 1},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=list(growth.ranks),
        y=list(growth.norms),
        mode="markers",
        marker={"color": MANY.light, "size": 9},
        hovertemplate="r=%{x}: |dW|_F %{y:.4~g}<extra></extra>",
    )
    figure.update_xaxes(axis("rank", type="log", tickvals=sorted(set(growth.ranks))))
    figure.update_yaxes(axis("|dW|_F over all matrices", rangemode="tozero"))
    closer = "the logarithm" if growth.rms <= growth.power_rms else "the power law"
    return Figure(
        key="growth",
        title="Size of the update against rank",
        finding=f"|dW|_F = {number(growth.start)} + {number(growth.slope)} ln r leaves a residual "
        f"of {number(growth.rms)} (root mean square); r^{number(growth.power)} leaves "
        f"{number(growth.power_rms)}. On {len(growth.ranks)} adapters {closer} is closer.",
        table=table(
            [Column("rank", 0), Column("|dW|_F")],
            list(zip(growth.ranks, growth.norms, strict=True)),
        ),
        plot=figure,
        how_to_read="Points are adapters, the line is the least-squares fit of the logarithm.",
    )
