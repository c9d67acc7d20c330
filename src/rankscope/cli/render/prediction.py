"""What ``predict`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.formatting import count, join_names, percent, terminal_text
from rankscope.predict.predictors import BASELINES, NEEDS, PREDICTORS
from rankscope.records import Backtest, BacktestTask, PredictorScore, TaskPrediction
from rankscope.report.columns import Column

_COLUMNS = {"off_by": Column(digits=1), "lost": Column(digits=3), "tau": Column(digits=2)}
COLUMNS_EXPLAINED = (
    "Off by: doublings between the named rank and the smallest within the margin of the best. "
    "Lost: score below the best rank. Tau: agreement with the order of the ranks, 1 if equal. "
    "Means over families of tasks."
)


def prediction_tables(
    tasks: Sequence[TaskPrediction], record: Sequence[BacktestTask], past: Sequence[PredictorScore]
) -> RenderableType:
    """The rank that each predictor names, by training task, beside its past record."""
    return Group(
        *(_predictions(task, past) for task in tasks),
        Text(f"These are hypotheses. {_studies(record)} {COLUMNS_EXPLAINED} {verdict(past)}"),
    )


def _predictions(task: TaskPrediction, past: Sequence[PredictorScore]) -> RenderableType:
    answers = {p.predictor: p for p in task.predictions}
    scores = {score.predictor: score for score in past}
    rows = []
    for predictor in PREDICTORS:
        answer = answers.get(predictor.name)
        if answer is None and predictor.needs in ("trained", "subset_nested"):
            continue
        why = answer.why if answer else f"needs {NEEDS[predictor.needs]}"
        rank = None if answer is None else answer.rank
        row = {"predictor": _label(predictor.name), "rank": rank, "because": why}
        rows.append(row | _record(scores.get(predictor.name)))
    title = f"{task.task}: ranks {', '.join(map(str, task.ranks))}; past record on the right"
    return terminal_table(rows, title, _COLUMNS)


def backtest_tables(backtest: Backtest, scores: Sequence[PredictorScore]) -> RenderableType:
    """How each predictor did, then what the screens expected of each rank beside the truth."""
    rows = [
        {
            "predictor": _label(score.predictor),
            "right": f"{score.right} of {score.tasks}",
            "cannot tell": score.silent,
        }
        | _record(score)
        for score in scores
    ]
    skipped = "{}: skipped, it has no task whose ranks, two or more, were all tested as plain LoRA"
    return Group(
        terminal_table(rows, "predictors", _COLUMNS, right=("right",)),
        *(_curve(task) for task in backtest.tasks),
        Text(f"{_studies(backtest.tasks)} {COLUMNS_EXPLAINED} {verdict(scores)}"),
        *(Text(terminal_text(skipped.format(folder))) for folder in backtest.skipped),
    )


def verdict(scores: Sequence[PredictorScore]) -> str:
    """How probable it is that the best predictor loses less than every baseline."""
    known = [(s.p_better, _label(s.predictor)) for s in scores if s.p_better is not None]
    if not known:
        return "Too few families to compare predictors with a constant rank."
    p, name = max(known)
    return (
        f"P: probability that it loses less than each of {join_names(map(_label, BASELINES))}, by "
        f"the spread over families. Highest: {name}, {percent(p)}."
    )


def _studies(tasks: Sequence[BacktestTask]) -> str:
    families = len({task.family for task in tasks})
    noun = "family" if families == 1 else "families"
    return f"Past record: {count(len(tasks), 'task')} in {families} {noun}."


def _label(predictor: str) -> str:
    return predictor.replace("_", " ")


def _record(score: PredictorScore | None) -> dict[str, object]:
    return {
        "off_by": score and score.doublings,
        "lost": score and score.lost,
        "tau": score and score.tau,
        "P": None if score is None or score.p_better is None else percent(score.p_better),
    }


def _curve(task: BacktestTask) -> RenderableType:
    ordered = {p.predictor: p.scores for p in task.prediction.predictions if p.scores}
    rows: list[dict[str, object]] = [
        {"rank": rank, "test": score}
        | {_label(name): scores.get(rank) for name, scores in ordered.items()}
        for rank, score in sorted(task.curve.items())
    ]
    title = f"{task.study}, {task.prediction.task}: best rank {task.best_rank}"
    return terminal_table(
        rows, title, dict.fromkeys(rows[0], Column(digits=3)) | {"rank": Column()}
    )
