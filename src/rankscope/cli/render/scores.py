"""What ``eval`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.formatting import number, p_cell, score_text, unit_of, with_interval
from rankscope.records import ModelScore

NUMBERS = ("score", "n", "without contamination", "change", "p")


def scores_tables(scores: Sequence[ModelScore]) -> RenderableType:
    """A table per task: the base and its adapters.

    Accuracies in percent, changes in points, likelihoods in nats per token; ``±`` is one standard
    error, brackets are a paired 95 % interval.
    """
    by_task: dict[str, list[ModelScore]] = {}
    for score in scores:
        by_task.setdefault(_title(score), []).append(score)
    tables = []
    for title, of_task in by_task.items():
        with_clean = any(score.record.without_contamination for score in of_task)
        rows = [_score_row(score, with_clean) for score in of_task]
        tables.append(terminal_table(rows, title, right=NUMBERS))
    legend = "score ± one standard error"
    if any(score.change for score in scores):
        legend += (
            "; change against the base with its paired 95 % interval and p, which is of this one "
            "comparison"
        )
    return Group(*tables, Text(legend))


def _title(score: ModelScore) -> str:
    """Such as ``arc_easy: acc, guessing gives 25.0 %``."""
    title = f"{score.record.task}: {score.record.metric}"
    if score.chance is None:
        return title
    return f"{title}, guessing gives {score_text(score.chance, unit_of(score.score_unit))}"


def _score_row(score: ModelScore, with_clean: bool) -> dict[str, object]:
    record, unit = score.record, unit_of(score.score_unit)
    clean, change = record.without_contamination, score.change

    def with_error(value: float, error: float | None) -> str:
        half = "?" if error is None else number(unit.scale * error, unit.digits)
        return f"{number(unit.scale * value, unit.digits)} ± {half}"

    clean_score = with_error(clean.score, clean.standard_error) if clean else ""
    return {
        "model": score.model + (" (forced)" if score.other_base_forced else ""),
        "score": with_error(record.score, record.standard_error),
        "n": record.n,
        **({"without contamination": clean_score} if with_clean else {}),
        "change": with_interval(change, unit) if change else "",
        "p": p_cell(change.p if change else None),
    }
