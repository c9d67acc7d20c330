"""What ``eval`` prints."""

from collections.abc import Sequence

from rich.table import Table

from rankscope.cli.render.tables import listing
from rankscope.formatting import terminal_text
from rankscope.records import Estimate
from rankscope.tools.evaluate import Score


def scores_screen(scores: Sequence[Score]) -> Table:
    """What ``eval`` prints: per task the base and its adapters, each with its uncertainty.

    Accuracies in per cent, changes in points, likelihoods in nats per token; ``±`` is one standard
    error, brackets are a paired 95 % interval.
    """
    numbers = ("score", "n", "without contamination", "change", "p", "chance")
    contamination = any(score.record.without_contamination for score in scores)
    shown = [heading for heading in numbers if contamination or heading != "without contamination"]
    table = listing("scores", ("task", "metric", "model", *shown), frozenset(shown))
    last = None
    for score in scores:
        if last is not None and last != score.record.task:
            table.add_section()
        is_first, last = last != score.record.task, score.record.task
        scale, digits = (100, 1) if score.score_unit == "accuracy" else (1, 3)
        record, without, change = score.record, score.record.without_contamination, score.change
        cells = {
            "score": with_error(record.score, record.standard_error, scale, digits),
            "n": f"{record.n:,}",
            "without contamination": with_error(
                without.score, without.standard_error, scale, digits
            )
            if without
            else "",
            "change": change_cell(change, scale, digits) if change else "",
            "p": f"{change.p:.3f}" if change and change.p is not None else "",
            "chance": f"{scale * score.chance:.{digits}f}" if score.chance is not None else "",
        }
        names = (terminal_text(record.task), record.metric) if is_first else ("", "")
        model = terminal_text(score.model) + (" (forced)" if score.other_base_forced else "")
        table.add_row(*names, model, *(cells[heading] for heading in shown))
    return table


def with_error(value: float, error: float | None, scale: int, digits: int) -> str:
    """``51.2 ± 1.0``; a standard error that is not known is ``?``."""
    return f"{scale * value:.{digits}f} ± " + (
        "?" if error is None else f"{scale * error:.{digits}f}"
    )


def change_cell(change: Estimate, scale: int, digits: int) -> str:
    """``+2.5 [-0.5, +5.5]``; an interval that is not known is ``[?]``."""
    value = f"{scale * change.value:+.{digits}f}"
    if change.low is None or change.high is None:
        return f"{value} [?]"
    return f"{value} [{scale * change.low:+.{digits}f}, {scale * change.high:+.{digits}f}]"
