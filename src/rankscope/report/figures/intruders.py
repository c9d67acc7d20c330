"""Intruder dimensions by layer (Shuttleworth et al., arXiv 2410.21228), models side by side."""

from rankscope.formatting import number
from rankscope.report.analyzed_models import AnalyzedModels
from rankscope.report.charts.figure import Figure, plot_text, tidy
from rankscope.report.charts.heat_map import Grid, heat_map, pivot
from rankscope.report.figures import register

COUNT = "intruders per trial"
CAPTION = """Leading left singular vectors of the tuned matrix that resemble no base vector, \
summed over the matrices of a layer, mean over seeds. They show that a change is spread out; they \
are not a verdict."""


@register("weights", 40, per="models")
def draw(models: AnalyzedModels) -> Figure | None:
    """Models by layer; None without analyzed matrices."""
    matrices = models.matrices
    if matrices.empty:
        return None
    layers = matrices.groupby(["model", "layer"], sort=False).agg(
        {"intruders": "sum", "energy share": "mean"}
    )
    layers = layers.reset_index().sort_values("layer", kind="stable")
    order = {model.label: place for place, model in enumerate(models.shown)}
    layers = layers.sort_values("model", key=lambda names: names.map(order), kind="stable")
    frame = tidy(
        {
            "arm": layers["model"],
            "layer": ["other" if layer < 0 else str(layer) for layer in layers["layer"]],
            COUNT: layers["intruders"],
            "energy share": layers["energy share"],
        }
    )
    frame["hover"] = [
        f"<b>{plot_text(arm)}</b><br>layer {layer}: {number(count)} intruders per trial"
        for arm, layer, count in zip(frame["arm"], frame["layer"], frame[COUNT], strict=True)
    ]
    wide, hover = pivot(frame, "arm", "layer", COUNT), pivot(frame, "arm", "layer", "hover", "")
    grid = Grid(wide, reach=max(1.0, frame[COUNT].max()), hover=hover)
    cell_format = "%{z:.3~g}" if wide.shape[1] <= 16 else ""
    plot, _ = heat_map({"": grid}, row_height=30, x_title="layer", cell_format=cell_format)
    totals = layers.groupby("model", sort=False)["intruders"].sum()
    each = ", ".join(f"{number(total)} in {name}" for name, total in list(totals.items())[:8])
    return Figure(
        key=models.key("intruders"),
        title=models.title("Intruder dimensions by layer"),
        finding=f"Intruders per trial, all layers: {each}."
        if totals.max() > 0
        else "No model has an intruder dimension.",
        data=frame.drop(columns="hover"),
        plot=plot,
        caption=CAPTION,
        min_width=150 + 18 * wide.shape[1],
    )
