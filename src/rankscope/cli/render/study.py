"""What ``check`` and ``plan`` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import note_lines
from rankscope.formatting import byte_size, count, rough_duration

if TYPE_CHECKING:
    from rankscope.run.plan import Plan


def _counts(trials: int, groups: int) -> str:
    return f"{count(trials, 'trial')} in {count(groups, 'group')}"


def _trial_names(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{len(labels)} adapters"


def plan_table(plan: Plan) -> RenderableType:
    """A row per group of trials, then totals."""
    several = len({group.task for group in plan.groups}) > 1
    rows = [
        {
            "group": number,
            **({"task": group.task} if several else {}),
            "trials": _trial_names(group.labels),
            "steps": group.steps,
            "tokens": group.num_tokens,
            "memory": byte_size(group.memory_bytes),
            "time": rough_duration(group.seconds),
            "limit": group.limited_by.split()[0],
        }
        for number, group in enumerate(plan.groups, 1)
    ]
    title = f"{plan.study} on {plan.model} ({plan.device}, {plan.dtype})"
    curve = f" and {plan.curve_evaluations:,} while training" if plan.curve_evaluations else ""
    totals = (
        f"{_counts(plan.trials, len(plan.groups))}, {plan.evaluations:,} evaluations{curve}: "
        f"{plan.train_tokens:,} tokens to train on, {plan.evaluation_tokens:,} to score; "
        f"about {byte_size(plan.disk_bytes)} on disk and {rough_duration(plan.seconds)} "
        f"(estimated from {plan.measured_gflops:,.0f} GFLOP/s measured here)."
    )
    table = terminal_table(rows, title, right=("memory", "time"))
    return Group(table, Text(totals), *note_lines(plan.notes))
