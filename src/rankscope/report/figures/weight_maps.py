"""Where the update is: one measure of every matrix, by layer and module."""

from functools import partial

from rankscope.formatting import join_names, number
from rankscope.report.analyzed_models import MATRIX_COLUMNS, AnalyzedModels
from rankscope.report.charts.figure import Figure, hover_texts
from rankscope.report.charts.heat_map import Grid, heat_map, pivot
from rankscope.report.figures import Page, register
from rankscope.report.table_formats import table_from_rows

_MEASURES: dict[str, tuple[str, str, str, tuple[Page, ...]]] = {
    "relative": (
        "Size of the update",
        "|dW|_F / |W0|_F",
        "The Frobenius norm of the update over that of the base weight.",
        ("study", "inspection"),
    ),
    "effective": (
        "Directions the update uses",
        "effective rank",
        "exp of the entropy of the shares of dW's singular values; at most its rank.",
        ("inspection",),
    ),
    "kept": (
        "Leading singular vectors kept",
        "subspace similarity",
        "|C|_F² / k of the top k vectors of W0 and W, mean of left and right. 1 is unchanged; "
        "chance is k/d, and the table shows it.",
        ("inspection",),
    ),
    "intruders": (
        "Intruder dimensions",
        "intruders",
        "Leading left vectors of W that resemble no single vector of W0 (Shuttleworth et al., "
        "2410.21228). They show that a change is spread out; they are not a verdict.",
        ("inspection",),
    ),
}
"""Title, column, caption and pages, by key."""


def draw_weight_maps(models: AnalyzedModels, key: str) -> Figure | None:
    """One measure, with a drop-down over the models; None without analyzed matrices."""
    title, column, caption, _ = _MEASURES[key]
    matrices = models.matrices
    if matrices.empty:
        return None
    layers, modules = sorted(set(matrices["layer"])), list(dict.fromkeys(matrices["module"]))
    cells = matrices.groupby(["model", "layer", "module"], as_index=False)[column].mean()
    names = {layer: "other" if layer < 0 else str(layer) for layer in layers}
    cells["layer"] = cells["layer"].map(names)
    words = {"layer": "layer", "": "module", column: column}
    cells["hover"] = hover_texts(cells, "model", words)
    axes, order = ("module", "layer"), (modules, list(names.values()))
    grids = {}
    for model in models.shown:
        of_model = cells[cells["model"] == model.label]
        values, hover = (pivot(of_model, axes, value, order) for value in (column, "hover"))
        grids[model.label] = Grid(values, reach=cells[column].max(), hover=hover.fillna(""))
    # The last columns are what to read similarities against.
    shown = matrices[["model", "matrix", column, *list(MATRIX_COLUMNS)[-4:]]]
    return Figure(
        **models.names(f"map-{key}", f"{title} by layer and module"),
        finding=_finding(models, column),
        data=table_from_rows(shown.to_dict("records")),
        **heat_map(grids, x_title="layer", cell_width=18),
        caption=caption,
        choice_name="Model",
    )


def _finding(models: AnalyzedModels, column: str) -> str:
    parts = []
    for name, of_model in models.matrices.groupby("model", sort=False):
        values = of_model[column]
        if column == "intruders":
            parts.append(f"{name} {number(values.sum())} in {len(values)} matrices")
            continue
        low = column == "subspace similarity"
        at = values.idxmin() if low else values.idxmax()
        parts.append(
            f"{name} {number(values.mean())} on average, {'least' if low else 'most'} "
            f"{number(values[at])} in {of_model['matrix'][at]}"
        )
    return f"{column[0].upper()}{column[1:]}: {join_names(parts)}."


for place, (name, (_, _, _, pages)) in enumerate(_MEASURES.items(), start=60):
    register("weights", place, per="models", pages=pages)(partial(draw_weight_maps, key=name))
