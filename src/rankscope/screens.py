"""What the verbs print: tables and previews for a terminal."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean as mean

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rankscope.data.preview import colour_row, visible
from rankscope.head_inspection import most_moved
from rankscope.inputs import StudyInputs
from rankscope.models.parameters import Architecture, full_cost, largest_useful_rank, lora_cost
from rankscope.plan import Plan
from rankscope.records import (
    AdapterChange,
    Estimate,
    HeadsRecord,
    Inspection,
    Role,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    TunedModel,
)
from rankscope.runtime import choose_device, choose_dtype
from rankscope.scoring import Score
from rankscope.trials import PackLimit
from rankscope.watch import duration


def size(num_bytes: float) -> str:
    """Bytes with a unit: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def listing(title: str, headings: Sequence[str], right: frozenset[str]) -> Table:
    """An empty table that spares columns for its words: it has to read well in eighty.

    right: headings of the columns of numbers, which never break; words fold where they must.
    """
    table = Table(
        title=visible(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0
    )
    for heading in headings:
        if heading in right:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    return table


ROLE_NAMES: dict[Role, str] = {
    "in_domain": "in-domain",
    "cross_domain": "cross-domain",
    "retention": "retention",
}
LEAK_NAMES = {"exact": "exact", "ngram13": "13-gram"}
LIMIT_NAMES: dict[PackLimit, str] = {
    "all trials of the task": "all trials",
    "max_pack": "max_pack",
    "memory": "memory",
    "method": "method",
}
"""Short, so that a row of the table stays a line in eighty columns."""


def check_screen(inputs: StudyInputs, rows_shown: int) -> RenderableType:
    """What ``check`` prints: tasks, splits, leaks, notes, and rows as coloured tokens."""
    return Group(
        tasks_table(inputs.records),
        *sources(inputs.records),
        *(part for name in inputs.rows for part in rows_as_tokens(inputs, name, rows_shown)),
        *notes_lines(inputs.notes),
        Text(f"\n{counted(len(inputs.trials), len(inputs.packs))}: the study can run."),
    )


def tasks_table(records: Sequence[TaskRecord]) -> Table:
    """Every task with its roles, metric, rows per split and leaked report rows."""
    numbers = ("train", "selection", "report")
    table = listing("tasks", ("task", "roles", "metric", *numbers, "leaks"), frozenset(numbers))
    for record in records:
        leaks = [f"{n} {LEAK_NAMES[kind]}" for kind, n in record.leaks.items() if n]
        table.add_row(
            record.name,
            "\n".join(ROLE_NAMES[role] for role in record.roles),
            record.metric,
            f"{record.rows['train']:,}" if record.trained_on else "-",
            f"{record.rows['selection']:,}",
            f"{record.rows['report']:,}",
            ("\n".join(leaks) or "none") if record.trained_on else "-",
        )
    return table


def sources(records: Sequence[TaskRecord]) -> list[RenderableType]:
    """Where rows came from, a line each: ``pocket world: pocket_med, pocket_law``."""
    tasks: dict[str, list[str]] = {}
    for record in records:
        tasks.setdefault(record.source, []).append(record.name)
    return [
        Text(f"{', '.join(names)}: rows from {visible(source)}", overflow="fold")
        for source, names in tasks.items()
    ]


def rows_as_tokens(inputs: StudyInputs, name: str, rows_shown: int) -> list[RenderableType]:
    """A training task's rows counted, and the first ones as coloured tokens."""
    rows, encoder = inputs.rows[name], inputs.encoder
    count = Text(
        f"\n{name}: {len(rows.rows):,} training rows ({encoder.prompt_format} prompts), "
        f"{rows.num_tokens:,} tokens; {rows.num_label_tokens:,} carry loss (marked). "
        f"{rows.dropped:,} rows dropped, {rows.truncated:,} cut"
    )
    shown = rows.rows[:rows_shown]
    return [count, *(Padding(colour_row(encoder, row), (1, 0, 0, 2)) for row in shown)]


def notes_lines(notes: Sequence[str]) -> list[RenderableType]:
    """What a reader of the results must know, apart from what stands above."""
    lines = [Text(f"note: {visible(note)}", style="yellow") for note in notes]
    return [Text(), *lines] if lines else []


def counted(trials: int, packs: int) -> str:
    """``30 trials in 8 packs``."""
    many = "" if trials == 1 else "s"
    return f"{trials:,} trial{many} in {packs:,} pack{'' if packs == 1 else 's'}"


def plan_screen(plan: Plan) -> RenderableType:
    """What ``plan`` prints: a line per pack, which names its task only where there are several."""
    several = len({pack.task for pack in plan.packs}) > 1
    numbers = ("pack", "steps", "tokens", "memory", "time")
    headings = ("pack", *(("task",) if several else ()), "trials", *numbers[1:], "limited by")
    title = f"{plan.study} on {plan.model} ({plan.device}, {plan.dtype})"
    table = listing(title, headings, frozenset(numbers))
    for index, pack in enumerate(plan.packs):
        trials = pack.labels[0] if len(pack.labels) == 1 else f"{len(pack.labels)} adapters"
        table.add_row(
            str(index + 1),
            *((pack.task,) if several else ()),
            trials,
            f"{pack.steps:,}",
            f"{pack.num_tokens:,}",
            size(pack.memory_bytes),
            duration(pack.seconds),
            LIMIT_NAMES[pack.limited_by],
        )
    points = f" and {plan.curve_evaluations:,} while training" if plan.curve_evaluations else ""
    text = (
        f"{counted(plan.trials, len(plan.packs))}, {plan.evaluations:,} evaluations{points}: "
        f"{plan.train_tokens:,} tokens to train on, {plan.evaluation_tokens:,} to score; "
        f"about {size(plan.disk_bytes)} on disk and {duration(plan.seconds)} "
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
        Text(f"{t.spec.trial_id}: {t.status}: {visible(t.failure)}", style="red", overflow="fold")
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


def parameters_screen(
    shapes: Architecture, ranks: Sequence[int], targets: Sequence[str]
) -> RenderableType:
    """What ``params`` prints: trainable parameters and the memory they need, rank by rank."""
    dtype = choose_dtype("auto", choose_device("auto"))
    name = str(dtype).removeprefix("torch.")
    numbers = ("rank", "trainable", "share", "weights", "gradients", "AdamW", "per token")
    table = listing(f"LoRA on {', '.join(targets)}", numbers, frozenset(numbers))
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


def inspection_screen(found: Inspection) -> RenderableType:
    """What ``inspect`` prints: one row per tuned model, then one per module type."""
    parts: list[RenderableType] = [inspected_models(found)]
    for model in found.tuned:
        parts.append(inspected_modules(model))
        if model.heads is not None:
            parts.append(inspected_heads(model.name, model.heads))
    return Group(*parts, *notes_lines(inspected_notes(found)))


def inspected_notes(found: Inspection) -> list[str]:
    """What the tables do not say: growth with rank, uncertain vectors, what is kept on disk."""
    notes = []
    if (growth := found.growth) is not None:
        notes.append(
            f"|dW| = {growth.start:.3g} + {growth.slope:.3g} ln r over ranks "
            f"{', '.join(map(str, growth.ranks))}: residual {growth.rms:.2g} (root mean square); "
            f"r^{growth.power:.2g} leaves {growth.power_rms:.2g}"
        )
    for model in found.tuned:
        uncertain = sum(m.ill_conditioned for m in model.spectra.matrices)
        total = sum(m.top_k for m in model.spectra.matrices)
        if uncertain:
            notes.append(
                f"{visible(model.name)}: {uncertain} of {total} vectors compared lie in clusters "
                "of close singular values, where single vectors mean little"
            )
    if found.cache_bytes:
        notes.append(f"decompositions of base weights on disk: {size(found.cache_bytes)}")
    return notes


def inspected_models(found: Inspection) -> Table:
    """Each tuned model in one row."""
    numbers = ("rank", "matrices", "|dW|", "/|W0|", "eff. rank", "intruders")
    table = listing(
        f"tuned models of {found.base}", ("model", "kind", *numbers), frozenset(numbers)
    )
    for model in found.tuned:
        matrices = model.spectra.matrices
        table.add_row(
            visible(model.name),
            model.kind,
            str(model.rank or "-"),
            str(len(matrices)),
            f"{model.spectra.frobenius:.3g}",
            f"{mean(m.relative for m in matrices):.3g}",
            f"{mean(m.effective_rank for m in matrices):.3g}",
            str(model.spectra.intruders),
        )
    return table


def inspected_modules(model: TunedModel) -> Table:
    """One tuned model by type of module: means over its layers."""
    numbers = ("/|W0|", "eff. rank", "stable rank", "subspace", "chance", "intruders", "energy")
    table = listing(f"{model.name}, means over layers", ("module", *numbers), frozenset(numbers))
    for module in dict.fromkeys(m.module for m in model.spectra.matrices):
        own = [m for m in model.spectra.matrices if m.module == module]
        table.add_row(
            visible(module),
            f"{mean(m.relative for m in own):.3g}",
            f"{mean(m.effective_rank for m in own):.3g}",
            f"{mean(m.stable_rank for m in own):.3g}",
            f"{mean(mean(m.similarity_subspace) for m in own):.3f}",
            f"{mean(mean(m.chance_subspace) for m in own):.3f}",
            str(sum(m.intruders for m in own)),
            f"{mean(m.intruder_energy for m in own):.3f}",
        )
    return table


def inspected_heads(name: str, heads: HeadsRecord) -> Table:
    """The heads whose q_proj or o_proj slices moved most."""
    numbers: tuple[str, ...] = (
        "layer",
        "head",
        "|dW_h|/|W0_h|",
        "importance",
        "base",
        "entropy",
        "base ",
    )
    numbers += ("skill", "lost") if heads.roles else ()
    title = f"{name}, heads that moved most; {heads.items} items of {heads.task}"
    table = listing(title, numbers, frozenset(numbers))
    roles = {(role.layer, role.head): role for role in heads.roles}
    for layer, head, moved in most_moved(heads):
        base, tuned = heads.base[layer], heads.tuned[layer]
        values: list[float | None] = [tuned.importance[head], base.importance[head]]
        values += [tuned.entropy[head], base.entropy[head]]
        if (role := roles.get((layer, head))) is not None:
            values += [role.skill, role.lost]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        table.add_row(str(layer), str(head), f"{moved:.3g}", *cells)
    return table


def change_screen(changes: Sequence[AdapterChange]) -> RenderableType:
    """What ``shrink`` prints: per adapter written, each matrix and the whole."""
    return Group(*(part for change in changes for part in changed_matrices(change)))


def changed_matrices(change: AdapterChange) -> tuple[RenderableType, ...]:
    """One adapter's matrices, its total and where it is."""
    numbers = ("rank", "now", "|dW|", "now ", "|dW-dW'|/|dW|", "intruders")
    table = listing(change.action, ("matrix", *numbers), frozenset(numbers))
    for m in change.matrices:
        share = m.error / m.frobenius_before if m.frobenius_before else 0.0
        found = "-" if m.intruders is None else str(m.intruders)
        norms = (f"{m.frobenius_before:.3g}", f"{m.frobenius_after:.3g}", f"{share:.2g}")
        table.add_row(visible(m.name), str(m.rank_before), str(m.rank_after), *norms, found)
    share = change.error / change.frobenius if change.frobenius else 0.0
    total = f"in all |dW-dW'|/|dW| = {share:.3g}; written to {visible(change.out)}\n"
    return table, Text(total)


def scores_screen(scores: Sequence[Score]) -> Table:
    """What ``eval`` prints: per task the base and its adapters, each with its uncertainty.

    Accuracies in per cent, changes in points, likelihoods in nats per token; ``±`` is one standard
    error, brackets are a paired 95 % interval.
    """
    numbers = ("score", "n", "without leaks", "change", "p", "chance")
    leaks = any(score.record.without_leaks for score in scores)
    shown = [heading for heading in numbers if leaks or heading != "without leaks"]
    table = listing("scores", ("task", "metric", "model", *shown), frozenset(shown))
    last = None
    for score in scores:
        if last is not None and last != score.record.task:
            table.add_section()
        is_first, last = last != score.record.task, score.record.task
        scale, digits = (100, 1) if score.higher_is == "accuracy" else (1, 3)
        record, without, change = score.record, score.record.without_leaks, score.change
        cells = {
            "score": with_error(record.score, record.standard_error, scale, digits),
            "n": f"{record.n:,}",
            "without leaks": with_error(without.score, without.standard_error, scale, digits)
            if without
            else "",
            "change": change_cell(change, scale, digits) if change else "",
            "p": f"{change.p:.3f}" if change and change.p is not None else "",
            "chance": f"{scale * score.chance:.{digits}f}" if score.chance is not None else "",
        }
        names = (visible(record.task), record.metric) if is_first else ("", "")
        model = visible(score.model) + (" (forced)" if score.other_base_forced else "")
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
