"""What the updates look like inside the weights: size, effective rank, similarity, intruders."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rankscope.formatting import MINUS, number
from rankscope.records import ArmSummary, MatrixSpectrum, NormGrowth, SpectraRecord, TrialRecords
from rankscope.report.charts.figure import Column, Figure, axis, layout, name, table
from rankscope.report.charts.rank_lines import (
    Line,
    Panel,
    Point,
    against,
    bands_note,
    full_line,
    over_seeds,
    rank_plot,
)
from rankscope.report.study_view import Series, StudyView
from rankscope.report.style import MANY, MUTED, NONE_YET

Measure = Callable[[SpectraRecord], float | None]
Pair = Callable[[MatrixSpectrum], tuple[float, float]]
"""Something of the left and of the right vectors."""


def mean_over_matrices(value: Callable[[MatrixSpectrum], float]) -> Measure:
    """The plain mean of one field over a trial's matrices."""

    def measure(spectra: SpectraRecord) -> float | None:
        if not spectra.matrices:
            return None
        return sum(value(m) for m in spectra.matrices) / len(spectra.matrices)

    return measure


def _of_arm(view: StudyView, measure: Measure) -> Callable[[ArmSummary], Point | None]:
    def of_trial(trial: TrialRecords) -> float | None:
        return measure(trial.spectra) if trial.spectra is not None else None

    return lambda arm: over_seeds(view.trials(arm), of_trial)


def _figure(
    view: StudyView,
    task: str,
    panels: list[tuple[str, Measure]],
    references: Sequence[Sequence[Line]] = (),
    **texts: str,
) -> tuple[Figure, list[Callable[[ArmSummary], Point | None]]]:
    """``references`` are lines of each panel beside that of full fine-tuning."""
    values = [_of_arm(view, measure) for _, measure in panels]
    drawn = [
        Panel(text, value, lines=(*full_line(view, task, value), *lines))
        for (text, _), value, lines in zip(
            panels, values, references or [()] * len(panels), strict=True
        )
    ]
    columns = [Column("arm"), Column("rank", 0)]
    for text, _ in panels:
        columns += [Column(text), Column("least"), Column("most")]
    rows = []
    for arm in view.arms(task):
        points = [value(arm) for value in values]
        if any(points):
            cells = [cell for p in points for cell in (p or (None, None, None))]
            rows.append((arm.label, arm.rank, *cells))
    figure = Figure(
        key=f"{texts['key']}-{view.training_tasks.index(task)}",
        title=f"{texts['title']}, {task}",
        finding="",
        table=table(columns, rows),
        plot=rank_plot(view, task, drawn),
        how_to_read=texts["how_to_read"],
    )
    return figure, values


NOTHING = "No trial has a spectra record, so there is nothing to show here."


def draw_norm(view: StudyView, task: str) -> Figure:
    """|dW|_F against log2 rank with the logarithmic fit."""
    figure, (value, _) = _figure(
        view,
        task,
        [
            ("|dW|_F over all matrices", lambda s: s.frobenius if s.matrices else None),
            ("mean of |dW|_F / |W0|_F", mean_over_matrices(lambda m: m.relative)),
        ],
        key="norm",
        title=f"Size of the update {against(view, task)}",
        how_to_read=f"Points are means over seeds. {bands_note(view, task, 'the range over seeds')}"
        " The thin straight line, from three ranks on, is the least-squares fit a + b log2 r of "
        "the recommended learning rate's arms.",
    )
    line = view.focus_series(task)
    points = [(arm, value(arm)) for arm in (line.arms if line else ())]
    found = [(arm.rank or 1, point.value) for arm, point in points if point is not None]
    if not found or line is None:
        return _with(figure, NOTHING)
    fit = NormGrowth.fit([r for r, _ in found], [v for _, v in found])
    if fit is not None and figure.plot is not None:
        _add_fit(figure.plot, fit)
    text = _fit_sentence(line, found, fit)
    full = view.best_full(task)
    full_point = value(full) if full else None
    if full_point:
        text += f" Full fine-tuning moves the weights by {number(full_point.value)}."
    return _with(figure, text)


def _with(figure: Figure, finding: str) -> Figure:
    return Figure(
        key=figure.key,
        title=figure.title,
        finding=finding,
        table=figure.table,
        plot=figure.plot,
        how_to_read=figure.how_to_read,
    )


def _fit_sentence(
    line: Series,
    found: list[tuple[int, float]],
    fit: NormGrowth | None,
) -> str:
    if fit is None:
        values = ", ".join(f"{number(v)} at r={rank}" for rank, v in found)
        return f"At {line.label} |dW|_F is {values}. A fit needs three ranks."
    a, b = fit.start, fit.slope * math.log(2)
    mean = sum(v for _, v in found) / len(found)
    closer = "a power law" if fit.power_rms < fit.rms else "the logarithm"
    return (
        f"At {line.label}, |dW|_F = {number(a)} {'+' if b >= 0 else MINUS} {number(abs(b))} log2 r "
        f"leaves a residual of {number(fit.rms)} ({number(100 * fit.rms / mean)} % of the mean "
        f"norm); a power law r^{number(fit.power)} leaves {number(fit.power_rms)}, so {closer} is "
        "closer."
    )


def _add_fit(plot: go.Figure, fit: NormGrowth) -> None:
    start, slope = fit.start, fit.slope * math.log(2)
    ends = [math.log2(min(fit.ranks)), math.log2(max(fit.ranks))]
    plot.add_scatter(
        x=ends,
        y=[start + slope * x for x in ends],
        mode="lines",
        line={"color": MUTED.light, "width": 1, "dash": "longdashdot"},
        hoverinfo="text",
        hovertext=f"fit: {number(start)} + {number(slope)} log2 r",
        row=1,
        col=1,
    )


def draw_effective_rank(view: StudyView, task: str) -> Figure:
    """How many directions the update really uses."""
    figure, (effective, _) = _figure(
        view,
        task,
        [
            ("effective rank of dW, mean over matrices", _effective),
            ("stable rank of dW, mean over matrices", mean_over_matrices(lambda m: m.stable_rank)),
        ],
        key="effective-rank",
        title="Directions the update uses",
        how_to_read="Effective rank: exp of the entropy of the singular values' shares. Stable "
        "rank: |dW|_F² over the largest singular value squared. Both are at most the rank of dW: "
        "of LoRA r, of PiSSA 2r, of DoRA and full fine-tuning the smaller side of the matrix.",
    )
    line = view.focus_series(task)
    found = [
        f"{number(point.value)} of r={arm.rank}"
        for arm in (line.arms if line else ())
        if arm.rank and (point := effective(arm))
    ]
    if not found or line is None:
        return _with(figure, NOTHING)
    text = f"Effective rank at {line.label}: {', '.join(found[:8])}."
    full = view.best_full(task)
    point = effective(full) if full else None
    return _with(figure, text + (f" Full: {number(point.value)}." if point else ""))


_effective = mean_over_matrices(lambda m: m.effective_rank)


def _sides(pair: Pair) -> Measure:
    """The mean over matrices and over left and right."""
    return mean_over_matrices(lambda m: sum(pair(m)) / 2)


SIMILARITIES: tuple[tuple[str, Pair, Pair], ...] = (
    ("same subspace, |C|_F² / k", lambda m: m.similarity_subspace, lambda m: m.chance_subspace),
    ("best match, mean of max |C_ij|", lambda m: m.similarity_max, lambda m: m.chance_max),
    ("same index, mean of |C_ii|", lambda m: m.similarity_index, lambda m: m.chance_index),
)
"""Heading, similarity, and what unrelated vectors would give."""


def draw_similarity(view: StudyView, task: str) -> Figure:
    """Similarity of the leading singular vectors before and after, three definitions."""
    chances = [_chance(view, task, chance) for _, _, chance in SIMILARITIES]
    figure, values = _figure(
        view,
        task,
        [(heading, _sides(pair)) for heading, pair, _ in SIMILARITIES],
        key="similarity",
        title="Singular vectors before and after",
        how_to_read="1 is unchanged. Means over matrices, left and right vectors; C holds the "
        "cosines between the leading vectors of W0 and of W. Dotted: what unrelated vectors would "
        "give; of subspaces k/d.",
        references=[
            [] if chance is None else [Line("unrelated", Point(chance, None, None), MUTED, "dot")]
            for chance in chances
        ],
    )
    line = view.focus_series(task)
    found = [
        f"{number(p.value, 3)} at r={arm.rank}"
        for arm in (line.arms if line else ())
        if (p := values[0](arm))
    ]
    if not found or line is None:
        return _with(figure, NOTHING)
    text = f"Subspace similarity at {line.label}: {', '.join(found[:8])}"
    full = view.best_full(task)
    point = values[0](full) if full else None
    text += f"; full {number(point.value, 3)}" if point else ""
    return _with(figure, f"{text}. Unrelated vectors would give {number(chances[0], 3)}.")


def _chance(view: StudyView, task: str, pair: Pair) -> float | None:
    measure = _sides(pair)
    found = [measure(t.spectra) for a in view.arms(task) for t in view.trials(a) if t.spectra]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def draw_intruders(view: StudyView, task: str) -> Figure:
    """Intruder dimensions by layer (Shuttleworth et al., arXiv 2410.21228)."""
    arms = [(arm, by_layer) for arm in view.focus_arms(task) if (by_layer := _by_layer(view, arm))]
    layers = sorted({layer for _, found in arms for layer in found})
    title = f"Intruder dimensions by layer, {task}"
    key = f"intruders-{view.training_tasks.index(task)}"
    columns = [
        Column("arm"),
        Column("layer", 0),
        Column("intruders per trial"),
        Column("energy share"),
    ]
    rows = [
        (arm.label, layer if layer >= 0 else None, *found[layer])
        for arm, found in arms
        for layer in layers
        if layer in found
    ]
    if not arms:
        return Figure(key, title, NOTHING, table(columns, rows))
    figure = go.Figure(
        layout=layout(110 + 30 * len(arms), margin={"l": 48, "r": 20, "t": 16, "b": 52})
    )
    figure.add_heatmap(
        x=[str(layer) if layer >= 0 else "other" for layer in layers],
        y=[name(arm.label) for arm, _ in arms],
        z=[[found.get(layer, (None, None))[0] for layer in layers] for _, found in arms],
        colorscale=[[0, NONE_YET.light], [1, MANY.light]],
        zmin=0,
        zmax=max(1.0, *(n for _, found in arms for n, _ in found.values())),
        xgap=1,
        ygap=2,
        texttemplate="%{z:.3~g}" if len(layers) <= 16 else "",
        hovertemplate="%{y}<br>layer %{x}: %{z:.3~g} intruders per trial<extra></extra>",
        showscale=False,
    )
    shared: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "type": "category"}
    figure.update_xaxes(axis("layer", **shared))
    figure.update_yaxes(axis(**shared, autorange="reversed"))
    totals = [(arm, sum(n for n, _ in found.values())) for arm, found in arms]
    most = max(totals, key=lambda pair: pair[1])
    text = "No arm has an intruder dimension."
    if most[1] > 0:
        each = ", ".join(f"{number(total)} in {arm.label}" for arm, total in totals[:8])
        text = f"Intruders per trial, all layers: {each}."
    how = "Leading left singular vectors of the tuned matrix that resemble no base vector, summed "
    how += "over a layer's matrices, mean over seeds. A sign of spread-out change, not a verdict."
    return Figure(
        key, title, text, table(columns, rows), figure, how, min_width=150 + 18 * len(layers)
    )


def _by_layer(view: StudyView, arm: ArmSummary) -> dict[int, tuple[float, float]]:
    """Layer (-1 outside the layers) -> (intruders per trial, mean energy share)."""
    found = [trial.spectra for trial in view.trials(arm) if trial.spectra is not None]
    trials = [spectra for spectra in found if spectra.matrices]
    counts: dict[int, float] = defaultdict(float)
    energies: dict[int, list[float]] = defaultdict(list)
    for spectra in trials:
        for matrix in spectra.matrices:
            layer = -1 if matrix.layer is None else matrix.layer
            counts[layer] += matrix.intruders / len(trials)
            energies[layer].append(matrix.intruder_energy)
    return {layer: (n, float(np.mean(energies[layer]))) for layer, n in counts.items()}
