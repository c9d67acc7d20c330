"""Permitted changes of a study between two runs, and the notes about them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rankscope.errors import UserError
from rankscope.records import AS_STORED, ModelRecord, Provenance, Split, TaskRecord


def check_same_name(out: Path, stored: str, name: str) -> None:
    """Refuse the folder of another study: its results would stay behind, unseen."""
    if stored != name:
        do = f"give this study its own --out folder, or continue that one with 'name: {stored}'"
        raise UserError(out, f"results of the study {stored!r}", f"those of {name!r}", do)


def check_same_model(out: Path, stored: ModelRecord, model: ModelRecord) -> None:
    """Refuse a base model, dtype, quantization or prompt format that differs from the stored
    one."""
    if stored.sha256 != model.sha256:
        found = f"results of the base model {stored.label} (sha256 {stored.sha256[:12]})"
        expected = f"those of {model.label} (sha256 {model.sha256[:12]}), which the study names now"
        raise UserError(out, found, expected, "give the new study its own --out folder")
    for field in ("dtype", "quantize", "prompt_format"):
        before, now = getattr(stored, field), getattr(model, field)
        if before != now:
            do = f"set '{field}: {before}' to continue, or give the new study its own --out folder"
            if AS_STORED in (before, now):  # no setting makes stored weights of models that run
                do = "give another --out folder"
            raise UserError(
                out, f"results with {field} {before!r}", f"{now!r}, which the study uses now", do
            )


def check_same_tasks(
    out: Path, stored: Mapping[str, TaskRecord], tasks: Sequence[TaskRecord]
) -> None:
    """Refuse a task whose name now means other validation or test items, or another metric.

    Other training rows make other trials. They are refused only if other test items are
    contaminated now, because stored scores leave out the earlier ones.
    """
    for task in tasks:
        if changes := task_changes(stored.get(task.name, task), task):
            raise UserError(
                out,
                f"results on task {task.name!r} as it was before",
                f"the task as it is now ({'; '.join(changes)})",
                "give the changed study its own --out folder, undo the change, or use the version "
                "of Rankscope that made it",
            )


def task_changes(before: TaskRecord, task: TaskRecord, *splits: Split) -> list[str]:
    """Return why stored scores of a task on some splits cannot be used for the current task.

    The default is both splits; the list is empty if the scores can be used.
    """
    splits = splits or ("validation", "test")
    hashes = [f"{split}_sha256" for split in splits]
    changed = [
        f"{field} was {getattr(before, field)[:16]!r}, is {getattr(task, field)[:16]!r}"
        for field in ("metric", "score_unit", *hashes, "contaminated_sha256")
        if getattr(before, field) != getattr(task, field)
    ]
    numbers = [
        f"{before.rows[split]:,} {split} items before, {task.rows[split]:,} now"
        for split in splits
        if before.rows[split] != task.rows[split]
    ]
    return [*numbers, *changed] if changed else []


def check_same_versions(out: Path, stored: Provenance, now: Provenance) -> None:
    """Refuse to add results of other versions of libraries or code to the stored ones."""
    before, after = stored.versions, now.versions
    changed = [
        f"{name} was {before.get(name)}, is {version}"
        for name, version in after.items()
        if before.get(name) != version
    ]
    if changed:
        raise UserError(
            out,
            f"results of other versions ({'; '.join(changed)}) and results missing",
            "one set of versions",
            "use those of before, give the study its own --out folder, or add --allow-mixed: "
            "the report then names the versions",
        )


def mixed_versions_notes(history: Sequence[Provenance]) -> Iterator[str]:
    versions: dict[str, dict[str, None]] = {}
    for entry in history:
        for library, version in entry.versions.items():
            versions.setdefault(library, {})[version] = None
    mixed = [f"{name} {', '.join(seen)}" for name, seen in versions.items() if len(seen) > 1]
    if mixed:
        yield f"The results were computed with more than one version of: {'; '.join(mixed)}."
