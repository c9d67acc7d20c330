"""Directions the update uses: effective rank against rank."""

from rankscope.formatting import number
from rankscope.report.analyzed_models import AnalyzedModels, mean_over_matrices
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.rank_lines import Panel, rank_plot
from rankscope.report.figures import register

_MEASURES = {
    "effective rank of dW, mean over matrices": mean_over_matrices("effective rank"),
    "stable rank of dW, mean over matrices": mean_over_matrices("stable rank"),
}
_CAPTION = """Effective rank: exp of the entropy of the shares of the singular values. Stable \
rank, in the table: |dW|_F² over the largest singular value squared. Both are at most the rank of \
dW: r for LoRA, 2r for PiSSA, the smaller side of the matrix for DoRA and full fine-tuning."""


@register("weights", 20, per="models")
def draw_effective_rank(models: AnalyzedModels) -> Figure | None:
    """Effective rank; the table also has stable rank. None without analyzed matrices."""
    title, effective = next(iter(_MEASURES.items()))
    values, full = models.by_rank(effective, preposition="of"), models.full(effective)
    if not values:
        return None
    frame = models.over_seeds(_MEASURES)
    return Figure(
        **models.names("effective-rank", "Directions the update uses"),
        finding=f"Effective rank at {models.rank_axis.focus}: {values}."
        + (f" Full fine-tuning: {number(full)}." if full else ""),
        data=frame,
        plot=rank_plot(models.rank_axis, [Panel(frame, title)]),
        caption=_CAPTION,
    )
