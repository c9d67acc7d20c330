"""Figures of the weights: how far they moved, in how many directions, and where."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import pandas as pd
import plotly.graph_objects as go

from rankscope.extensions.spectra.record import (
    MatrixSpectrum,
    NormGrowth,
    SpectraRecord,
    growth_of_given,
)
from rankscope.formatting import MAX_NAME, MINUS, number, safe_text
from rankscope.records import ArmSummary, TrialRecords
from rankscope.report.analyzed_models import AnalyzedModel, AnalyzedModels
from rankscope.report.charts.concentration import effective_number, gini
from rankscope.report.charts.figure import (
    Figure,
    hover_texts,
    plot_text,
    range_cells,
    records,
)
from rankscope.report.charts.heat_map import Grid, heat_map, pivot
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.charts.scatter import Path, plane_plot
from rankscope.report.columns import Column, interval_cells
from rankscope.report.figures import Section, in_section
from rankscope.report.study_view import StudyView
from rankscope.report.style import DASHES, MUTED, SYMBOLS
from rankscope.report.table_formats import shown, table

WEIGHTS_SECTION = Section(
    "weights",
    50,
    "Inside the weights",
    "W0 is a base weight matrix, dW what training added to it, and W = W0 + dW.",
    folded=True,
)
Measure = Callable[[SpectraRecord], float | None]

RELATIVE = "|dW|_F / |W0|_F"
MATRIX_COLUMNS: Mapping[str, Callable[[MatrixSpectrum], float]] = {
    RELATIVE: lambda m: m.relative,
    "effective rank": lambda m: m.effective_rank,
    "stable rank": lambda m: m.stable_rank,
    "index-matched similarity": lambda m: fmean(m.similarity_index),
    "max-matched similarity": lambda m: fmean(m.similarity_max),
    "subspace similarity": lambda m: fmean(m.similarity_subspace),
    "chance, index-matched": lambda m: fmean(m.chance_index),
    "chance, max-matched": lambda m: fmean(m.chance_max),
    "chance, subspace": lambda m: fmean(m.chance_subspace),
    "intruders": lambda m: m.intruders,
    "energy share": lambda m: m.intruder_energy,
    "k": lambda m: m.top_k,
    "chance of the left subspace": lambda m: m.chance_subspace[0],
    "chance of the right subspace": lambda m: m.chance_subspace[1],
    "ill-conditioned vectors": lambda m: m.ill_conditioned,
}
"""Shown measures of one matrix; similarities are means of left and right vectors."""


def total_norm(spectra: SpectraRecord) -> float | None:
    return spectra.frobenius if spectra.matrices else None


def mean_over_matrices(column: str) -> Measure:
    """Make the mean of one of ``MATRIX_COLUMNS`` over the matrices of a trial."""
    value = MATRIX_COLUMNS[column]
    return lambda spectra: fmean(map(value, spectra.matrices)) if spectra.matrices else None


def _shown(models: AnalyzedModels) -> list[AnalyzedModel]:
    """Return the focus models with analyzed matrices."""
    focus = [model for model in models.models if model.label in models.focus]
    return [m for m in focus if any(s.matrices for s in m.records(SpectraRecord))]


def _matrices(models: AnalyzedModels) -> pd.DataFrame:
    """Return one row per shown model and matrix, means over seeds; layer -1 is outside the
    layers."""
    rows = [
        {
            "model": model.label,
            "kind": model.kind,
            "matrix": m.name,
            "layer": -1 if m.layer is None else m.layer,
            "module": m.module,
            **{title: float(value(m)) for title, value in MATRIX_COLUMNS.items()},
        }
        for model in _shown(models)
        for spectra in model.records(SpectraRecord)
        for m in spectra.matrices
    ]
    identity = ["model", "kind", "matrix", "layer", "module"]
    frame = pd.DataFrame(rows, columns=[*identity, *MATRIX_COLUMNS])
    return frame.groupby(identity, sort=False, as_index=False).mean()


def norm_growth(models: AnalyzedModels) -> NormGrowth | None:
    """Fit the norm over the ranks of the focus line, or of given models that are alike."""
    if models.place is None:
        return growth_of_given([trial for model in models.models for trial in model.trials])
    ranks = {point.arm: point.rank for point in models.rank_axis.focus_points}
    known = [model for model in models.models if model.label in ranks]
    norms = {ranks[m.label]: m.mean(SpectraRecord, total_norm) for m in known}
    fitted = [(rank, norm) for rank, norm in norms.items() if norm is not None]
    return NormGrowth.fit(*zip(*fitted, strict=True)) if fitted else None


NORM, MEAN_SIZE = "|dW|_F over all matrices", f"mean of {RELATIVE}"
_NORMS: dict[str, Measure] = {NORM: total_norm, MEAN_SIZE: mean_over_matrices(RELATIVE)}


@in_section("weights", 10, per="models")
def draw_update_norm(models: AnalyzedModels) -> Figure | None:
    """Draw the norm with its fit; the table also has it relative to the base."""
    frame, rank_axis = models.over_seeds(SpectraRecord, _NORMS), models.rank_axis
    if not rank_axis.lines and (len(frame) or models.place is None):
        return None
    growth = norm_growth(models)
    plot = rank_plot(rank_axis, [Panel(frame, NORM)])
    if growth is not None and plot is not None:
        _add_fit(plot, growth)
    return Figure(
        **models.names("norm", f"Size of the update {rank_axis.against}"),
        finding=_norm_finding(models, growth),
        data=frame,
        plot=plot,
        caption=f"Points are means over seeds. {rank_axis.bands_note('the range over seeds')} The "
        "thin straight line, for three ranks or more, is the least-squares fit a + b log2 r of the "
        "line named above.",
    )


def _add_fit(plot: go.Figure, growth: NormGrowth) -> None:
    slope = growth.slope * math.log(2)
    ends = [math.log2(min(growth.ranks)), math.log2(max(growth.ranks))]
    plot.add_scatter(
        x=ends,
        y=[growth.start + slope * x for x in ends],
        mode="lines",
        line={"color": MUTED.light, "width": 1, "dash": "longdashdot"},
        hoverinfo="text",
        hovertext=f"fit: {number(growth.start)} + {number(slope)} log2 r",
        row=1,
        col=1,
    )


def _norm_finding(models: AnalyzedModels, growth: NormGrowth | None) -> str:
    values = models.by_rank(SpectraRecord, total_norm)
    if not values:
        return "No run has a spectra record, so there is nothing to show here."
    text = f"At {models.rank_axis.focus}, |dW|_F is {values}."
    if growth is not None:
        slope = growth.slope * math.log(2)
        closer = "a power law" if growth.power_rms < growth.rms else "the logarithm"
        text += (
            f" The fit {number(growth.start)} {'+' if slope >= 0 else MINUS} {number(abs(slope))} "
            f"log2 r misses these by {number(growth.rms)} (root mean square), a power law "
            f"r^{number(growth.power)} by {number(growth.power_rms)}: {closer} is closer."
        )
    full = models.full(SpectraRecord, total_norm)
    return text + (f" Full fine-tuning moves the weights by {number(full)}." if full else "")


_DIRECTIONS = {
    "effective rank of dW, mean over matrices": mean_over_matrices("effective rank"),
    "stable rank of dW, mean over matrices": mean_over_matrices("stable rank"),
}
_RANKING = """Effective rank: exp of the entropy of the shares of the singular values. Stable \
rank, in the table: |dW|_F² over the largest singular value squared. Both are at most the rank of \
dW: r for LoRA, 2r for PiSSA, the smaller side of the matrix for DoRA and full fine-tuning."""


@in_section("weights", 15)
def draw_objectives(view: StudyView, task: str) -> Figure | None:
    """Draw gain and retention of arms with different objectives, against how far they moved.

    None if all have one objective.
    """
    default, named = view.study.config.train.objective, dict[str, list[ArmSummary]]()
    for arm in view.arms(task):
        if arm.trains and (trials := view.trials(arm)):
            named.setdefault(trials[0].spec.objective or default, []).append(arm)
    if len(named) < 2:
        return None
    kept = view.retention_unit(task)
    gain, retention = view.plane_titles(task, kept)
    rows = [
        {
            "arm": arm.label,
            "objective": objective,
            "seeds": arm.seeds,
            **range_cells(NORM, (total_norm(s) for s in _spectra(view.trials(arm)))),
            **interval_cells(gain, arm.gain),
            **interval_cells(retention, view.retention_change(arm)),
        }
        for objective, arms in named.items()
        for arm in arms
    ]
    columns = view.plane_columns(task, kept) | {NORM: Column(digits=3)}
    frame = shown(table(rows, columns))
    known = frame[frame[NORM].notna() & frame[gain].notna()].set_index("arm", drop=False)
    title = f"Objectives by distance from the base, {task}"
    if known["objective"].nunique() < 2:
        missing = "Fewer than two objectives have scored configurations with spectra."
        return Figure(view.key("objectives", task), title, missing, frame)
    groups = {name: g.sort_values(NORM) for name, g in known.groupby("objective", sort=False)}
    level = min(group[gain].max() for group in groups.values())
    near = {name: g.loc[(g[gain] - level).abs().idxmin()] for name, g in groups.items()}
    unit = view.unit(task).difference
    most = f"{columns[gain].number(level)} {unit} is the most that every objective reached."
    listed = [
        f"{safe_text(name, MAX_NAME)} gained {texts[0]} ({row['arm']}) with "
        f"|dW|_F {texts[1]} and retention {texts[2]}"
        for name, row in near.items()
        for texts in [[columns[t].number(row[t]) for t in (gain, NORM, retention)]]
    ]
    return Figure(
        key=view.key("objectives", task),
        title=title,
        finding=f"{most} The configuration of each that is nearest to it: {'; '.join(listed)}.",
        data=frame,
        plot=_objective_paths(view, task, known, groups),
        caption="Each point is one configuration, the mean over its seeds; a line joins those of "
        "one objective by their distance. The table has intervals of gain and retention, and the "
        "range of |dW|_F over seeds.",
    )


def _objective_paths(
    view: StudyView, task: str, known: pd.DataFrame, groups: Mapping[str, pd.DataFrame]
) -> go.Figure:
    gain, retention = view.plane_titles(task, view.retention_unit(task))
    paths = [
        Path(
            frame=group,
            words={"gain": gain, "|dW|": NORM, "retention": retention},
            colors=[view.color(view.arm(task, label)).light for label in group.index],
            style=(DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)]),
            line_color=MUTED.light,
        )
        for i, group in enumerate(groups.values())
    ]
    ends = {str(group.index[-1]): plot_text(name) for name, group in groups.items()}
    return plane_plot(known, (NORM, gain), paths, crosses={}, front=(), ring=None, names=ends)


def _spectra(trials: Sequence[TrialRecords]) -> list[SpectraRecord]:
    return [record for trial in trials if (record := trial.analysis(SpectraRecord)) is not None]


@in_section("weights", 20, per="models")
def draw_effective_rank(models: AnalyzedModels) -> Figure | None:
    """Draw effective rank; the table also has stable rank. None without analyzed matrices."""
    title, effective = next(iter(_DIRECTIONS.items()))
    values = models.by_rank(SpectraRecord, effective, preposition="of")
    full = models.full(SpectraRecord, effective)
    if not values:
        return None
    frame = models.over_seeds(SpectraRecord, _DIRECTIONS)
    return Figure(
        **models.names("effective-rank", "Directions the update uses"),
        finding=f"Effective rank at {models.rank_axis.focus}: {values}."
        + (f" Full fine-tuning: {number(full)}." if full else ""),
        data=frame,
        plot=rank_plot(models.rank_axis, [Panel(frame, title)]),
        caption=_RANKING,
    )


DEFINITIONS = {
    "same subspace, |C|_F² / k": ("subspace similarity", "chance, subspace"),
    "best match, mean of max |C_ij|": ("max-matched similarity", "chance, max-matched"),
    "same index, mean of |C_ii|": ("index-matched similarity", "chance, index-matched"),
}
"""Columns of a similarity, and of that of unrelated vectors, by title; the first is drawn."""
_SIMILAR = """1 is unchanged. Means over matrices, left and right vectors; C holds the cosines \
between the leading singular vectors of W0 and of W. Dotted: the value of unrelated vectors, k/d. \
The table has two further definitions, matched by best partner and by index."""


@in_section("weights", 30, per="models")
def draw_similarity(models: AnalyzedModels) -> Figure | None:
    """Draw subspace similarity with its chance level; None without analyzed matrices."""
    measures = {title: mean_over_matrices(column) for title, (column, _) in DEFINITIONS.items()}
    measures |= {
        f"unrelated vectors, {title}": mean_over_matrices(chance)
        for title, (_, chance) in DEFINITIONS.items()
    }
    title, subspace = next(iter(measures.items()))
    values, full = models.by_rank(SpectraRecord, subspace, 3), models.full(SpectraRecord, subspace)
    if not values:
        return None
    frame = models.over_seeds(SpectraRecord, measures)
    chance = float(frame[f"unrelated vectors, {title}"].mean())
    panel = Panel(frame, title, [Reference("unrelated", chance, color=MUTED)])
    return Figure(
        **models.names("similarity", "Singular vectors before and after"),
        finding=f"Subspace similarity at {models.rank_axis.focus}: {values}"
        + (f"; full fine-tuning {number(full, 3)}" if full else "")
        + f". Unrelated vectors would have {number(chance, 3)}.",
        data=frame,
        plot=rank_plot(models.rank_axis, [panel]),
        caption=_SIMILAR,
    )


PARTS: Mapping[str, Callable[[MatrixSpectrum], object]] = {
    "matrices": lambda m: m.name,
    "layers": lambda m: m.layer,
    "types of module": lambda m: m.module,
}
_CONCENTRATION = """The energy of an update is |dW|_F² of each matrix. Effective number: exp of \
the entropy of the shares; an update that is spread evenly over n matrices counts n, one in a \
single matrix counts 1. The table counts layers and types of module alike, and has the Gini \
coefficient over matrices (0: even). The matrices of full fine-tuning are those that adapters of \
the study change, if it has any."""


@in_section("weights", 45, per="models")
def draw_concentration(models: AnalyzedModels) -> Figure | None:
    """Draw whether an update is in few places or spread out; None without analyzed matrices."""

    def effective(name: str) -> Measure:
        return lambda s: effective_number(s.energies(PARTS[name])) if s.matrices else None

    measures = {f"effective number of {name}": effective(name) for name in PARTS}
    measures["Gini coefficient of matrices"] = lambda s: (
        gini(s.energies(PARTS["matrices"])) if s.matrices else None
    )
    title, of_matrices = next(iter(measures.items()))
    values = models.by_rank(SpectraRecord, of_matrices)
    full = models.full(SpectraRecord, of_matrices)
    if not values:
        return None
    frame = models.over_seeds(SpectraRecord, measures)
    most = max(len(s.matrices) for m in models.models for s in m.records(SpectraRecord))
    return Figure(
        **models.names("concentration", "In few matrices or in all"),
        finding=f"At {models.rank_axis.focus}, the update is spread as if evenly over so many of "
        f"{most} matrices: {values}."
        + ("" if full is None else f" Full fine-tuning: {number(full)}."),
        data=frame,
        plot=rank_plot(models.rank_axis, [Panel(frame, title)]),
        caption=_CONCENTRATION,
    )


@in_section("weights", 50, per="models")
def draw_modules(models: AnalyzedModels) -> Figure | None:
    """Draw the relative size of the update; the table has the other measures."""
    matrices = _matrices(models)
    if matrices.empty:
        return None
    # The last columns describe single matrices.
    means = dict.fromkeys(list(MATRIX_COLUMNS)[:-4], "mean") | {"intruders": "sum"}
    groups = matrices.groupby(["model", "kind", "module"], sort=False, as_index=False)
    by_module = groups.agg(means)
    wide = pivot(by_module, ("model", "module"), RELATIVE)
    most, least = (
        f"{number(row[RELATIVE])} in {row['module']} of {row['model']}"
        for row in (pick(records(by_module), key=lambda r: r[RELATIVE]) for pick in (max, min))
    )
    return Figure(
        **models.names("modules", "The models side by side"),
        finding=f"Mean of {RELATIVE} over layers: largest {most}, smallest {least}.",
        data=table(by_module.to_dict("records")),
        **heat_map({"": Grid(wide)}, cell_format="%{z:.2~g}"),
        caption="A row per model, a column per type of module. The table has other measures.",
    )


MAPPED = {
    RELATIVE: "size of the update",
    "effective rank": "directions the update uses",
    "subspace similarity": "leading singular vectors kept",
    "intruders": "intruder dimensions",
}
"""Words of the drop-down, by column."""
MAX_LAYERS_WITH_VALUES = 12  # With more, colors and their scale instead of values in the cells
_MAPPING = """The size is the Frobenius norm of the update over that of the base weight. Effective \
rank: exp of the entropy of the shares of dW's singular values; at most its rank. Vectors kept: \
|C|_F² / k of the top k vectors of W0 and W, mean of left and right; 1 is unchanged, chance is k/d \
and in the table. Intruders: leading left vectors of W that resemble no single vector of W0 \
(Shuttleworth et al., 2410.21228); they show that a change is spread out, they are not a verdict."""


@in_section("weights", 60, per="models")
def draw_weight_maps(models: AnalyzedModels) -> Figure | None:
    """Draw maps with a drop-down over measures and models; None without analyzed matrices."""
    matrices = _matrices(models)
    if matrices.empty:
        return None
    layers, modules = sorted(set(matrices["layer"])), list(dict.fromkeys(matrices["module"]))
    by_place = matrices.groupby(["model", "layer", "module"], as_index=False)
    cells = by_place[list(MAPPED)].mean()
    names = {layer: "other" if layer < 0 else str(layer) for layer in layers}
    cells["layer"] = cells["layer"].map(names)
    axes, order = ("module", "layer"), (modules, list(names.values()))
    grids = {}
    for column, words in MAPPED.items():
        texts = hover_texts(cells, "model", {"layer": "layer", "": "module", column: column})
        shown = cells.assign(hover=texts)
        for model in _shown(models):
            of_model = shown[shown["model"] == model.label]
            values, hover = (pivot(of_model, axes, value, order) for value in (column, "hover"))
            grid = Grid(values, reach=cells[column].max(), hover=hover.fillna(""))
            grids[f"{words}, {model.label}"] = grid
    columns = ["model", "matrix", *MAPPED, *list(MATRIX_COLUMNS)[-4:]]
    size, values_fit = next(iter(MAPPED)), len(layers) <= MAX_LAYERS_WITH_VALUES
    parts = []
    for name, of_model in matrices.groupby("model", sort=False):
        most = of_model.loc[of_model[size].idxmax()]
        parts.append(
            f"{name}: the mean is {number(of_model[size].mean())}, the largest "
            f"{number(most[size])} in {most['matrix']}, the number of intruder dimensions "
            f"{number(of_model['intruders'].sum())}"
        )
    return Figure(
        **models.names("map-weights", "Where the update is, by layer and module"),
        finding=f"The size of an update is {size}. {'; '.join(parts)}.",
        data=table(matrices[columns].to_dict("records")),
        **heat_map(
            grids,
            x_title="layer",
            cell_format="%{z:.2~g}" if values_fit else "",
            cell_width=48 if values_fit else 18,
        ),
        caption=_MAPPING,
        choice_name="Shown",
    )
