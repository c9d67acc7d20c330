"""``rankscope export --patch``: another trainer's file with the settings that a study found."""

import difflib
from pathlib import Path
from typing import Any

from rankscope.advise.recommend import recommend
from rankscope.config.arm import TARGET_GROUPS, resolved_alpha
from rankscope.errors import UserError
from rankscope.filesystem import check_outside, replace_bytes
from rankscope.records import StudyRecords, TrialSpec
from rankscope.report.study_view import StudyView
from rankscope.store import Ledger
from rankscope.tools.export import choose_trial
from rankscope.tools.trainer_files import PLACES, TrainerFile, read_trainer_file

COMPARED = ("batch_size", "gradient_accumulation", "schedule", "weight_decay", "max_length")


def patch_trainer_file(
    folder: Path, file: Path, out: Path, *, label: str | None, task: str | None, best_lora: bool
) -> tuple[TrialSpec, Path, str, list[str]]:
    """Write another trainer's file with the settings of a trial; all else stays as it is.

    Args:
        folder: of the study. file: the file that ``init --from`` read, or one like it.
        out: a new file, or a folder for one of the same name.
        label, task, best_lora: the trial, as ``choose_trial`` takes them.

    Returns:
        The trial, the new file, the unified diff, and notes on what the study did otherwise.

    Raises:
        UserError: a setting that the file computes or that its trainer does not have, another
            method, an adapter's folder, or ``out`` exists.
    """
    target = out / file.name if out.is_dir() else out
    check_outside(target, folder, "--out")
    if target.exists():
        raise UserError(target, "a file of that name", "a new one", "give another --out")
    run = read_trainer_file(file)
    if file.is_dir() or run.faults:
        found = "an adapter's folder" if file.is_dir() else "settings that cannot be replaced"
        raise UserError(file, found, "a file with the settings of a run", faults=run.faults)
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    view = StudyView(study, recommend(study))
    spec, reason = choose_trial(view, folder, label, task, best_lora=best_lora)
    if spec.rank is None or spec.rank_pattern or [spec.method] != run.methods:
        rule = f"an arm of method {' and '.join(run.methods)}"
        raise UserError(file, f"{spec.label}, of method {spec.method}", rule, "choose another")
    axes = ("rows", "replay", "kl_to_base", "early_stop", "init_from")
    if odd := [name for name in axes if getattr(spec, name, None)]:
        found = f"{spec.label}, an arm with {', '.join(odd)}"
        raise UserError(file, found, "one whose settings such a file has", "choose another arm")
    facts = run.facts | {"alpha": resolved_alpha(run.facts.get("alpha", "r"), spec.rank)}
    changes: dict[str, Any] = {}
    for fact, value in _settings(spec).items():
        changes |= {} if facts.get(fact) == value else run.changes(fact, value)
    absent = [f"{key} = {value}" for key, value in changes.items() if key not in run.document.spans]
    if absent:
        do = "add these keys to it first"
        raise UserError(file, "no keys for what the study found", "", do, absent)
    if (spec.alpha or 0) % 1:
        do = f"choose a rank at which it is one, as {run.name} takes no others"
        raise UserError(file, f"alpha {spec.alpha:g}", "a whole number", do)
    old = file.read_bytes().decode("utf-8")
    new = run.document.patched(changes)
    replace_bytes(target, new.encode("utf-8"))
    lines = old.splitlines(keepends=True), new.splitlines(keepends=True)
    diff = "".join(line if line.endswith("\n") else f"{line}\n"
                   for line in difflib.unified_diff(*lines, str(file), str(target)))  # fmt: skip
    notes = [f"{spec.label}: {reason}"] if reason else []
    return spec, target, diff, notes + _differences(run, study, spec)


def _settings(spec: TrialSpec) -> dict[str, Any]:
    """The settings of a trial that the file may have, by their names in ``PLACES``."""
    groups = [group for group, names in TARGET_GROUPS.items() if set(names) == set(spec.targets)]
    own = {name: value for name, value in spec.overrides.items() if name in COMPARED}
    return {
        "rank": spec.rank,
        "alpha": spec.alpha,
        "lr": spec.lr,
        "targets": groups[0] if groups else sorted(spec.targets),
        "dropout": spec.dropout,
        **({} if spec.lr_ratio is None else {"lr_ratio": spec.lr_ratio}),
        **own,
    }


def _differences(run: TrainerFile, study: StudyRecords, spec: TrialSpec) -> list[str]:
    """What the file has otherwise than the study had, and keeps: it may have changed since."""
    config = study.config
    pairs: dict[str, Any] = {name: getattr(config.train, name) for name in COMPARED}
    pairs |= {"max_steps": config.train.max_steps, "epochs": config.train.epochs}
    base, own = run.path_of(run.facts.get("model", "")), config.model.path
    if base is None or own is None or base.resolve() != Path(own).resolve():
        pairs["model"] = config.model.label
    notes = ["the file keeps its own length: the study's is what it could afford"]
    notes += [f"the study trained {config.train.tokens:g} tokens"] if config.train.tokens else []
    if "warmup_fraction" in spec.overrides:
        share = spec.overrides["warmup_fraction"]
        notes.append(f"the arm has a warm-up of {share} of the steps, the file keeps its own")
    return notes + [
        f"{run.sources.get(name, name)}: the file has {run.facts.get(name)}, the study had {value}"
        for name, value in pairs.items()
        if name in PLACES and name not in spec.overrides and run.facts.get(name) != value
    ]
