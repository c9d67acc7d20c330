"""Intruder dimensions by layer (Shuttleworth et al., arXiv 2410.21228), models side by side."""

from rankscope.formatting import join_names, number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure, hover_texts
from rankscope.report.charts.heat_map import Grid, heat_map, pivot
from rankscope.report.figures import register
from rankscope.report.table_formats import table_from_rows

_CAPTION = """Leading left singular vectors of the tuned matrix that resemble no base vector, \
summed over the matrices of a layer, mean over seeds. They show that a change is spread out; they \
are not a verdict."""


@register("weights", 55, per="models")
def draw_intruders(models: AnalyzedModels) -> Figure | None:
    """Models by layer; None without analyzed matrices."""
    matrices = models.matrices
    if matrices.empty:
        return None
    by_layer = matrices.groupby(["model", "layer"])
    sums, energy = by_layer["intruders"].sum(), by_layer["energy share"].mean()
    layers = sorted(set(matrices["layer"]))
    rows = [
        {
            "model": model.label,
            "layer": "other" if layer < 0 else str(layer),
            "intruders": float(sums[model.label, layer]),
            "energy share": float(energy[model.label, layer]),
        }
        for model in models.shown
        for layer in layers
        if (model.label, layer) in sums
    ]
    frame = table_from_rows(rows)
    words = {"layer": "layer", "intruders": "intruders"}
    cells = frame.assign(hover=hover_texts(frame, "model", words))
    wide = pivot(cells, ("model", "layer"), "intruders")
    grid = Grid(
        wide,
        reach=max(1.0, frame["intruders"].max()),
        hover=pivot(cells, ("model", "layer"), "hover").fillna(""),
    )
    cell_format = "%{z:.3~g}" if len(layers) <= 16 else ""
    totals = frame.groupby("model", sort=False)["intruders"].sum()
    each = join_names([f"{number(total)} in {name}" for name, total in totals.items()], most=8)
    text = f"Intruder dimensions in all layers: {each}."
    return Figure(
        **models.names("intruders", "Intruder dimensions by layer"),
        finding=text if totals.max() > 0 else "No model has an intruder dimension.",
        data=frame,
        **heat_map(
            {"": grid}, row_height=30, x_title="layer", cell_format=cell_format, cell_width=18
        ),
        caption=_CAPTION,
    )
