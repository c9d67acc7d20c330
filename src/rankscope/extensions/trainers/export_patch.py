"""``rankscope export --patch``: another trainer's file with the settings that a study found."""

import difflib
from pathlib import Path
from typing import Any

from rankscope.advise.recommend import recommend
from rankscope.cli.terminal import Reply, print_line, print_message
from rankscope.errors import UserError
from rankscope.extensions.trainers.files import TrainerFile, read_trainer_file
from rankscope.filesystem import check_outside, replace_bytes
from rankscope.records import StudyRecords, TrialSpec
from rankscope.report.study_view import StudyView
from rankscope.store import Ledger
from rankscope.tools.export import choose_trial

ADAPTER_FACTS = ("rank", "alpha", "targets", "dropout")
KEPT = ("batch_size", "gradient_accumulation", "schedule", "weight_decay", "max_length")
"""Settings of a run, besides its length, that stay as in the file; ``AXES`` are such settings of an
arm."""
AXES = ("lr_ratio", "rows", "replay", "kl_to_base", "early_stop", "init_from")


def patched(
    folder: Path, file: Path, out: Path, label: str | None, task: str | None, *, best_lora: bool
) -> Reply:
    """Write another trainer's file with the rank, alpha, targets, dropout and rate of a trial.

    For a fully fine-tuned model only the rate is written. Everything else stays. The reply has the
    trial, the new file, the unified diff, and notes on other differences of the study.

    Args:
        folder: the study's folder.
        file: the file that ``init --from`` read, or one like it.
        out: a new file, or a folder for one of the same name.
        label: with ``task`` and ``best_lora``, the trial, as in ``choose_trial``.

    Raises:
        UserError: a setting that the file computes or that its trainer does not have, another
            method, a stored adapter, or ``out`` exists.
    """
    target = out / file.name if out.is_dir() else out
    check_outside(target, folder, "--out")
    if target.exists():
        raise UserError(target, "a file of that name", "a new one", "give another --out")
    run = read_trainer_file(file)
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    view = StudyView(study, recommend(study))
    spec, reason = choose_trial(view, folder, label, task, best_lora=best_lora)
    changes = _changes(run, study, spec)
    old = file.read_bytes().decode("utf-8")
    new = run.document.patched(changes)
    replace_bytes(target, new.encode("utf-8"))
    lines = old.splitlines(keepends=True), new.splitlines(keepends=True)
    diff = "".join(line if line.endswith("\n") else f"{line}\n"
                   for line in difflib.unified_diff(*lines, str(file), str(target)))  # fmt: skip
    notes = [f"{spec.label}: {reason}"] if reason else []
    notes += [*_other_origin(run, study, spec), *_left(run, study, spec)]
    for note in notes:
        print_message(f"note: {note}")
    told = diff.rstrip("\n") or "nothing to change"
    data = {"trial": spec.trial_id, "label": spec.label, "out": target, "diff": diff}
    return Reply(data | {"notes": notes}, lambda: print_line(f"{told}\nwrote {target}"))


def _changes(run: TrainerFile, study: StudyRecords, spec: TrialSpec) -> dict[str, Any]:
    """Return the keys of the file that lack the trial's values, with those values."""
    file, rule, lora = run.document.path, "a file with the settings of a run", not spec.is_full
    if file.is_dir() or run.name == "PEFT":
        raise UserError(file, "a stored adapter", rule)
    is_sft = (spec.objective or study.config.train.objective) == "sft"
    if faults := [*run.faults, *(run.problems() if lora and is_sft else ())]:
        raise UserError(file, "settings that cannot be replaced", rule, faults=faults)
    if lora and (spec.rank is None or spec.rank_pattern or [spec.method] != run.methods):
        rule = f"an arm of method {' and '.join(run.methods)}"
        raise UserError(file, f"{spec.label}, of method {spec.method}", rule, "choose another")
    if (spec.alpha or 0) % 1:
        do = f"choose a rank at which it is one, as {run.name} takes no others"
        raise UserError(file, f"alpha {spec.alpha:g}", "a whole number", do)
    values: dict[str, Any] = {"rank": spec.rank, "alpha": spec.alpha}
    values |= {"targets": run.checked("targets", list(spec.targets)), "dropout": spec.dropout}
    changes: dict[str, Any] = {}
    for fact, value in {**(values if lora else {}), "lr": spec.lr}.items():
        if fact not in run.sources or run.facts[fact] != value:
            changes |= run.changes(fact, value)
    return changes


def _other_origin(run: TrainerFile, study: StudyRecords, spec: TrialSpec) -> list[str]:
    """Return warnings if the study has another base, or other rows, than the file."""
    tasks, ours = study.config.evaluation_tasks(), _place(run, study.config.model.label)
    theirs = _place(run, run.facts.get("model", "no base"))
    parts = [tasks[name] for name in tasks[spec.task].mixture or [spec.task]]
    rows = [_place(run, t.train or t.path or t.hub or t.name) for t in parts]
    at = {*rows, *(str(Path(place).parent) for place in rows)}  # of a folder, its train file
    others = [s["path"] for s in run.data_sets() if s.get("path")]
    others = [name for name in others if _place(run, name) not in at]
    found = [f"its base is {ours}, the file's {theirs}"] * (ours != theirs)
    found += [f"its rows are {', '.join(rows)}, the file's {', '.join(others)}"] * bool(others)
    return [f"the study was not made from this file: {what}" for what in found]


def _place(run: TrainerFile, name: str) -> str:
    """Return the whole path of a file or folder; a hub id is unchanged."""
    place = run.path_of(name)
    return name if place is None else str(place.resolve())


def _left(run: TrainerFile, study: StudyRecords, spec: TrialSpec) -> list[str]:
    """List the study's settings that differ and that the file keeps, with reasons."""
    train, facts = study.config.train, run.facts
    had = {name: getattr(train, name) for name in KEPT} | spec.overrides
    had |= {"warmup": had.pop("warmup_fraction", None)}
    had |= {name: getattr(spec, name) for name in AXES}
    length = next(name for name in ("tokens", "max_steps", "epochs") if getattr(train, name))
    own = "max_steps" if facts.get("max_steps") else "epochs"
    had[own] = getattr(train, length) if length == own else f"{length} {getattr(train, length)}"
    found = [
        f"{run.sources.get(name, name)} stays {facts.get(name, 'unset')}, the study had {value}"
        for name, value in had.items()
        if value not in (None, facts.get(name))
    ]
    why = "export writes rank, alpha, targets, dropout and rate; a study's length is what it could"
    found += [f"these stay: {why} afford"] * bool(found)
    keys = [run.sources[fact] for fact in ("adapter", *ADAPTER_FACTS) if fact in run.sources]
    if spec.is_full and keys:
        found.append(f"the LoRA keys are left, remove them to train in full: {', '.join(keys)}")
    return found
