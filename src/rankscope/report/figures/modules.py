"""The models side by side, by type of module: low-rank adapters beside full fine-tuning."""

from rankscope.formatting import number
from rankscope.report.analyzed_models import MATRIX_COLUMNS, AnalyzedModels
from rankscope.report.charts.figure import Figure, records
from rankscope.report.charts.heat_map import Grid, heat_map, pivot
from rankscope.report.figures import register
from rankscope.report.table_formats import table_from_rows

RELATIVE = "|dW|_F / |W0|_F"


@register("weights", 50, per="models")
def draw_modules(models: AnalyzedModels) -> Figure | None:
    """The relative size of the update; the table has the other measures."""
    if models.matrices.empty:
        return None
    # The last columns describe single matrices.
    means = dict.fromkeys(list(MATRIX_COLUMNS)[:-4], "mean") | {"intruders": "sum"}
    groups = models.matrices.groupby(["model", "kind", "module"], sort=False, as_index=False)
    by_module = groups.agg(means)
    wide = pivot(by_module, ("model", "module"), RELATIVE)
    most, least = (
        f"{number(row[RELATIVE])} in {row['module']} of {row['model']}"
        for row in (pick(records(by_module), key=lambda r: r[RELATIVE]) for pick in (max, min))
    )
    return Figure(
        **models.names("modules", "The models side by side"),
        finding=f"Mean of {RELATIVE} over layers: largest {most}, smallest {least}.",
        data=table_from_rows(by_module.to_dict("records")),
        **heat_map({"": Grid(wide)}, cell_format="%{z:.2~g}"),
        caption="A row per model, a column per type of module. The table has other measures.",
    )
