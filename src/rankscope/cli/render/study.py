"""What ``check``, ``plan`` and ``status`` print."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rankscope.cli.render.tables import listing, notes_lines
from rankscope.data.preview import highlight_row
from rankscope.formatting import byte_size, rough_duration, terminal_text
from rankscope.records import Role, StudyRecords, TaskRecord, TrialRecords
from rankscope.run.groups import GroupLimit
from rankscope.run.plan import Plan
from rankscope.run.prepared import PreparedStudy

ROLE_NAMES: dict[Role, str] = {
    "in_domain": "in-domain",
    "cross_domain": "cross-domain",
    "retention": "retention",
}
CONTAMINATION_KINDS = {"exact": "exact", "ngram13": "13-gram"}
LIMIT_NAMES: dict[GroupLimit, str] = {
    "all trials of the task": "all trials",
    "size limit": "size limit",
    "memory": "memory",
    "method": "method",
}
"""Short, so that a row of the table stays a line in eighty columns."""


def check_screen(inputs: PreparedStudy, rows_shown: int) -> RenderableType:
    """What ``check`` prints: tasks, splits, contamination, notes, and rows as coloured tokens."""
    return Group(
        tasks_table(inputs.records),
        *sources(inputs.records),
        *(part for name in inputs.rows for part in rows_as_tokens(inputs, name, rows_shown)),
        *notes_lines(inputs.notes),
        Text(f"\n{counted(len(inputs.trials), len(inputs.groups))}: the study can run."),
    )


def tasks_table(records: Sequence[TaskRecord]) -> Table:
    """Every task with its roles, metric, rows per split and contaminated test rows."""
    numbers = ("train", "validation", "test")
    table = listing(
        "tasks", ("task", "roles", "metric", *numbers, "contamination"), frozenset(numbers)
    )
    for record in records:
        contamination = [
            f"{n} {CONTAMINATION_KINDS[kind]}" for kind, n in record.contamination.items() if n
        ]
        table.add_row(
            record.name,
            "\n".join(ROLE_NAMES[role] for role in record.roles),
            record.metric,
            f"{record.rows['train']:,}" if record.trained_on else "-",
            f"{record.rows['validation']:,}",
            f"{record.rows['test']:,}",
            ("\n".join(contamination) or "none") if record.trained_on else "-",
        )
    return table


def sources(records: Sequence[TaskRecord]) -> list[RenderableType]:
    """Where rows came from, a line each: ``pocket world: pocket_med, pocket_law``."""
    tasks: dict[str, list[str]] = {}
    for record in records:
        tasks.setdefault(record.source, []).append(record.name)
    return [
        Text(f"{', '.join(names)}: rows from {terminal_text(source)}", overflow="fold")
        for source, names in tasks.items()
    ]


def rows_as_tokens(inputs: PreparedStudy, name: str, rows_shown: int) -> list[RenderableType]:
    """A training task's rows counted, and the first ones as coloured tokens."""
    rows, encoder = inputs.rows[name], inputs.encoder
    count = Text(
        f"\n{name}: {len(rows.rows):,} training rows ({encoder.prompt_format} prompts), "
        f"{rows.num_tokens:,} tokens; {rows.num_label_tokens:,} carry loss (marked). "
        f"{rows.dropped:,} rows dropped, {rows.truncated:,} cut"
    )
    shown = rows.rows[:rows_shown]
    return [count, *(Padding(highlight_row(encoder, row), (1, 0, 0, 2)) for row in shown)]


def counted(trials: int, groups: int) -> str:
    """``30 trials in 8 groups``."""
    many = "" if trials == 1 else "s"
    return f"{trials:,} trial{many} in {groups:,} group{'' if groups == 1 else 's'}"


def plan_screen(plan: Plan) -> RenderableType:
    """What ``plan`` prints: a line per group, which names its task only where there are several."""
    several = len({group.task for group in plan.groups}) > 1
    numbers = ("group", "steps", "tokens", "memory", "time")
    headings = ("group", *(("task",) if several else ()), "trials", *numbers[1:], "limited by")
    title = f"{plan.study} on {plan.model} ({plan.device}, {plan.dtype})"
    table = listing(title, headings, frozenset(numbers))
    for index, group in enumerate(plan.groups):
        trials = group.labels[0] if len(group.labels) == 1 else f"{len(group.labels)} adapters"
        table.add_row(
            str(index + 1),
            *((group.task,) if several else ()),
            trials,
            f"{group.steps:,}",
            f"{group.num_tokens:,}",
            byte_size(group.memory_bytes),
            rough_duration(group.seconds),
            LIMIT_NAMES[group.limited_by],
        )
    points = f" and {plan.curve_evaluations:,} while training" if plan.curve_evaluations else ""
    text = (
        f"{counted(plan.trials, len(plan.groups))}, {plan.evaluations:,} evaluations{points}: "
        f"{plan.train_tokens:,} tokens to train on, {plan.evaluation_tokens:,} to score; "
        f"about {byte_size(plan.disk_bytes)} on disk and {rough_duration(plan.seconds)} "
        f"(estimated from {plan.measured_gflops:,.0f} GFLOP/s measured here)."
    )
    return Group(table, Text(text), *notes_lines(plan.notes))


def status_screen(study: StudyRecords) -> RenderableType:
    """What ``status`` prints: every trial with where it stands, and why those that failed did."""
    several = len({trial.spec.task for trial in study.trials}) > 1
    numbers = ("seed", "evaluations")
    headings = ("trial", *(("task",) if several else ()), "arm", "seed", "status", "evaluations")
    table = listing(study.name, headings, frozenset({*numbers, "trial"}))
    table.columns[0].justify = "left"
    for trial in study.trials:
        spec = trial.spec
        done = sum(1 for key in study.evals if key[0] == spec.trial_id)
        table.add_row(
            spec.trial_id,
            *((spec.task,) if several else ()),
            spec.arm_label,
            str(spec.seed),
            trial.status,
            str(done),
        )
    statuses = Counter(trial.status for trial in study.trials)
    summary = ", ".join(f"{count} {status}" for status, count in statuses.items())
    reasons = [
        Text(
            f"{t.spec.trial_id}: {t.status}: {terminal_text(t.failure)}",
            style="red",
            overflow="fold",
        )
        for t in study.trials
        if t.failure
    ]
    return Group(table, *reasons, Text(f"{len(study.trials):,} trials: {summary or 'none yet'}"))


def trial_status(trial: TrialRecords) -> dict[str, object]:
    """What ``status --json`` prints of one trial."""
    return {
        **trial.spec.model_dump(mode="json"),
        "status": trial.status,
        "failure": trial.failure,
        "curve": [point.model_dump(mode="json") for point in trial.curve],
    }
