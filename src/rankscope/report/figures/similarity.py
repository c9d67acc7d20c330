"""Singular vectors before and after: drawn by subspace; the table has two more definitions."""

from rankscope.formatting import number
from rankscope.report.analyzed_models import AnalyzedModels, mean_over_matrices
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.figures import register
from rankscope.report.style import MUTED

DEFINITIONS = {
    "same subspace, |C|_F² / k": ("subspace similarity", "chance, subspace"),
    "best match, mean of max |C_ij|": ("max-matched similarity", "chance, max-matched"),
    "same index, mean of |C_ii|": ("index-matched similarity", "chance, index-matched"),
}
"""Similarity, and that of unrelated vectors, by title; the first is drawn."""
_CAPTION = """1 is unchanged. Means over matrices, left and right vectors; C holds the cosines \
between the leading singular vectors of W0 and of W. Dotted: the value of unrelated vectors, k/d. \
The table has two further definitions, matched by best partner and by index."""


@register("weights", 30, per="models")
def draw_similarity(models: AnalyzedModels) -> Figure | None:
    """Subspace similarity with its chance level; None without analyzed matrices."""
    measures = {title: mean_over_matrices(column) for title, (column, _) in DEFINITIONS.items()}
    measures |= {
        f"unrelated vectors, {title}": mean_over_matrices(chance)
        for title, (_, chance) in DEFINITIONS.items()
    }
    title, subspace = next(iter(measures.items()))
    values, full = models.by_rank(subspace, digits=3), models.full(subspace)
    if not values:
        return None
    frame = models.over_seeds(measures)
    chance = float(frame[f"unrelated vectors, {title}"].mean())
    panel = Panel(frame, title, [Reference("unrelated", chance, color=MUTED)])
    return Figure(
        **models.names("similarity", "Singular vectors before and after"),
        finding=f"Subspace similarity at {models.rank_axis.focus}: {values}"
        + (f"; full fine-tuning {number(full, 3)}" if full else "")
        + f". Unrelated vectors would have {number(chance, 3)}.",
        data=frame,
        plot=rank_plot(models.rank_axis, [panel]),
        caption=_CAPTION,
    )
