"""In-domain score against rank."""

from typing import Any

from rankscope.formatting import count, score_text
from rankscope.records import ArmSummary
from rankscope.report.charts.figure import Figure, interval_columns, interval_digits, tidy
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.figures import register
from rankscope.report.study_view import StudyView

# Normal quantile of a 95 % interval, for the standard error of the base over items.
Z95 = 1.959964


@register("ranks", 10)
def draw(view: StudyView, task: str) -> Figure:
    """The scores of all arms, with full fine-tuning and the base as references."""
    unit, arms, base = view.unit(task), view.arms(task), view.base(task)
    column, rank_axis = f"score, {unit.score}", view.rank_axis(task)
    columns: dict[str, list[Any]] = {
        "arm": [arm.label for arm in arms],
        "rank": [arm.rank for arm in arms],
        "learning rate": [arm.lr for arm in arms],
        "seeds": [arm.seeds for arm in arms],
        "items": [arm.score.n if arm.score else None for arm in arms],
        **interval_columns(column, [arm.score for arm in arms], unit),
    }
    references = []
    if base:
        value = base.score * unit.scale
        half = None if base.standard_error is None else Z95 * base.standard_error * unit.scale
        ends = (None, None) if half is None else (value - half, value + half)
        references = [Reference("base", value, *ends)]
        for cells, cell in zip(
            columns.values(), ("base", None, None, None, base.n, value, *ends), strict=True
        ):
            cells.append(cell)
    digits = {"rank": 0, "seeds": 0, "items": 0} | interval_digits(column, unit.digits + 1)
    frame = tidy(columns, digits)
    metric = view.study.task(task).metric
    panel = Panel(f"in-domain score ({metric}), {unit.score}", frame, column, tuple(references))
    return Figure(
        key=view.key("in-domain", task),
        title=f"In-domain score {rank_axis.against}, {task}",
        finding=finding(view, task),
        data=frame,
        plot=rank_plot(rank_axis, [panel]),
        caption=f"Test split. {rank_axis.bands_note()} The interval of the base covers the choice "
        "of items only.",
    )


def finding(view: StudyView, task: str) -> str:
    """The scores on the focus line, or the best and the worst arm; full fine-tuning; the base."""
    unit, focus = view.unit(task), view.focus_line(task)
    lines, by_arm = view.lines(task), view.rank_axis(task).is_by_arm
    arms = (
        [a for of_line in lines.values() for a in of_line] if by_arm else lines.get(focus or "", [])
    )
    scored = [(arm.score.value, arm) for arm in arms if arm.score]
    if not scored:
        return "No LoRA arm has an in-domain score, so there is nothing to draw against rank."
    best, best_arm = max(scored, key=lambda pair: pair[0])
    if by_arm and len(scored) == 1:
        text = f"{best_arm.label} scores {score_text(best, unit)}."
    elif by_arm:
        low, low_arm = min(scored, key=lambda pair: pair[0])
        text = (
            f"Of {count(len(scored), 'arm')}, {best_arm.label} has the highest score, "
            f"{score_text(best, unit)}, and {low_arm.label} the lowest, {score_text(low, unit)}."
        )
    else:
        values = ", ".join(f"{score_text(v, unit)} at r={arm.rank}" for v, arm in scored[:10])
        text = f"At {focus} the score is {values}."
        if len(scored) > 1:
            text += (
                f" The highest is at r={best_arm.rank}{_nearly_as_good(scored, best, unit.scale)}."
            )
    full, base = view.best_full(task), view.base(task)
    if full and full.score:
        text += f" Full fine-tuning: {score_text(full.score.value, unit)}."
    return text + (f" Base: {score_text(base.score, unit)}." if base else "")


def _nearly_as_good(scored: list[tuple[float, ArmSummary]], best: float, scale: float) -> str:
    """The smallest rank within 1 point or .01 nats of the best one."""
    value, near = next(pair for pair in scored if best - pair[0] < 0.01)
    within = "1 point" if scale == 100 else "0.01 nats per token"
    return f"; r={near.rank} is within {within} of it" if value != best else ""
