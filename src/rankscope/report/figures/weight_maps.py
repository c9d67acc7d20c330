"""Where the update is: one measure of every matrix, by layer and module."""

from functools import partial

from rankscope.formatting import join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure, plot_text, tidy
from rankscope.report.charts.heat_map import Grid, heat_map
from rankscope.report.figures import Page, register

EVERY_PAGE: tuple[Page, ...] = ("study", "inspection")
MEASURES: dict[str, tuple[str, str, str, tuple[Page, ...]]] = {
    "relative": (
        "Size of the update by layer and module",
        "|dW|_F / |W0|_F",
        "The Frobenius norm of the update over that of the base weight.",
        EVERY_PAGE,
    ),
    "effective": (
        "Directions the update uses by layer and module",
        "effective rank",
        "exp of the entropy of the shares of dW's singular values; at most its rank.",
        ("inspection",),
    ),
    "kept": (
        "Leading singular vectors kept by layer and module",
        "subspace similarity",
        "|C|_F² / k of the top k vectors of W0 and W, mean of left and right. 1 is unchanged; "
        "chance is k/d, and the table shows it.",
        ("inspection",),
    ),
    "intruders": (
        "Intruder dimensions by layer and module",
        "intruders",
        "Leading left vectors of W that resemble no single vector of W0 (Shuttleworth et al., "
        "2410.21228). They show that a change is spread out; they are not a verdict.",
        ("inspection",),
    ),
}
"""Title, column, caption and pages, by key."""
CHANCES = ["k", "chance, subspace, left", "chance, subspace, right", "ill-conditioned vectors"]


def draw(models: AnalyzedModels, key: str) -> Figure | None:
    """One measure, with a drop-down over the models; None without analyzed matrices."""
    title, column, caption, _ = MEASURES[key]
    matrices = models.matrices
    if matrices.empty:
        return None
    layers, modules = sorted(set(matrices["layer"])), list(dict.fromkeys(matrices["module"]))
    names = ["other" if layer < 0 else str(layer) for layer in layers]
    grids = {}
    for model in models.shown:
        wide = matrices[matrices["model"] == model.label].pivot_table(
            index="module", columns="layer", values=column, aggfunc="mean"
        )
        wide = wide.reindex(index=modules, columns=layers).set_axis(names, axis=1)
        hover = wide.apply(
            lambda line: [
                f"layer {line.name}, {plot_text(module)}: {number(value)} {column}"
                for module, value in line.items()
            ]
        )
        grids[model.label] = Grid(wide, reach=matrices[column].max() or 1.0, hover=hover)
    plot, choices = heat_map(grids, row_height=22, x_title="layer", margin={"l": 80})
    data = matrices[["model", "matrix", column, *CHANCES]]
    return Figure(
        key=models.key(f"map-{key}"),
        title=models.title(title),
        finding=finding(models, column),
        data=tidy(data.to_dict("list")),
        plot=plot,
        caption=caption,
        choices=choices,
        choice_name="Model",
        min_width=150 + 18 * len(layers),
    )


def finding(models: AnalyzedModels, column: str) -> str:
    """Mean and extreme of each model, or the number of intruders."""
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
    return f"{column}: {join_names(parts)}."


for place, (name, (_, _, _, pages)) in enumerate(MEASURES.items(), start=60):
    register("weights", place, per="models", pages=pages)(partial(draw, key=name))
