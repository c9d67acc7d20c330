"""In-domain score against rank."""

from rankscope.formatting import count, score_text
from rankscope.report.charts.figure import Figure, interval_cells, interval_digits
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table_from_rows

# Normal quantile of a 95 % interval, for the standard error of the base over items.
Z95 = 1.959964


@register("ranks", 10)
def draw_in_domain(view: StudyView, task: str) -> Figure:
    """The scores of all arms, with full fine-tuning and the base as references."""
    unit, base, rank_axis = view.unit(task), view.base(task), view.rank_axis(task)
    column = f"score, {unit.score}"
    rows = [
        {
            "arm": arm.label,
            "rank": arm.rank,
            "learning rate": arm.lr,
            "seeds": arm.seeds,
            "items": arm.score.n if arm.score else None,
            **interval_cells(column, arm.score, unit),
        }
        for arm in view.arms(task)
    ]
    references = []
    if base:
        value, error = base.score * unit.scale, base.standard_error
        half = None if error is None else Z95 * error * unit.scale
        ends = (None, None) if half is None else (value - half, value + half)
        references = [Reference("base", value, *ends)]
        cells = ("base", None, None, None, base.n, value, *ends)
        titles = ("arm", "rank", "learning rate", "seeds", "items", *interval_digits(column, 0))
        rows.append(dict(zip(titles, cells, strict=True)))
    frame = table_from_rows(rows, interval_digits(column, unit.digits + 1))
    metric = view.study.task(task).metric
    panel = Panel(f"in-domain score ({metric}), {unit.score}", frame, column, references)
    return Figure(
        key=view.key("in-domain", task),
        title=f"In-domain score {rank_axis.against}, {task}",
        finding=_finding(view, task),
        data=frame,
        plot=rank_plot(rank_axis, [panel]),
        caption=f"Test split. {rank_axis.bands_note()} The interval of the base covers the choice "
        "of items only.",
    )


def _finding(view: StudyView, task: str) -> str:
    unit, focus, lines = view.unit(task), view.focus_line(task), view.lines(task)
    by_arm = view.rank_axis(task).is_by_arm
    arms = (
        [arm for line in lines.values() for arm in line] if by_arm else lines.get(focus or "", [])
    )
    scored = [(arm.score.value, arm) for arm in arms if arm.score]
    if not scored:
        return "No LoRA arm has an in-domain score, so there is nothing to draw against rank."
    (best, best_arm), (low, low_arm) = (pick(scored, key=lambda s: s[0]) for pick in (max, min))
    if by_arm and len(scored) == 1:
        text = f"{best_arm.label} scores {score_text(best, unit)}."
    elif by_arm:
        text = (
            f"Of {count(len(scored), 'arm')}, {best_arm.label} has the highest score, "
            f"{score_text(best, unit)}, and {low_arm.label} the lowest, {score_text(low, unit)}."
        )
    else:
        values = ", ".join(f"{score_text(v, unit)} at r={arm.rank}" for v, arm in scored[:10])
        text = f"At {focus} the score is {values}."
        if len(scored) > 1:
            text += f" The highest is at r={best_arm.rank}"
            near = next(arm for value, arm in scored if best - value < 0.01)
            within = "1 point" if unit.scale == 100 else "0.01 nats per token"
            text += f"; r={near.rank} is within {within} of it." if near is not best_arm else "."
    full, base = view.best_full(task), view.base(task)
    if full and full.score:
        text += f" Full fine-tuning: {score_text(full.score.value, unit)}."
    return text + (f" Base: {score_text(base.score, unit)}." if base else "")
