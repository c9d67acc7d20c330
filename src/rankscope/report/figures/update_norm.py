"""Size of the update against rank, with the logarithmic fit claimed by arXiv 2512.15634."""

import math

import plotly.graph_objects as go

from rankscope.analyses.spectra.record import NormGrowth
from rankscope.formatting import MINUS, number
from rankscope.report.analyzed_models import AnalyzedModels, Measure, mean_over_matrices, total_norm
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.rank_lines import Panel, rank_plot
from rankscope.report.figures import register
from rankscope.report.style import MUTED

NORM, RELATIVE = "|dW|_F over all matrices", "mean of |dW|_F / |W0|_F"
_MEASURES: dict[str, Measure] = {NORM: total_norm, RELATIVE: mean_over_matrices("|dW|_F / |W0|_F")}


@register("weights", 10, per="models")
def draw_update_norm(models: AnalyzedModels) -> Figure | None:
    """The norm with its fit; the table also has it relative to the base."""
    frame, rank_axis = models.over_seeds(_MEASURES), models.rank_axis
    if not rank_axis.lines and len(frame):
        return None
    plot = rank_plot(rank_axis, [Panel(frame, NORM)])
    if models.growth is not None and plot is not None:
        _add_fit(plot, models.growth)
    return Figure(
        **models.names("norm", f"Size of the update {rank_axis.against}"),
        finding=_finding(models),
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


def _finding(models: AnalyzedModels) -> str:
    values, growth = models.by_rank(total_norm), models.growth
    if not values:
        return "No trial has a spectra record, so there is nothing to show here."
    text = f"At {models.rank_axis.focus}, |dW|_F is {values}."
    if growth is not None:
        slope = growth.slope * math.log(2)
        closer = "a power law" if growth.power_rms < growth.rms else "the logarithm"
        text += (
            f" The fit {number(growth.start)} {'+' if slope >= 0 else MINUS} {number(abs(slope))} "
            f"log2 r misses these by {number(growth.rms)} (root mean square), a power law "
            f"r^{number(growth.power)} by {number(growth.power_rms)}: {closer} is closer."
        )
    full = models.full(total_norm)
    return text + (f" Full fine-tuning moves the weights by {number(full)}." if full else "")
