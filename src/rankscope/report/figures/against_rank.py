"""Score and retention against rank, one panel each."""

from rankscope.formatting import MAX_NAME, difference, safe_text, score_text
from rankscope.report.charts.figure import Figure, records
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.columns import Column, interval_cells
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import shown, table

MAX_RETAINED = 5
_CAPTION = """Test split. {} The interval of the base covers the choice of items only. Retention \
is tuned minus base: below zero was lost."""


@in_section("ranks", 10)
def draw_against_rank(view: StudyView, task: str) -> Figure:
    unit, axis = view.unit(task), view.rank_axis(task)
    base = view.recommendation.base.get(task)
    metric = safe_text(view.study.task(task).metric, MAX_NAME)
    score = f"score ({metric}), {unit.score}"
    changes = {
        name: f"{safe_text(name, MAX_NAME)}, change in {view.unit(name).difference}"
        for name in view.retained(task)
    }
    rows = []
    for arm in view.arms(task):
        row = {"arm": arm.label, "rank": arm.rank, "learning rate": arm.lr or None}
        row |= {"seeds": arm.seeds, **interval_cells(score, arm.score)}
        for name, title in changes.items():
            row |= interval_cells(title, arm.retention.get(name))
        rows.append(row)
    if base and rows:
        rows.append(dict.fromkeys(rows[0]) | {"arm": "base"} | interval_cells(score, base))
    units = {title: view.unit(name) for name, title in changes.items()} | {score: unit}
    columns = {title: Column(unit=u, digits=u.digits + 1) for title, u in units.items()}
    frame = shown(table(rows, columns))
    titles, of_base = (score, f"{score}, low", f"{score}, high"), records(frame)[-1:]
    references = [Reference("base", *(row[t] for t in titles)) for row in of_base if base]
    panels = [Panel(frame, score, references)] + [
        Panel(frame, title, [Reference("base", 0.0)])
        for title in list(changes.values())[:MAX_RETAINED]
    ]
    return Figure(
        key=view.key("against-rank", task),
        title=f"Measured score and retention {axis.against}, {task}",
        finding=_finding(view, task),
        data=frame,
        plot=rank_plot(axis, panels) if rows else None,
        caption=_CAPTION.format(axis.bands_note()),
    )


def _finding(view: StudyView, task: str) -> str:
    unit, base = view.unit(task), view.base(task)
    arms = dict.fromkeys(
        a.label for a in (view.focus(task), view.best_lora(task), view.best_full(task)) if a
    )
    scored = [arm for label in arms if (arm := view.arm(task, label)) and arm.score]
    if not any(arm.is_lora and arm.score for arm in view.arms(task)):
        return "No configuration with a known rank has a test score, so there is nothing to draw."
    texts = [f"{score_text(a.score.value, unit)} with {a.label}" for a in scored if a.score]
    if base:
        texts.append(f"{score_text(base.score, unit)} with the base")
    text = f"Measured on test items: {', '.join(texts)}."
    changes = [
        # Tasks in the unit of forgetting come first, because others do not compare.
        (view.unit(name) != view.retention_unit(task), change.value,
         f"{difference(change.value, view.unit(name))} on {name} ({arm.label})")
        for arm in view.arms(task)
        for name, change in arm.retention.items()
        if name in view.retained(task)
    ]  # fmt: skip
    if changes:
        worst = min((c for c in changes if c[1] < 0), default=None)
        text += f" Largest fall in retention: {worst[-1]}." if worst else " No retention task fell."
    return text
