"""What ``eval`` prints."""

from collections.abc import Sequence

from rich.table import Table

from rankscope.formatting import number, p_cell, unit_of, with_interval
from rankscope.report.table_formats import Cell, table_from_rows, terminal_table
from rankscope.tools.evaluate import Score

NUMBERS = ("score", "n", "without contamination", "change", "p", "chance")


def scores_table(scores: Sequence[Score]) -> Table:
    """The base and its adapters by task.

    Accuracies in per cent, changes in points, likelihoods in nats per token; ``±`` is one standard
    error, brackets are a paired 95 % interval.
    """
    frame = table_from_rows([_score_row(score) for score in scores])
    if not any(score.record.without_contamination for score in scores):
        frame = frame.drop(columns="without contamination")
    return terminal_table(frame, "scores", right=NUMBERS, sections=("task", "metric"))


def _score_row(score: Score) -> dict[str, Cell]:
    record, unit = score.record, unit_of(score.score_unit)
    clean, change, chance = record.without_contamination, score.change, score.chance

    def with_error(value: float, error: float | None) -> str:
        half = "?" if error is None else number(unit.scale * error, unit.digits)
        return f"{number(unit.scale * value, unit.digits)} ± {half}"

    return {
        "task": record.task,
        "metric": record.metric,
        "model": score.model + (" (forced)" if score.other_base_forced else ""),
        "score": with_error(record.score, record.standard_error),
        "n": record.n,
        "without contamination": with_error(clean.score, clean.standard_error) if clean else "",
        "change": with_interval(change, unit) if change else "",
        "p": p_cell(change.p if change else None),
        "chance": "" if chance is None else number(unit.scale * chance, unit.digits),
    }
