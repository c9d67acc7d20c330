"""``rankscope init``: a commented study file from a preset and the user's model and rows.

Nothing here needs torch: rows are read to recognize their shape and scorer, and models are only
located.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rankscope.config.loader import load_study_file
from rankscope.config.presets import ON_POCKET, PRESET_TEXTS, PRESETS
from rankscope.config.section import short_repr
from rankscope.config.study import ModelConfig, StudyConfig
from rankscope.config.task import TaskConfig
from rankscope.config.yaml_changes import read_values, with_values
from rankscope.data.registry import named_tasks
from rankscope.data.sources import DEV, READERS, SPLIT_FILES, check_file
from rankscope.data.task_source import hub_tasks, missing_rows
from rankscope.data.tasks import numeric_answers, read_task_items
from rankscope.errors import UserError, did_you_mean, reading
from rankscope.evaluate.scorers import get_scorer
from rankscope.models.model_folder import model_folder
from rankscope.progress import ProgressReporter

if TYPE_CHECKING:
    from rankscope.run.prepared import PreparedStudy

OWN_TASK = "my_task"  # Name of the task in presets that train on the user's rows
DEFAULT_RETENTION = "common_facts"
OTHER_NAMES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test", "eval")}
"""Maps a split to the names of its file in a folder of rows, the usual one first."""
MAX_BYTES_READ = 20 * 2**20  # A larger file is not read by ``init``, which answers at once


OwnRows = tuple[dict[str, Any], str, str]
"""The user's rows as keys of a task in the study file (name, train, validation, test, scorer); a
summary of what was recognized; and why a study of these rows cannot run as it is, or ''."""


def study_template(
    preset: str,
    model: str | None = None,
    task: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    retention: Iterable[str] = (),
    may_lose: float | None = None,
) -> str:
    """Write the commented study file of a preset.

    Args:
        preset: name of the preset; the default one is that of the task's scorer.
        model: replaces the preset's model; a short form of the ``model`` key, such as ``./folder``
            or ``owner/name``. With ``pocket``, tasks, rates and sizes suit that model.
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
        raise UserError("--preset", short_repr(preset), known, did_you_mean(preset, PRESETS))
    scorer = (task or {}).get("scorer")
    if preset == "default" and scorer is not None:
        preset = get_scorer(scorer).preset
    text, is_pocket = PRESET_TEXTS[preset], False
    study, names = read_values(text), dict[str, str]()
    if model is not None:
        study["model"] = model
        with reading(f"--model {short_repr(model)}", "a model"):
            is_pocket = ModelConfig.model_validate(model).pocket
        if preset == "pocket" and not is_pocket:
            found = f"the model {model!r}"
            raise UserError("--preset pocket", found, "the pocket model", "choose another preset")
    if on_pocket := is_pocket and preset != "pocket":
        names |= ON_POCKET["tasks"]
        study = _on_pocket(study, is_example=task is None)
    if task is not None:
        names[OWN_TASK] = task["name"]
    kept = [*retention] or (ON_POCKET["retention"] if on_pocket else [])
    if kept:
        names[DEFAULT_RETENTION] = kept[0]
    study = _renamed(study, names)
    if kept:
        study["evaluate"]["retention"] = kept
    if task is not None:
        _set_task(study, preset, task)
    if model is not None and (on_pocket or preset == "default"):
        _scale_rates(study, model)
    if may_lose is not None:
        study["objective"] = study.get("objective", {}) | {"max_forgetting": f"{may_lose:g} points"}
    if data_dir is not None:
        study["data_dir"] = data_dir
    return with_values(text, study)


def takes_own_rows(preset: str) -> bool:
    """Whether a preset trains on the user's rows: then its task is an example."""
    return preset in PRESETS and isinstance(read_values(PRESET_TEXTS[preset])["tasks"][0], dict)


def _set_task(study: dict[str, Any], preset: str, task: Mapping[str, Any]) -> None:
    """Put the user's own task in place of a preset's example."""
    if not takes_own_rows(preset):
        found, do = "--data", "leave --data out, or choose the preset 'default'"
        raise UserError(f"--preset {preset}", found, "none, as it trains on named tasks", do)
    study["tasks"][0].pop("train")
    study["tasks"][0] |= dict(task)
    if study["name"] == "my-study":
        study["name"] = task["name"]


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Replace names of tasks in the values of a study."""
    if isinstance(value, dict):
        return {key: _renamed(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [_renamed(entry, names) for entry in value]
    return names.get(value, value) if isinstance(value, str) else value


def _on_pocket(study: dict[str, Any], *, is_example: bool) -> dict[str, Any]:
    """Give a preset sizes that suit the pocket model; ``is_example``: its task has no rows."""
    train, example, width = study["train"], study["tasks"][0], ON_POCKET["width"]
    if isinstance(example, dict) and is_example:
        study["tasks"] = ["gsm8k" if "scorer" in example else OWN_TASK]
    if "max_steps" not in train:
        train |= ON_POCKET["train"]
    train["max_length"] = ON_POCKET["max_length"]
    for settings in (study["evaluate"], *train.get("objective", {}).values()):
        settings["max_new_tokens"] = ON_POCKET["max_new_tokens"]
    for arm in study["arms"]:
        if isinstance(arm.get("rank"), list):
            arm["rank"] = [rank for rank in arm["rank"] if rank <= width]
    if "spectra" in study.get("analyze", {}):
        study["analyze"]["spectra"]["top_k"] = width
    return study | {"dtype": "float32"}


USUAL_RATE, USUAL_WIDTH = 5e-4, 2000
"""LoRA rate that suits a model of this hidden size; the presets' rates do, too."""
RATE_POWER = 0.775
"""Power of (2,000 / hidden size) with which the best rate grows: Schulman et al. 2025, "LoRA
Without Regret", for Llama models."""


def _scale_rates(study: dict[str, Any], model: str) -> None:
    """Adapt the rates of a preset to a model whose configuration is on this machine."""
    try:
        folder = model_folder(ModelConfig.model_validate(model), weights=False)
        hidden = json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"]
        usual = float(f"{USUAL_RATE * (USUAL_WIDTH / hidden) ** RATE_POWER:.1g}")
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return
    for arm in study["arms"]:
        rates = arm["lr"] if isinstance(arm["lr"], list) else [arm["lr"]]
        rates = [float(f"{rate * usual / USUAL_RATE:.2g}") for rate in rates]
        arm["lr"] = rates if len(rates) > 1 else rates[0]


# --- a time to fit ------------------------------------------------------------------------------

SCORING_SHARE = 1 / 3  # Share of the minutes for scores and written answers
FEWEST_ITEMS = 50  # Items of a task and split
LEAST_ROWS = 4  # Rows of an update
WANTED_ARMS = 6  # Arms that should fit into the minutes: a first design


def fit_to_minutes(
    text: str, file: Path, minutes: float, reporter: ProgressReporter, *, anyway: bool = False
) -> tuple[str, dict[str, object]]:
    """Fit a study file to some minutes on this machine.

    The search gets them as its budget. Arms are as long as they can be if a first design must end
    within those minutes.
    ``file`` is the future place of the file, for relative paths. Raises UserError: the study cannot
    be planned, or, unless ``anyway``, is too short for an answer.

    Returns:
        The file, and ``cuts`` in words.
    """
    from rankscope.run.machines import busy_notes, paced_machine
    from rankscope.run.plan import FEWEST_UPDATES, check_time, first_arms
    from rankscope.run.prepare import prepare

    def prepared(values: Mapping[str, Any]) -> "PreparedStudy":
        study = load_study_file(file, text=with_values(text, values))
        return prepare(study, reporter, is_plan=True)

    values = read_values(text) | {"strategy": "search", "budget": f"{minutes:g} minutes"}
    study, cuts = prepared(values), list[str]()
    machine, evaluate, train = paced_machine(study), study.config.evaluate, study.config.train
    base, arms = first_arms(study, machine)
    limit, steps = 60 * minutes, max(1, min(map(study.num_steps, study.trials)))
    of_arms = WANTED_ARMS / len(arms)
    scoring = base["scoring"] + of_arms * sum(arm["scoring"] for arm in arms)
    if scoring > SCORING_SHARE * limit and evaluate.max_items:
        items = max(FEWEST_ITEMS, int(evaluate.max_items * SCORING_SHARE * limit / scoring))
        cuts.append(f"{items} items a split, so gains are known less well")
        values["evaluate"]["max_items"] = items
        scoring *= items / evaluate.max_items
    training = of_arms * sum(arm["training"] for arm in arms)
    room = limit - base["starting"] - scoring
    rows = of_step = train.batch_size * train.gradient_accumulation
    while FEWEST_UPDATES * training / steps > room and rows >= LEAST_ROWS + train.batch_size:
        rows -= train.batch_size
    if rows < of_step:
        cuts.append(f"{rows} rows an update; another number may want other rates")
        values["train"]["gradient_accumulation"] = rows // train.batch_size
        study = prepared(values)  # smaller updates have their own pace
        machine, steps = paced_machine(study), max(1, min(map(study.num_steps, study.trials)))
        training = of_arms * sum(arm["training"] for arm in first_arms(study, machine)[1])
    length = max(FEWEST_UPDATES / steps, min(1.0, room / training))
    if length != 1:
        key = "epochs" if train.max_steps is None else "max_steps"
        number = length * (train.max_steps or train.epochs)
        number = ceil(number) if train.max_steps else ceil(100 * number) / 100
        cuts.append(f"{key} {number:g}; another length may change the order of arms")
        values["train"][key] = number
    if not anyway:
        check_time(prepared(values), machine)
    return with_values(text, values), {"cuts": cuts, "notes": busy_notes()}


# --- paths --------------------------------------------------------------------------------------


def model_for_study_file(model: str, study_file: Path) -> str:
    """Return the ``model`` of a study file for a model named on the command line.

    The path of an existing folder is written as from the study file; other text is unchanged.
    """
    folder = Path(os.path.expanduser(model))  # noqa: PTH111  Path.expanduser fails on unknown users
    return path_for_study_file(folder, study_file) if folder.is_dir() else model


def path_for_study_file(path: Path, study_file: Path) -> str:
    """Write a path relative to the study file's folder if it is below it, else as absolute.

    Relative paths in the study file start at that folder.
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
    name = _task_name(data)
    files = {split: str(path) for split, path in paths.items()}
    task = {s: path_for_study_file(path, study_file) for s, path in paths.items()}
    task = {"name": name, **task, **keys}
    if sum(path.stat().st_size for path in paths.values()) > MAX_BYTES_READ:
        summary = f"{name}: rows not read yet ({', '.join(paths)}), 'check' does"
        return task, summary, ""
    with reading(data, "rows"):
        config = TaskConfig.model_validate({"name": name, **files, **keys})
    try:
        read, items = read_task_items(config, None, ())
    except UserError as error:
        return task, f"{name}: {data}", str(error)
    scorer, notes = read.spec.scorer, read.notes
    if scorer == "loss" and numeric_answers([item for rows in items.values() for item in rows]):
        task["scorer"] = scorer = "number"
        notes = ()  # which recommend that
    elif get_scorer(scorer).compares_with_base:
        task["scorer"] = scorer
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in items.items())
    dropped = f", {read.dropped:,} dropped" if read.dropped else ""
    summary = f"{name}: {counts} rows{dropped} ({read.row_shape}), scorer {scorer}"
    return task, "\n".join((summary, *notes)), ""


def split_files(data: Path) -> dict[str, Path]:
    """Find the file of each split: a single file is ``train``, a folder has a file per split."""
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
        expected = f"train.jsonl or another of {', '.join(READERS)}"
        do = "name the file itself with --data"
        raise UserError(data, "no file of training rows", expected, do)
    return found


def _task_name(data: Path) -> str:
    """Name the task after the file, or after its folder if the file is called train."""
    path = Path(os.path.normpath(data.absolute()))
    stem = path.name if data.is_dir() else path.stem
    if stem in (*SPLIT_FILES, DEV, "data"):
        stem = path.parent.name if data.is_file() else path.name
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:40]
    if name in ("", "data", *SPLIT_FILES):
        return OWN_TASK
    return f"my_{name}" if name in named_tasks() else name


# --- what is missing ----------------------------------------------------------------------------


def missing_pieces(config: StudyConfig) -> list[str]:
    """List the pieces that a study needs and does not find here, a sentence each.

    The hub is not asked.
    """
    problems = [str(problem) for problem in missing_rows(config)]
    if config.model.hub is None:
        try:
            model_folder(config.model)
        except UserError as error:
            problems.insert(0, str(error))
    return list(dict.fromkeys(problems))


def hub_pieces(config: StudyConfig) -> list[str]:
    """List what is read from the hub: the model, and tasks by name."""
    return [*filter(None, [config.model.hub]), *hub_tasks(config)]


def default_rows() -> str | None:
    """Return the first ``train`` file in ``data`` or in the current folder; None without one."""
    places = (Path(folder) / f"train{suffix}" for folder in ("data", ".") for suffix in READERS)
    return next((str(path) for path in places if path.is_file()), None)
