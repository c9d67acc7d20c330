"""Answers that models write while they learn from rewards, by step."""

from dataclasses import replace

from rankscope.report.charts.figure import Figure
from rankscope.report.charts.training_curves import draw_curves
from rankscope.report.figures import Drawing, in_section
from rankscope.report.study_view import StudyView

_CAPTION = " Answers are drawn by the model as it is at that step, on the prompts of the step."


def _drawing(place: float, key: str, name: str, unit: str) -> Drawing:
    def draw(view: StudyView, task: str) -> Figure | None:
        names = (f"training-{key}", f"{name} while training, {task}", f"{name.lower()}, {unit}")
        figure = draw_curves(
            view, task, names, lambda train: ((p["step"], p[key]) for p in train.rewards)
        )
        if figure is None:
            return None
        own = [t for t in view.study.trials if t.train and t.spec.task == task]
        points = [point for t in own if t.train for point in t.train.rewards]
        cut = sum(point["cut"] for point in points) / len(points)
        alike = sum(point["alike"] for point in points) / len(points)
        finding = (
            f"{name} {figure.finding} {cut:.0%} of all answers were cut at their longest; of "
            f"{alike:.0%} of the prompts all answers had one reward, which teaches nothing."
        )
        return replace(figure, finding=finding, caption=figure.caption + _CAPTION)

    return in_section("training", place)(draw)


draw_reward = _drawing(11, "reward", "Reward", "mean over answers")
draw_length = _drawing(12, "length", "Answer length", "tokens")
draw_entropy = _drawing(13, "entropy", "Entropy", "nats per token")
