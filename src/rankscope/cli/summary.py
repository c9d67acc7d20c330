"""Output of ``run`` and ``report``: one row per arm, and the answer in words."""

from collections.abc import Iterable, Iterator
from functools import partial

from rich.console import Group
from rich.table import Table

from rankscope.cli.terminal import folded, print_line, terminal_table
from rankscope.formatting import UNKNOWN, Unit, clock, compact, score_text, signed
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.answer import FAILED_NOTE, answer_lines
from rankscope.report.columns import PROBABILITY, Column
from rankscope.report.page_limit import limited, not_shown
from rankscope.report.study_view import StudyView
from rankscope.report.tables import arm_row

CHOSEN = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"


def summary_table(study: StudyRecords, recommendation: Recommendation) -> Group:
    """Show a table per training task: one row per arm, the recommended one marked.

    ``±`` is half the 95 % interval, ``±?`` an unknown one. Seeds ``2/3`` means that one of three
    failed.
    """
    whole = StudyView(study, recommendation)
    view = limited(whole)
    notes = [*_captions(view), *not_shown(whole, view)]
    tables = [_task_table(view, task) for task in view.training_tasks]
    return Group(*tables, *map(folded, notes))


def _task_table(view: StudyView, task: str) -> Table:
    base, unit, chosen = view.base(task), view.unit(task), view.advice(task).chosen
    columns = {
        "seeds": Column(digits=0),
        "expected_gain": _signed("gain", unit),
        "expected_retention_change": _signed("retention", view.retention_unit(task)),
        "expected_net_gain": _signed("net gain", view.net_unit(task)),
        "p_within_margin": Column("likely best", PROBABILITY),
        "trainable_parameters": Column("params", text=compact),
        "seconds": Column("time", text=clock),
    }
    arms = view.arms(task)
    ranked = [view.spec(arm) for arm in arms if arm.rank]
    shared = [
        text
        for text in (ranked[0].special_settings if len(ranked) > 1 else ())
        if all(text in spec.special_settings for spec in ranked)
    ]
    rows = [
        arm_row(view, arm)
        | {"arm": view.spec(arm).label_without(*shared)}
        | {"": CHOSEN if arm == chosen else ""}
        | ({"seeds": f"{arm.seeds}/{arm.seeds + arm.failed}"} if arm.failed else {})
        for arm in arms
    ]
    styles = ["bold green" if row[""] else "" for row in rows]
    scored = score_text(base.score, unit) if base else "not scored"
    title = f"{view.study.name}, {task} (base on test items: {scored})"
    title += f", adapters {', '.join(shared)}" if shared else ""
    if not rows:
        return terminal_table([{"arm": "no arm has finished"}], title)
    return terminal_table(rows, title, columns, ("", "arm", *columns), styles=styles)


def _signed(title: str, unit: Unit) -> Column:
    return Column(title, unit, text=partial(signed, unit=unit._replace(scale=1.0)))


def _captions(view: StudyView) -> Iterator[str]:
    """Explain the columns, with their units; tasks of a study may differ."""
    tasks = view.training_tasks

    def either(texts: Iterable[str]) -> str:
        return " or ".join(sorted(set(texts)))

    gain, kept, net = (
        either(unit(task).difference for task in tasks)
        for unit in (view.unit, view.retention_unit, view.net_unit)
    )
    yield (
        f"Gain ({gain}), retention change ({kept}) and net gain ({net}) are expected from all "
        "items, seeds and configurations. ± is half the 95 % interval."
    )
    margin = either(view.margin(task) for task in tasks)
    yield (
        f"Net gain: {view.study.config.objective.formula}. likely best: the probability of being "
        f"among the best, within {margin} of the highest. Time is of one run."
    )
    arms = [arm for task in tasks for arm in view.arms(task)]
    if any(arm.failed for arm in arms):
        yield FAILED_NOTE
    if any(arm.expected is None for arm in arms):
        yield f"{UNKNOWN}: the configuration has no score on some task that counts."


def print_answer(recommendation: Recommendation, *, with_reasons: bool) -> None:
    """Print the answer for each training task, with its reasons if asked for."""
    for advice in recommendation.advice:
        verdict, *lines = answer_lines(advice, with_reasons=with_reasons)
        print_line(verdict, "bold")
        print_line("\n".join(f"  {line}" for line in lines))
