"""The models side by side, by type of module: low-rank adapters beside full fine-tuning."""

from rankscope.formatting import join_names
from rankscope.report.analyzed_models import MATRIX_COLUMNS, AnalyzedModels
from rankscope.report.charts.figure import Figure, tidy
from rankscope.report.charts.heat_map import Grid, heat_map, pivot
from rankscope.report.figures import register

RELATIVE = "|dW|_F / |W0|_F"
MEANS = list(MATRIX_COLUMNS)[:9]
"""Columns whose mean over layers is shown; intruders are summed."""


@register("weights", 50, per="models")
def draw(models: AnalyzedModels) -> Figure | None:
    """The relative size of the update; the table has the other measures."""
    matrices = models.matrices
    if matrices.empty:
        return None
    by_module = matrices.groupby(["model", "kind", "module"], sort=False, as_index=False).agg(
        dict.fromkeys(MEANS, "mean") | {"intruders": "sum", "energy share": "mean"}
    )
    wide = pivot(by_module, "model", "module", RELATIVE)
    plot, _ = heat_map(
        {"": Grid(wide)}, row_height=22, cell_format="%{z:.2~g}", margin={"l": 120, "t": 12}
    )
    kinds = join_names(f"{m.label} ({m.kind})" for m in models.shown)
    return Figure(
        key=models.key("modules"),
        title=models.title("The models side by side"),
        finding=f"Mean of {RELATIVE} over layers: {kinds}.",
        data=tidy(by_module.to_dict("list")),
        plot=plot,
        caption="A row per model, a column per type of module. The table has other measures.",
        min_width=200 + 60 * wide.shape[1],
    )
