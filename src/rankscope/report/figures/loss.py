"""Training loss by step."""

from dataclasses import replace

from rankscope.formatting import count
from rankscope.records import TrainRecord
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.training_curves import draw_curves
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import table

LOSS = "loss, nats per label token"
OWN_LOSS = "loss of the objective"  # If an arm has another one than supervised fine-tuning


@in_section("training", 10)
def draw_loss(view: StudyView, task: str) -> Figure | None:
    """Draw the arms of the focus line and full fine-tuning, named at their ends.

    Arms that learn from rewards are left out, because their loss means nothing.
    """
    trained = [t.train for t in view.study.trials if t.train and t.spec.task == task]
    own = {t.spec.objective or view.study.config.train.objective for t in view.study.trials}
    name = LOSS if own == {"sft"} else OWN_LOSS
    title = f"Training loss, {task}"

    def losses(train: TrainRecord) -> list[tuple[float, float]]:
        return [] if train.rewards else [(p.step, p.loss) for p in train.losses]

    figure = draw_curves(view, task, ("loss", title, name), losses)
    if figure is None and trained:
        return None
    if figure is None:
        missing = "No run has a training record yet."
        return Figure(view.key("loss", task), title, missing, table([]))
    diverged = sum(t.status == "diverged" and t.spec.task == task for t in view.study.trials)
    failed = f" {count(diverged, 'run')} of this task diverged." if diverged else ""
    caption = f"{figure.caption} A low loss is no result yet."
    return replace(figure, finding=f"Loss {figure.finding}{failed}", caption=caption)
