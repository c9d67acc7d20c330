"""Overfitting to the training rows: training loss minus test loss, against rank."""

from statistics import fmean

from rankscope.formatting import number
from rankscope.records import TrialRecords
from rankscope.report.charts.figure import Figure, range_cells
from rankscope.report.charts.rank_lines import Panel, Reference, rank_plot
from rankscope.report.columns import Column
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import shown, table

GAP = "training loss less test loss, nats per token"
_CAPTION = """Training loss: mean over the steps of the last epoch. Test loss: mean over test \
items. Below zero, the training rows are known better than new ones. Rows weigh by their tokens in \
the one and alike in the other, so the values are compared, not read by themselves. Bands are the \
range over seeds."""


@in_section("training", 20)
def draw_loss_gap(view: StudyView, task: str) -> Figure | None:
    """Draw the figure; None unless the task is scored by its loss and rows were seen twice."""
    if view.study.task(task).score_unit != "log_probability":
        return None
    gaps = {
        arm.label: [gap for t in view.trials(arm) if (gap := _gap(view, t)) is not None]
        for arm in view.arms(task)
    }
    axis = view.rank_axis(task)
    known = [(p.rank, gaps[p.arm]) for p in axis.focus_points if gaps.get(p.arm)]
    if not known:
        return None
    rows = [
        {"arm": arm.label, "rank": arm.rank, **range_cells(GAP, gaps[arm.label])}
        for arm in view.arms(task)
    ]
    frame = shown(table(rows, {GAP: Column(digits=3)}))
    listed = ", ".join(f"{number(fmean(g))} at r={rank}" for rank, g in known)
    return Figure(
        key=view.key("loss-gap", task),
        title=f"Training loss less test loss {axis.against}, {task}",
        finding=f"At {axis.focus}, training loss less test loss, nats per token: {listed}.",
        data=frame,
        plot=rank_plot(axis, [Panel(frame, GAP, [Reference("alike", 0.0)])]),
        caption=_CAPTION,
    )


def _gap(view: StudyView, trial: TrialRecords) -> float | None:
    """Return the gap of one trial.

    None if it saw no row twice, has no test score, or was scored with the weights of an earlier
    best step.
    """
    spec, train = trial.spec, trial.train
    tested = view.study.evals.get((spec.trial_id, spec.task, "test"))
    if train is None or tested is None or train.best_step is not None:
        return None
    protocol = view.study.config.train.model_dump() | spec.overrides
    epoch = -(-train.rows // (protocol["batch_size"] * protocol["gradient_accumulation"]))
    last = [p.loss for p in train.losses if p.step > train.steps - epoch]
    return fmean(last) + tested.score if train.steps >= 2 * epoch and last else None
