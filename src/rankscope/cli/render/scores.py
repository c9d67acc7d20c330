"""What ``eval`` prints."""

from collections.abc import Sequence

from rich.table import Table

from rankscope.cli.render.table import terminal_table
from rankscope.formatting import number, p_cell, unit_of, with_interval
from rankscope.tools.evaluate.results_folder import Score

NUMBERS = ("score", "n", "without contamination", "change", "p", "chance")


def scores_table(scores: Sequence[Score]) -> Table:
    """The base and its adapters by task.

    Accuracies in per cent, changes in points, likelihoods in nats per token; ``±`` is one standard
    error, brackets are a paired 95 % interval.
    """
    with_clean = any(score.record.without_contamination for score in scores)
    rows = [_score_row(score, with_clean) for score in scores]
    return terminal_table(rows, "scores", right=NUMBERS, sections=("task", "metric"))


def _score_row(score: Score, with_clean: bool) -> dict[str, object]:
    record, unit = score.record, unit_of(score.score_unit)
    clean, change, chance = record.without_contamination, score.change, score.chance

    def with_error(value: float, error: float | None) -> str:
        half = "?" if error is None else number(unit.scale * error, unit.digits)
        return f"{number(unit.scale * value, unit.digits)} ± {half}"

    clean_score = with_error(clean.score, clean.standard_error) if clean else ""
    return {
        "task": record.task,
        "metric": record.metric,
        "model": score.model + (" (forced)" if score.other_base_forced else ""),
        "score": with_error(record.score, record.standard_error),
        "n": record.n,
        **({"without contamination": clean_score} if with_clean else {}),
        "change": with_interval(change, unit) if change else "",
        "p": p_cell(change.p if change else None),
        "chance": "" if chance is None else number(unit.scale * chance, unit.digits),
    }
