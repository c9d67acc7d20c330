"""``rankscope init``: a commented study file from a preset and what the user has.

Nothing here needs torch: rows are read to recognize their shape and scorer, models only looked for.
"""

import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rankscope.config.loader import load_study_file
from rankscope.config.presets import PRESETS, preset_text
from rankscope.config.section import short_repr
from rankscope.config.study import ModelConfig, StudyConfig
from rankscope.config.task import TaskConfig
from rankscope.config.yaml_lines import dump_flow, dump_text
from rankscope.data.registry import NAMED_TASKS
from rankscope.data.sources import DEV, READERS, SPLIT_FILES, check_file
from rankscope.data.task_source import hub_tasks, missing_rows
from rankscope.data.tasks import numeric_answers, read_task_items
from rankscope.errors import UserError, did_you_mean, reading
from rankscope.evaluate.scorers import get_scorer
from rankscope.filesystem import replace_text
from rankscope.formatting import rough_duration
from rankscope.models.fetch import KNOWN_MODELS, is_cached
from rankscope.models.model_folder import model_folder
from rankscope.progress import ProgressReporter

if TYPE_CHECKING:
    from rankscope.run.machines import Machine

OWN_TASK = "my_task"  # Name of the task in presets that train on the user's rows
DEFAULT_RETENTION = "common_facts"
OTHER_NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}
"""Split -> names of its file in a folder of rows, the usual one first."""
MAX_BYTES_READ = 20 * 2**20  # A larger file is not read by ``init``, which answers at once


OwnRows = tuple[dict[str, Any], str, str]
"""The user's rows as keys of a task in the study file: name, train, validation, test, scorer; what
was recognized; and why a study of these rows cannot run as it is, or ''."""


def study_template(
    preset: str,
    model: str | None = None,
    task: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    retention: Iterable[str] = (),
    may_lose: float | None = None,
) -> str:
    """The commented study file of a preset, ready to be written.

    Args:
        preset: name of the preset; the default one is ``dpo`` for rows with a rejected answer.
        model: replaces the preset's model; a short form of the ``model`` key, such as ``./folder``
            or ``owner/name``. ``pocket`` gives another file: the same question in tasks and
            learning rates that suit that model (with ``task`` it gives the preset's own file).
        task: keys of the user's own task; only for presets that train on the user's rows.
        data_dir: folder of the named tasks, as the study file will name it.
        retention: replaces the preset's retention tasks.
        may_lose: points of retention; arms that probably lose more are left out.

    Raises:
        UserError: an unknown preset, a text that is not a model, another model than ``pocket`` in
            the pocket preset, or ``task`` for a preset of named tasks.
    """
    if preset not in PRESETS:
        known = f"one of {', '.join(PRESETS)}"
        hint = did_you_mean(preset, PRESETS)
        raise UserError("--preset", short_repr(preset), known, hint)
    scorer = (task or {}).get("scorer")
    if preset == "default" and scorer is not None and get_scorer(scorer).compares_with_base:
        preset = "dpo"
    is_pocket = False
    if model is not None:
        with reading(f"--model {short_repr(model)}", "a model"):
            is_pocket = ModelConfig.model_validate(model).pocket
        if preset == "pocket" and not is_pocket:
            found = f"the model {model!r}"
            raise UserError("--preset pocket", found, "the pocket model", "choose another preset")
    text = preset_text(preset, on_pocket=is_pocket and task is None and preset != "pocket")
    if is_pocket and task is not None and not retention:
        retention = ["pocket_general"]  # other tasks use words that the pocket model does not know
    if task is not None:
        text = _with_own_task(text, preset, task)
    if model is not None:
        text = _replace_line(text, "model: ", f"model: {dump_text(model)}")
    if retention:
        names = ", ".join(map(dump_text, retention))
        text = _replace_line(text, "  retention: [", f"  retention: [{names}]")
        text = text.replace(f", {DEFAULT_RETENTION}]", f", {names}]")  # in other lists
    if may_lose is not None:
        text = _with_limit(text, f"  max_forgetting: {may_lose:g} points")
    if data_dir is not None:
        text = _replace_line(text, "# data_dir: ", None)
        text = _replace_line(text, "data_dir: ", None)
        text = text.rstrip("\n") + f"\n\ndata_dir: {dump_text(data_dir)}\n"
    return text


def takes_own_rows(preset: str) -> bool:
    return preset in PRESETS and f"name: {OWN_TASK}\n" in preset_text(preset)


def _with_own_task(text: str, preset: str, task: Mapping[str, Any]) -> str:
    """The preset with the user's own task in place of its example."""
    if f"name: {OWN_TASK}\n" not in text:
        raise UserError(
            f"--preset {preset}",
            "--data",
            "none, as it trains on named tasks",
            "leave --data out, or choose the preset 'default'",
        )
    text = re.sub(rf"\b{OWN_TASK}\b", task["name"], text)
    keys = [f"    {key}: {dump_flow(value)}" for key, value in task.items() if key != "name"]
    for split in SPLIT_FILES[1:]:
        text = _replace_line(text, f"    # {split}: ", None)
    text = _replace_line(text, "    train: ", "\n".join(keys))
    return _replace_line(text, "name: my-study", f"name: {task['name']}")


def _with_limit(text: str, line: str) -> str:
    """The preset with this line in place of its limit, or in its objective."""
    without = _replace_line(text, "  max_forgetting: ", None)
    with_limit = _replace_line(without, "objective:", f"objective:\n{line}")
    return with_limit if line in with_limit else f"{without.rstrip()}\n\nobjective:\n{line}\n"


def _replace_line(text: str, start: str, line: str | None) -> str:
    """Replace every line that starts with ``start``; None removes it."""
    replaced = [line if old.startswith(start) else old for old in text.splitlines()]
    return "\n".join(new for new in replaced if new is not None) + "\n"


# --- a time to fit ------------------------------------------------------------------------------

CUTS: tuple[tuple[str, str | float, str], ...] = (
    (r"^(  max_items: )(\d+)", 200, "200 items a split, so gains are known less well"),
    (r"^(  max_items: )(\d+)", 50, "50 items a split, so gains are hardly known"),
    (
        r"^([^#\n]*\blr: \[)[^\]]*, ([^\],]+\])",
        r"\1\2",
        "the highest rate alone, as short runs need high ones; another may do better",
    ),
    (r"^(seeds: \[\d+, \d+), .*", r"\1]", "two seeds, so their spread is known less well"),
    (r"^(seeds: \[\d+), .*", r"\1]", "one seed, so the spread between seeds is assumed"),
    (r"^(  epochs: )([\d.]+)", 1, "one epoch; more may change the order of arms"),
    (r"^(  max_steps: )(\d+)", 60, "60 steps; more may change the order of arms"),
    (r"^(  epochs: )([\d.]+)", 0.5, "half an epoch, so half of the rows are not trained on"),
    (r"^(  epochs: )([\d.]+)", 0.25, "a quarter of an epoch, so most rows are not trained on"),
    (r"^(  max_steps: )(\d+)", 20, "20 steps, hardly more than the warm-up"),
    (r"^(    rank: \[\d+), \d+, (\d+), \d+, (\d+\])", r"\1, \2, \3", "every other rank"),
    (
        r"^  - method: full\n    lr(?=.*\n(?!    ))",  # an arm with a rate and no other keys
        "  # - method: full\n  #   lr",
        "no full fine-tuning, so LoRA is compared with the base alone",
    ),
    (r"^(    rank: \[\d+), .*, (\d+\])", r"\1, \2", "the lowest and the highest rank alone"),
)
"""What a study gives up to fit a time, in this order: items, rates, seeds, rows, ranks. Each cut is
a pattern of a preset's lines, what replaces it or the largest number, and what that means."""


def fit_to_minutes(
    text: str, file: Path, minutes: float, reporter: ProgressReporter
) -> tuple[str, dict[str, object]]:
    """A study file with as few of ``CUTS``, from the first on, as let it end here in some minutes.

    The longest time counts: if the study is adaptive, the time of its grid. ``file`` is where it
    will be, for relative paths. Returns the file, in which a comment on each line that was cut has
    the line of before; and ``cuts`` in words with the ``planned_seconds``. Raises UserError: it
    cannot be planned, or not even the smallest study ends in time.
    """
    from rankscope.run.machines import busy_notes, measured_machine
    from rankscope.run.plan import make_plan
    from rankscope.run.prepare import prepare

    texts, cuts = [text], list[str]()
    for pattern, to, meaning in CUTS:
        if (shorter := cut_text(texts[-1], pattern, to)) != texts[-1]:
            texts.append(shorter)
            cuts.append(meaning)

    machine: list[Machine] = []  # Measured once

    @cache
    def seconds_of(place: int) -> float:
        with NamedTemporaryFile("w", dir=file.absolute().parent, suffix=".yaml") as draft:
            draft.write(texts[place])
            draft.flush()
            study = prepare(load_study_file(Path(draft.name)), reporter, is_plan=True)
        if not machine:
            machine.append(measured_machine(study))
        return make_plan(study, machine[0]).wall_seconds

    limit, places = 60 * minutes, range(len(texts))
    kept = bisect_left(places, True, key=lambda place: seconds_of(place) <= limit)
    if kept == len(texts):
        least = rough_duration(seconds_of(kept - 1))
        rule = f"{least} or more, which the smallest study takes: {'; '.join(cuts)}"
        raise UserError("--minutes", f"{minutes:g}", rule, "take a smaller model or a GPU")
    lines = zip(text.splitlines(), texts[kept].splitlines(), strict=True)
    marked = [
        new if new == old or "#" in new else f"{new}  # was {old.strip()}" for old, new in lines
    ]
    planned: dict[str, object] = {"cuts": cuts[:kept], "planned_seconds": seconds_of(kept)}
    return "\n".join(marked) + "\n", planned | {"notes": busy_notes()}


def cut_text(text: str, pattern: str, to: str | float) -> str:
    """The text after one of ``CUTS``."""

    def replaced(match: re.Match[str]) -> str:
        return (
            match.expand(to) if isinstance(to, str) else f"{match[1]}{min(float(match[2]), to):g}"
        )

    return re.sub(pattern, replaced, text, flags=re.MULTILINE)


def write_study(file: Path, text: str) -> StudyConfig:
    """Write a study file. Raises UserError: it is none, and the file of before is put back."""
    before = file.read_text("utf-8") if file.is_file() else None
    replace_text(file, text)
    try:
        return load_study_file(file)
    except UserError:
        if before is None:
            file.unlink()
        else:
            replace_text(file, before)
        raise


# --- paths --------------------------------------------------------------------------------------


def model_for_study_file(model: str, study_file: Path) -> str:
    """The ``model`` of a study file for a model named on the command line.

    The path of an existing folder is written as from the study file; other text is unchanged.
    """
    folder = Path(os.path.expanduser(model))  # noqa: PTH111  Path.expanduser fails on unknown users
    return path_for_study_file(folder, study_file) if folder.is_dir() else model


def path_for_study_file(path: Path, study_file: Path) -> str:
    """A path below the study file's folder relative to it, where relative paths start; another
    one absolute.
    """
    absolute = Path(os.path.normpath(path.absolute()))
    folder = Path(os.path.normpath(study_file.absolute().parent))
    return f"./{absolute.relative_to(folder)}" if absolute.is_relative_to(folder) else str(absolute)


# --- the user's rows ----------------------------------------------------------------------------


def own_rows(
    data: Path, study_file: Path, keys: Mapping[str, Any] = MappingProxyType({})
) -> OwnRows:
    """Recognize the split files, the shape and the scorer of the user's rows.

    Args:
        data: a file of training rows, or a folder with a file per split.
        study_file: paths are written as from here.
        keys: further keys of the task, such as ``fields`` and ``prompt``.
    """
    paths = split_files(data)
    name = task_name(data)
    files = {split: str(path) for split, path in paths.items()}
    task: dict[str, Any] = {s: path_for_study_file(path, study_file) for s, path in paths.items()}
    task |= keys
    if sum(path.stat().st_size for path in paths.values()) > MAX_BYTES_READ:
        summary = f"{name}: rows not read yet ({', '.join(paths)}), 'check' does"
        return {"name": name, **task}, summary, ""
    with reading(data, "rows"):
        config = TaskConfig.model_validate({"name": name, **files, **keys})
    try:
        read, items = read_task_items(config, None, ())
    except UserError as error:
        return {"name": name, **task}, f"{name}: {data}", str(error)
    scorer = read.spec.scorer
    notes = read.notes
    if scorer == "loss" and numeric_answers([item for rows in items.values() for item in rows]):
        task["scorer"] = scorer = "number"
        notes = ()  # which recommend that
    elif get_scorer(scorer).compares_with_base:
        task["scorer"] = scorer
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in items.items())
    dropped = f", {read.dropped:,} dropped" if read.dropped else ""
    summary = f"{name}: {counts} rows{dropped} ({read.row_shape}), scorer {scorer}"
    return {"name": name, **task}, "\n".join((summary, *notes)), ""


def split_files(data: Path) -> dict[str, Path]:
    """The file of each split: a single file is ``train``, a folder has a file per split."""
    if not data.is_dir():
        check_file(data)
        return {"train": data}
    found = {}
    for split in SPLIT_FILES:
        names = OTHER_NAMES.get(split, (split,))
        files = [path for name in names for s in READERS if (path := data / (name + s)).is_file()]
        if files:
            found[split] = files[0]
    if "train" not in found:
        raise UserError(
            data,
            "no file of training rows",
            f"train.jsonl or another of {', '.join(READERS)}",
            "name the file itself with --data",
        )
    return found


def task_name(data: Path) -> str:
    """A name of the task from that of the file, or of its folder if the file is called train."""
    path = Path(os.path.normpath(data.absolute()))
    stem = path.name if data.is_dir() else path.stem
    if stem in (*SPLIT_FILES, DEV, "data"):
        stem = path.parent.name if data.is_file() else path.name
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:40]
    if name in ("", "data", *SPLIT_FILES):
        return OWN_TASK
    return f"my_{name}" if name in NAMED_TASKS else name


# --- what is missing ----------------------------------------------------------------------------


def missing_pieces(config: StudyConfig) -> list[str]:
    """What a study needs and does not find here, a sentence each; the hub is not asked."""
    problems = [str(problem) for problem in missing_rows(config)]
    if config.model.hub is None:
        try:
            model_folder(config.model)
        except UserError as error:
            problems.insert(0, str(error))
    return list(dict.fromkeys(problems))


def hub_pieces(config: StudyConfig) -> list[str]:
    """What is read from the hub: the model, and tasks by name."""
    model = [] if config.model.hub is None else [config.model.hub]
    return [*model, *hub_tasks(config)]


# --- defaults of the questions ------------------------------------------------------------------


def default_model() -> str | None:
    """A model that was fetched before."""
    return next(filter(is_cached, KNOWN_MODELS), None)


def default_rows() -> str | None:
    """The first ``train`` file in ``data`` or in the current folder; None without one."""
    places = (Path(folder) / f"train{suffix}" for folder in ("data", ".") for suffix in READERS)
    return next((str(path) for path in places if path.is_file()), None)
