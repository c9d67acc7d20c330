"""What the verbs print: tables and previews for a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rankscope.data.preview import colour_row, visible
from rankscope.inputs import StudyInputs
from rankscope.models.parameters import Architecture, full_cost, largest_useful_rank, lora_cost
from rankscope.plan import Plan
from rankscope.records import StudyRecords
from rankscope.runtime import choose_device, choose_dtype


def size(num_bytes: float) -> str:
    """Bytes with a unit: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds with a unit: ``41 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def check_screen(inputs: StudyInputs, rows_shown: int) -> RenderableType:
    """What ``check`` prints: tasks, splits, leaks, notes, and rows as coloured tokens."""
    table = Table(title="tasks", title_justify="left")
    for heading in ("task", "roles", "metric", "train", "selection", "report", "leaks", "source"):
        table.add_column(heading, overflow="fold")
    for record in inputs.records:
        table.add_row(
            record.name,
            ", ".join(record.roles),
            record.metric,
            str(record.rows["train"]) if record.trained_on else "-",
            str(record.rows["selection"]),
            str(record.rows["report"]),
            f"{record.leaks['exact']} exact, {record.leaks['ngram13']} near"
            if record.trained_on
            else "-",
            Text(visible(record.source)),
        )
    parts: list[RenderableType] = [table]
    for name, rows in inputs.rows.items():
        encoder = inputs.encoder
        parts.append(
            Text(
                f"\n{name}: {len(rows.rows)} training rows, {rows.num_tokens} tokens, "
                f"{rows.num_label_tokens} of them with loss (marked), "
                f"{rows.dropped} rows dropped, {rows.truncated} cut; "
                f"{encoder.prompt_format} prompts"
            )
        )
        parts += [Padding(colour_row(encoder, row), (1, 0, 0, 2)) for row in rows.rows[:rows_shown]]
    parts += [Text(f"note: {visible(note)}", style="yellow") for note in inputs.notes]
    parts.append(
        Text(f"\n{len(inputs.trials)} trials in {len(inputs.packs)} packs: the study can run.")
    )
    return Group(*parts)


def plan_screen(plan: Plan) -> RenderableType:
    """What ``plan`` prints."""
    table = Table(title=f"{plan.study} on {plan.model} ({plan.device}, {plan.dtype})")
    for heading in ("pack", "task", "trials", "steps", "tokens", "memory", "time"):
        table.add_column(heading, justify="right" if heading != "task" else "left")
    for index, pack in enumerate(plan.packs):
        trials = pack.labels[0] if len(pack.labels) == 1 else f"{len(pack.labels)} adapters"
        table.add_row(
            str(index + 1),
            pack.task,
            trials,
            f"{pack.steps:,}",
            f"{pack.num_tokens:,}",
            size(pack.memory_bytes),
            duration(pack.seconds),
        )
    text = (
        f"{plan.trials} trials in {len(plan.packs)} packs, {plan.evaluations} evaluations: "
        f"{plan.train_tokens:,} tokens to train on, {plan.evaluation_tokens:,} to score; "
        f"about {size(plan.disk_bytes)} on disk and {duration(plan.seconds)} "
        f"(estimated from {plan.measured_gflops:,.0f} GFLOP/s measured here)."
    )
    return Group(table, Text(text))


def status_screen(study: StudyRecords) -> RenderableType:
    """What ``status`` prints: every trial with where it stands."""
    table = Table(title=study.name, title_justify="left")
    for heading in ("trial", "task", "arm", "seed", "status", "evaluations", "reason"):
        table.add_column(heading, overflow="fold")
    for trial in study.trials:
        spec = trial.spec
        done = sum(1 for key in study.evals if key[0] == spec.trial_id)
        table.add_row(
            spec.trial_id,
            spec.task,
            spec.arm_label,
            str(spec.seed),
            trial.status,
            str(done),
            Text(visible(trial.failure or "")),
        )
    return table


def parameters_screen(
    shapes: Architecture, ranks: Sequence[int], targets: Sequence[str]
) -> RenderableType:
    """What ``params`` prints: trainable parameters and the memory they need, rank by rank."""
    dtype = choose_dtype("auto", choose_device("auto"))
    name = str(dtype).removeprefix("torch.")
    table = Table(title=f"LoRA on {', '.join(targets)}", title_justify="left")
    for heading in ("rank", "trainable", "share", "weights", "gradients", "AdamW", "per token"):
        table.add_column(heading, justify="right")
    costs = [(str(r), lora_cost(shapes, r, targets, dtype)) for r in ranks]
    for label, cost in [*costs, ("full", full_cost(shapes, dtype))]:
        table.add_row(
            label,
            f"{cost.trainable_parameters:,}",
            f"{cost.trainable_parameters / shapes.num_parameters:.2%}",
            size(cost.weight_bytes),
            size(cost.gradient_bytes),
            size(cost.optimizer_bytes),
            size(cost.activation_bytes_per_token),
        )
    lines = [
        f"{shapes.num_parameters:,} parameters in the base: "
        f"{size(shapes.num_parameters * dtype.itemsize)} in {name}. "
        "'per token' estimates the activations kept for the backward pass."
    ]
    cap = largest_useful_rank(shapes, targets)
    if any(rank > cap for rank in ranks):
        lines.append(
            f"Ranks above {cap}, the smaller dimension of the smallest target, add no directions."
        )
    return Group(table, Text("\n".join(lines)))
