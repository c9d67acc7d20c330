"""Singular vectors before and after, by three definitions of similarity."""

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
"""Similarity, and that of unrelated vectors, by the title of a panel."""
_CAPTION = """1 is unchanged. Means over matrices, left and right vectors; C holds the cosines \
between the leading singular vectors of W0 and of W. Dotted: the value of unrelated vectors; for \
subspaces that is k/d."""


@register("weights", 30, per="models")
def draw_similarity(models: AnalyzedModels) -> Figure | None:
    """A panel for each definition with its chance level; None without analyzed matrices."""
    measures = {title: mean_over_matrices(column) for title, (column, _) in DEFINITIONS.items()}
    subspace = next(iter(measures.values()))
    values, full = models.by_rank(subspace, digits=3), models.full(subspace)
    if not values:
        return None
    frame = models.over_seeds(measures)
    chances = {title: chance_of(models, column) for title, (_, column) in DEFINITIONS.items()}
    panels = [
        Panel(title, frame, title, [Reference("unrelated", chance, color=MUTED)])
        for title, chance in chances.items()
    ]
    return Figure(
        **models.names("similarity", "Singular vectors before and after"),
        finding=f"Subspace similarity at {models.rank_axis.focus}: {values}"
        + (f"; full fine-tuning {number(full, 3)}" if full else "")
        + f". Unrelated vectors would have {number(next(iter(chances.values())), 3)}.",
        data=frame,
        plot=rank_plot(models.rank_axis, panels),
        caption=_CAPTION,
    )


def chance_of(models: AnalyzedModels, column: str) -> float:
    """The mean over models and seeds of the similarity of unrelated vectors."""
    measure = mean_over_matrices(column)
    values = [v for m in models.models for s in m.spectra if (v := measure(s)) is not None]
    return sum(values) / len(values)
