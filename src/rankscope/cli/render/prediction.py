"""What ``predict`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.formatting import terminal_text
from rankscope.records import Backtest, BacktestTask, TaskPrediction


def prediction_tables(tasks: Sequence[TaskPrediction], note: str) -> RenderableType:
    """The rank that each predictor names, by training task, and a note below."""
    return Group(*(_predictions(task) for task in tasks), Text(note))


def _predictions(task: TaskPrediction) -> RenderableType:
    rows = [
        {"predictor": p.predictor.replace("_", " "), "rank": p.rank, "because": p.why}
        for p in task.predictions
    ]
    return terminal_table(rows, f"{task.task}: ranks {', '.join(map(str, task.ranks))}")


def backtest_tables(backtest: Backtest) -> RenderableType:
    """How often each predictor was right, then trained scores beside truncated adapters."""
    rows = [
        {
            "predictor": score.predictor.replace("_", " "),
            "right": f"{score.right} of {score.tasks}",
            "off by, doublings": score.doublings,
            "score lost": score.regret,
        }
        for score in backtest.scores
    ]
    digits = {"off by, doublings": 2, "score lost": 3}
    skipped = "{}: skipped, it has no task with finished LoRA trials at two ranks"
    return Group(
        terminal_table(rows, "predictors", digits, right=("right",)),
        *(_curve(task) for task in backtest.tasks),
        Text("Right: it named the smallest rank within the study's margin of the best."),
        *(Text(terminal_text(skipped.format(folder))) for folder in backtest.skipped),
    )


def _curve(task: BacktestTask) -> RenderableType:
    cut = f"r = {task.screened_rank} truncated to it"
    rows = [{"rank": p.rank, "trained": p.trained, cut: p.truncated} for p in task.curve]
    title = f"{task.study}, {task.task}: best rank {task.best_rank}"
    return terminal_table(rows, title, {"trained": 3, cut: 3})
