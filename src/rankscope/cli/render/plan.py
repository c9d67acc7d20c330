"""What ``plan`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.cli.terminal import note_lines
from rankscope.formatting import byte_size, count, rough_duration

if TYPE_CHECKING:
    from rankscope.run.plan import Plan

MAX_NAMED = 20  # Most groups that a sentence names


def plan_table(plan: Plan) -> RenderableType:
    several = len({group.task for group in plan.groups}) > 1
    rows = [
        {
            "group": number,
            **({"task": group.task} if several else {}),
            "trials": group.labels[0]
            if len(group.labels) == 1
            else f"{len(group.labels)} adapters",
            "steps": group.steps,
            "tokens": group.num_tokens,
            "memory": byte_size(group.memory_bytes),
            "time": rough_duration(group.seconds),
            "limit": group.limited_by.split()[0],
        }
        for number, group in enumerate(plan.groups, 1)
    ]
    title = f"{plan.study} on {plan.model} ({plan.machine}, {plan.dtype})"
    table = terminal_table(rows, title, right=("memory", "time"))
    parts = [table, _stages(plan), *map(Text, totals(plan))]
    return Group(*parts, *note_lines(plan.notes))


def _stages(plan: Plan) -> RenderableType:
    rows = [
        {"stage": stage, "time": rough_duration(time), "share": f"{time / plan.seconds:.0%}"}
        for stage, time in plan.stages.items()
        if time
    ]
    return terminal_table(rows, "time by stage", right=("time", "share"))


def totals(plan: Plan) -> Iterator[str]:
    curve = f" and {plan.curve_evaluations:,} while training" if plan.curve_evaluations else ""
    yield (
        f"{count(plan.trials, 'trial')} in {count(len(plan.groups), 'group')}, "
        f"{plan.evaluations:,} evaluations{curve}: {plan.train_tokens:,} tokens to train on, "
        f"{plan.evaluation_tokens:,} to score."
    )
    total = f"About {rough_duration(plan.device_seconds / plan.devices)} on "
    total += "one device" if plan.devices == 1 else f"{plan.devices} devices"
    if plan.gpus > plan.devices:
        total += f", {rough_duration(plan.wall_seconds)} on {plan.gpus}, longest groups first"
    yield f"{total}; {byte_size(plan.disk_bytes)} on disk."
    if plan.executor is not None:
        yield from _units(plan)
    if plan.expected_tokens is not None and plan.expected_seconds is not None:
        devices = f" on {plan.gpus} devices" if plan.gpus > 1 else ""
        yield (
            f"The search spends at most {plan.budget}, on these and on arms beyond the ends of the "
            f"lists: about {plan.expected_tokens:,} tokens "
            f"({plan.expected_tokens / plan.train_tokens:.0%}) and "
            f"{rough_duration(plan.expected_seconds)}{devices}."
        )
    yield f"Estimated from {plan.basis}."
    yield f"{plan.kernels}."
    most = max(group.memory_bytes for group in plan.groups)
    yield (
        f"Memory: up to {byte_size(most)} of {byte_size(plan.memory_bytes)}, in training or "
        f"scoring; the libraries' own {byte_size(plan.library_bytes)} come on top."
    )
    numbered = list(enumerate(plan.groups, 1))
    if hopeless := [number for number, group in numbered if not group.states_fit]:
        yield (
            f"DOES NOT FIT: the base and the optimizer states of group {_named(hopeless)} alone "
            "exceed that. Raise train.devices, leave the arm out, or take a larger machine."
        )
    if too_large := [number for number, group in numbered if group.states_fit and not group.fits]:
        yield (
            f"DOES NOT FIT: group {_named(too_large)} needs more memory than that. "
            "Lower train.batch_tokens, set train.gradient_checkpointing=true, or leave the arm out."
        )
    if unscored := [number for number, group in numbered if group.fits and not group.scoring_fits]:
        yield (
            f"DOES NOT FIT: scoring group {_named(unscored)} needs more memory than that. "
            "Lower evaluate.batch_tokens."
        )


def _units(plan: Plan) -> Iterator[str]:
    seconds = [plan.start_seconds + group.seconds for group in plan.groups]
    unit_seconds = plan.critical_seconds - plan.shared_seconds
    is_group = max(seconds) >= unit_seconds * (1 - 1e-9)
    longest = f"group {seconds.index(max(seconds)) + 1}" if is_group else "the base's scores"
    yield (
        f"With --executor {plan.executor}: {count(len(plan.groups), 'group')} and the base, each a "
        f"process that takes {rough_duration(plan.start_seconds)} to start; "
        f"{plan.device_seconds / 3600:,.1f} device-hours in all."
    )
    yield (
        f"Critical path: {rough_duration(plan.shared_seconds)} for all units together, "
        f"{longest} {rough_duration(unit_seconds)}; no number of devices ends before "
        f"{rough_duration(plan.critical_seconds)}."
    )
    host = byte_size(max(group.host_bytes for group in plan.groups))
    yield f"A unit takes up to {host} of its machine's own memory."


def _named(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers[:MAX_NAMED]]
    more = [f"and {len(numbers) - MAX_NAMED:,} more"] if len(numbers) > MAX_NAMED else []
    return ", ".join(shown + more)
