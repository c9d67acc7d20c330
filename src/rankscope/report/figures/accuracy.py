"""Scores against rank: the training task itself, and the retention tasks."""

from rankscope.formatting import Unit, count, difference, join_names, score_text
from rankscope.records import ArmSummary, Estimate, EvalRecord
from rankscope.report.charts.figure import Column, Figure, table
from rankscope.report.charts.rank_lines import (
    Panel,
    Point,
    against,
    bands_note,
    base_line,
    estimate_point,
    full_line,
    is_by_arm,
    rank_plot,
)
from rankscope.report.study_view import StudyView

MAX_RETENTION_PANELS = 6
# Normal quantile of a 95 % interval, for the base's item-level standard error.
Z95 = 1.959964


def draw_in_domain(view: StudyView, task: str) -> Figure:
    """In-domain score against rank."""
    unit = view.unit(task)

    def value(arm: ArmSummary) -> Point | None:
        return estimate_point(arm.score, unit)

    base = _base_point(view.base(task), unit)
    lines = (*full_line(view, task, value), *base_line(base))
    metric = view.study.task(task).metric
    panel = Panel(f"in-domain score ({metric}), {unit.score}", value, unit.digits, lines)
    rows = []
    for arm in view.arms(task):
        point = value(arm) or (None, None, None)
        n = arm.score.n if arm.score else None
        rows.append((arm.label, arm.rank, arm.lr, arm.seeds, n, *point))
    if base:
        rows.append(("base", None, None, None, _base_items(view, task), *base))
    d = unit.digits + 1
    columns = [
        *(Column("arm"), Column("rank", 0), Column("learning rate"), Column("seeds", 0)),
        *(
            Column("items", 0),
            Column(f"score, {unit.score}", d),
            Column("low", d),
            Column("high", d),
        ),
    ]
    return Figure(
        key=f"in-domain-{view.training_tasks.index(task)}",
        title=f"In-domain score {against(view, task)}, {task}",
        finding=_in_domain_finding(view, task),
        table=table(columns, rows),
        plot=rank_plot(view, task, [panel]),
        how_to_read=f"Test split. {bands_note(view, task)} The base's interval counts items only.",
    )


def _base_items(view: StudyView, task: str) -> int | None:
    base = view.base(task)
    return base.n if base else None


def _base_point(base: EvalRecord | None, unit: Unit) -> Point | None:
    if base is None:
        return None
    value = base.score * unit.scale
    if base.standard_error is None:
        return Point(value, None, None)
    half = Z95 * base.standard_error * unit.scale
    return Point(value, value - half, value + half)


def _in_domain_finding(view: StudyView, task: str) -> str:
    unit, line = view.unit(task), view.focus_series(task)
    by_arm = is_by_arm(view, task)
    lines = view.series(task) if by_arm else [line] if line else []
    scored = [(arm, arm.score.value) for of in lines for arm in of.arms if arm.score]
    if line is None or not scored:
        return "No LoRA arm has an in-domain score, so there is nothing to draw against rank."
    best_arm, best = max(scored, key=lambda pair: pair[1])
    if by_arm and len(scored) == 1:
        text = f"{best_arm.label} has the score {score_text(best, unit)}."
    elif by_arm:
        low_arm, low = min(scored, key=lambda pair: pair[1])
        text = (
            f"Of {count(len(scored), 'arm')} {best_arm.label} has the highest score, "
            f"{score_text(best, unit)}, and {low_arm.label} the lowest, {score_text(low, unit)}."
        )
    else:
        values = ", ".join(f"{score_text(v, unit)} at r={arm.rank}" for arm, v in scored[:10])
        text = f"At {line.label} the score is {values}."
    if len(scored) > 1 and not by_arm:
        near = next((arm for arm, v in scored if best - v < 0.01), best_arm)
        text += f" The highest is r={best_arm.rank}"
        within = "1 point" if unit.scale == 100 else f"0.01 {unit.difference}"
        text += f"; r={near.rank} is within {within} of it." if near is not best_arm else "."
    full, base = view.best_full(task), view.base(task)
    if full and full.score:
        text += f" Full fine-tuning: {score_text(full.score.value, unit)}."
    return text + (f" Base: {score_text(base.score, unit)}." if base else "")


def draw_retention(view: StudyView, task: str) -> Figure:
    """Change on each retention task against rank."""
    names = view.retained(task)
    panels = []
    for retention in names[:MAX_RETENTION_PANELS]:
        unit = view.unit(retention)

        def value(arm: ArmSummary, retention: str = retention, unit: Unit = unit) -> Point | None:
            return estimate_point(arm.retention.get(retention), unit)

        lines = (*full_line(view, task, value), *base_line(Point(0.0, None, None)))
        panels.append(Panel(f"{retention}, change in {unit.difference}", value, unit.digits, lines))
    rows = [
        (arm.label, retention, *point)
        for arm in view.arms(task)
        for retention in names
        if (point := estimate_point(arm.retention.get(retention), view.unit(retention)))
    ]
    columns = [Column("arm"), Column("retention task"), Column("change against base", 3)]
    return Figure(
        key=f"retention-{view.training_tasks.index(task)}",
        title=f"Retention {against(view, task)}, trained on {task}",
        finding=_retention_finding(view, task, names),
        table=table([*columns, Column("low", 3), Column("high", 3)], rows),
        plot=rank_plot(view, task, panels) if panels else None,
        how_to_read="Tuned minus base on the test split, so below zero is forgotten. "
        + bands_note(view, task),
    )


def _retention_finding(view: StudyView, task: str, names: list[str]) -> str:
    if not names:
        return "The study has no retention task, so forgetting cannot be drawn."
    found: list[tuple[ArmSummary, str, Estimate]] = [
        (arm, retention, arm.retention[retention])
        for arm in view.arms(task)
        for retention in names
        if retention in arm.retention
    ]
    if not found:
        return "No arm has been scored on a retention task yet."
    worst, best = (pick(found, key=lambda f: f[2].value) for pick in (min, max))
    text = (
        f"The largest fall is {difference(worst[2].value, view.unit(worst[1]))} on {worst[1]} "
        f"({worst[0].label}), "
        if worst[2].value < 0
        else "No arm fell on a retention task; "
    )
    text += f"the best {difference(best[2].value, view.unit(best[1]))} on {best[1]} "
    text += f"({best[0].label})."
    if len(names) > MAX_RETENTION_PANELS:
        text += f" Drawn: {join_names(names[:MAX_RETENTION_PANELS])}; the others are in the table."
    return text
