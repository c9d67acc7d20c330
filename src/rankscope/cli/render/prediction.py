"""What ``predict`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rankscope.records import Backtest, TaskPrediction


def prediction_screen(tasks: Sequence[TaskPrediction]) -> RenderableType:
    """Per training task, what every predictor says."""
    tables = []
    for task in tasks:
        ranks = ", ".join(map(str, task.ranks))
        table = Table("predictor", "rank", "because", title=f"{task.task}: of ranks {ranks}")
        for named in task.predictions:
            table.add_row(named.predictor.replace("_", " "), str(named.rank), named.why)
        tables.append(table)
    return Group(*tables)


def backtest_screen(made: Backtest) -> RenderableType:
    """How often each predictor was right; then the truncation screen beside what was trained."""
    scores = Table("predictor", "right", "off by, doublings", "score lost", title="Predictors")
    for row in made.scores:
        scores.add_row(
            row.predictor.replace("_", " "),
            f"{row.right} of {row.tasks}",
            f"{row.doublings:.2f}",
            f"{row.regret:.3f}",
        )
    tables: list[RenderableType] = [scores]
    for task in made.tasks:
        title = f"{task.study}, {task.task}: best rank {task.best_rank}"
        curve = Table("rank", "trained", f"r = {task.screened_rank} cut to it", title=title)
        for point in task.curve:
            curve.add_row(str(point.rank), shown(point.trained), shown(point.truncated))
        tables.append(curve)
    for folder in made.skipped:
        tables.append(Text(f"{folder}: left out, no finished LoRA trials at two ranks of one task"))
    return Group(*tables)


def shown(score: float | None) -> str:
    """A score, or a dash."""
    return "-" if score is None else f"{score:.3f}"
