"""Where the update is: measures of every matrix, by layer and module."""

from rankscope.formatting import number
from rankscope.report.analyzed_models import MATRIX_COLUMNS, AnalyzedModels
from rankscope.report.charts.figure import Figure, hover_texts
from rankscope.report.charts.heat_map import Grid, heat_map, pivot
from rankscope.report.figures import register
from rankscope.report.table_formats import table_from_rows

MEASURES = {
    "|dW|_F / |W0|_F": "size of the update",
    "effective rank": "directions the update uses",
    "subspace similarity": "leading singular vectors kept",
    "intruders": "intruder dimensions",
}
"""In the words of the drop-down, by column."""
MAX_LAYERS_WITH_VALUES = 12  # With more, colors and their scale instead of values in the cells
_CAPTION = """The size is the Frobenius norm of the update over that of the base weight. Effective \
rank: exp of the entropy of the shares of dW's singular values; at most its rank. Vectors kept: \
|C|_F² / k of the top k vectors of W0 and W, mean of left and right; 1 is unchanged, chance is k/d \
and in the table. Intruders: leading left vectors of W that resemble no single vector of W0 \
(Shuttleworth et al., 2410.21228); they show that a change is spread out, they are not a verdict."""


@register("weights", 60, per="models")
def draw_weight_maps(models: AnalyzedModels) -> Figure | None:
    """A drop-down over measures and models; None without analyzed matrices."""
    matrices = models.matrices
    if matrices.empty:
        return None
    layers, modules = sorted(set(matrices["layer"])), list(dict.fromkeys(matrices["module"]))
    by_place = matrices.groupby(["model", "layer", "module"], as_index=False)
    cells = by_place[list(MEASURES)].mean()
    names = {layer: "other" if layer < 0 else str(layer) for layer in layers}
    cells["layer"] = cells["layer"].map(names)
    axes, order = ("module", "layer"), (modules, list(names.values()))
    grids = {}
    for column, words in MEASURES.items():
        texts = hover_texts(cells, "model", {"layer": "layer", "": "module", column: column})
        shown = cells.assign(hover=texts)
        for model in models.shown:
            of_model = shown[shown["model"] == model.label]
            values, hover = (pivot(of_model, axes, value, order) for value in (column, "hover"))
            grid = Grid(values, reach=cells[column].max(), hover=hover.fillna(""))
            grids[f"{words}, {model.label}"] = grid
    columns = ["model", "matrix", *MEASURES, *list(MATRIX_COLUMNS)[-4:]]
    size, values_fit = next(iter(MEASURES)), len(layers) <= MAX_LAYERS_WITH_VALUES
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
        data=table_from_rows(matrices[columns].to_dict("records")),
        **heat_map(
            grids,
            x_title="layer",
            cell_format="%{z:.2~g}" if values_fit else "",
            cell_width=48 if values_fit else 18,
        ),
        caption=_CAPTION,
        choice_name="Shown",
    )
