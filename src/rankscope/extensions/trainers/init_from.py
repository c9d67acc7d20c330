"""``rankscope init --from``: a study around the run that another trainer's file describes.

The study file begins with a table of the file's keys that have a value, including keys without a
place in a study. Like ``new_study``, it needs no torch.
"""

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankscope.cli.setup_verbs import DescribedRun
from rankscope.config.arm import resolved_alpha
from rankscope.config.study import ModelConfig
from rankscope.config.yaml_changes import read_values, with_values
from rankscope.data.sources import READERS, read_file
from rankscope.errors import UserError
from rankscope.extensions.trainers.files import PLACES, TrainerFile, read_trainer_file
from rankscope.tools.new_study import MAX_BYTES_READ, model_for_study_file, own_rows, split_files

MAX_RANK = 256  # No rank above it that the file does not have itself
DEFAULT_RATES = [1e-4, 5e-4]  # The preset's, if the file has none
HUB_ID = r"[\w.-]+(/[\w.-]+)?"
ALPACA = {"prompt": "instruction", "completion": "output"}
COPIED = ("epochs", "max_steps", "batch_size", "gradient_accumulation", "schedule", "weight_decay",
          "max_grad_norm", "max_length", "gradient_checkpointing")  # fmt: skip
"""Settings that are keys of ``train`` under the same name."""
HEAD_WIDTH = 98


def study_of_trainer_file(
    path: Path, file: Path, model: str | None, data: Path | None
) -> DescribedRun:
    """Make a study of the run that another trainer's file describes.

    Args:
        path: the file, or an adapter's folder.
        file: the future study file, which relative paths start from.
        model: the base, in place of the file's.
        data: the rows, in place of the file's.

    Raises:
        UserError: every reason why no study can be made.
    """
    run = read_trainer_file(path)
    given = {name for name, value in (("model", model), ("rows", data)) if value}
    faults = [f for f in run.faults if run.setting(f.partition(":")[0]) not in given]
    faults += run.problems()
    base = _base(run, model, file)
    if not base:
        faults.append("found no base model, expected one; give --model")
    elif not re.fullmatch(HUB_ID, str(base.get("hub", "a/b"))):
        faults.append(f"found no folder {base['hub']} here, expected the base; give --model")
    elif str(base.get("hub", "")).endswith("-bnb-4bit"):
        faults.append(f"found {base['hub']}, in 4 bits already; give the original with --model")
    lacking = [name for name in ("rank", "alpha") if name not in run.facts]
    faults += [f"found no {name}, expected one" for name in lacking]
    if len(methods := run.methods) > 1:
        faults.append(f"found {' and '.join(methods)} together, expected one of them")
    sets = [{"path": str(data.absolute())}] if data else run.data_sets()
    faults += [fault for data_set in sets for fault in data_set.get("faults", ())]
    parts = [_part(run, s, file, faults) for s in sets if s.get("path") and not s.get("faults")]
    forms = {(first["plain words"] or run.is_plain(first), run.labels(first))
             for _, first, _ in parts}  # fmt: skip
    if len(forms) > 1:
        faults.append("found data sets of other templates or labels, expected one; give --data")
    if not (parts or any(data_set.get("faults") for data_set in sets)):
        faults.append("found no rows, expected a data set; give --data")
    for name in given:
        run.went = [(k, v, "replaced by an option" if run.setting(k) == name else p)
                    for k, v, p in run.went]  # fmt: skip
    if faults:
        faults += [f"{entry} is not understood" for entry in run.unknown]
        do = "change the file, or give --model and --data in place of what it has"
        raise UserError(path, f"{len(faults)} faults in a file of {run.name}", "", do, faults)
    return _assembled(run, base, parts)


def _base(run: TrainerFile, model: str | None, file: Path) -> dict[str, Any]:
    """Return the keys of ``model``; none if the file has no base."""
    if model is None and (name := run.facts.get("model")):
        place = run.path_of(name)
        if place is None or not place.is_dir():
            revision = run.facts.get("revision", "main")
            return {"hub": str(name)} | ({} if revision == "main" else {"revision": revision})
        model = str(place)
    return ModelConfig.from_short_form(model_for_study_file(model, file)) if model else {}


def _part(
    run: TrainerFile, data_set: Mapping[str, Any], file: Path, faults: list[str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return (keys of the task, first row, lines about them); the last line is a fault of the
    rows."""
    name, keys = str(data_set["path"]), dict(data_set.get("keys", {}))
    notes, wordings = [*data_set.get("notes", ())], data_set.get("wordings")
    first: dict[str, Any] = {"plain words": data_set.get("plain", False)}
    paths = split_files(place) if (place := run.path_of(name)) else {}
    is_small = sum(path.stat().st_size for path in paths.values()) <= MAX_BYTES_READ
    rows = read_file(paths["train"]) if paths and is_small else []
    if wordings:
        number = sum(bool(row.fields.get(wordings[2])) for row in rows)
        is_alpaca = keys.get("fields", ALPACA) == ALPACA
        if rows and number in (0, len(rows)):
            keys["prompt"] = wordings[0 if number else 1]
        elif is_alpaca:
            count = f"{number} of {len(rows)} rows have an {wordings[2]}"
            words = f"{count}: it follows a blank line here, other words in {run.name}"
            unread = "rows were not read: prompts are worded as the study does, not as"
            notes.append(words if rows else f"{unread} {run.name} does")
        elif wordings[0] == wordings[1]:
            keys["prompt"] = wordings[0]
        else:
            found = f"{name}: found words for rows with and without {wordings[2]}"
            faults.append(f"{found}, expected either; give prompt and completion with --data")
        if is_alpaca:
            keys.pop("fields", None)
    if place is None:
        if not re.fullmatch(HUB_ID, name) or Path(name).suffix in READERS:
            faults.append(f"found no rows at {name}, expected a file or a hub id; give --data")
        task_name = re.sub(r"[^\w-]+", "_", name.rpartition("/")[2])
        task = {"name": task_name, "hub": name, **keys}
        return task, first, [f"{name}: rows of the hub", *notes, ""]
    task, summary, problem = own_rows(place, file, keys)
    first |= rows[0].fields if rows else {}
    first |= {field: first.get(column) for field, column in keys.get("fields", {}).items()}
    return task | {"rows": len(rows)}, first, [summary, *notes, problem]


def _assembled(
    run: TrainerFile,
    base: dict[str, Any],
    parts: list[tuple[dict[str, Any], dict[str, Any], list[str]]],
) -> DescribedRun:
    row, tasks = parts[0][1], [task for task, _, _ in parts]
    notes = [*run.notes(row), *(note for _, _, lines in parts for note in lines[1:-1])]
    if not row.keys() - {"plain words"}:
        notes.append("rows were not read: look at train.labels and model.prompt_format")
    if row["plain words"] or run.is_plain(row):
        base["prompt_format"] = "plain"
        notes.append(f"model.prompt_format: plain, as {run.name} has no template around these rows")
    counts = [task.pop("rows", 0) for task in tasks]
    if most := run.facts.get("max_rows"):
        counts = [min(number, most) for number in counts]
        tasks = [task | {"max_train_rows": most} for task in tasks]
    warmup = _warmup(run, sum(counts) if all(counts) else 0, notes)
    names = [str(task["name"]) for task in tasks]
    if len({*names}) < len(names):
        names = [f"{name}_{place}" for place, name in enumerate(names, start=1)]
        tasks = [task | {"name": name} for task, name in zip(tasks, names, strict=True)]
    both = {"name": "_".join(names)[:60], "mixture": names}
    head = _table(run, [*notes, f"train.labels: {run.labels(row)}"])
    given = dict[str, Any](model=base, arms=[_arm(run)], train=_train(run, warmup, run.labels(row)))
    given |= {"quantize": "4bit"} if run.facts.get("four_bit") else {}

    def study(text: str) -> str:
        values = read_values(text) | given
        if len(tasks) > 1:
            values["evaluate"]["cross_domain"] = tasks
        return f"{head}#\n{with_values(text, values)}"

    told = [lines[0] for _, _, lines in parts]
    told.append(f"a file of {run.name}: {len(run.went)} keys are in the study, {len(run.left)} are "
                f"not, {len(run.unknown)} are not understood (listed at its head)")  # fmt: skip
    told += [f"not understood: {entry}" for entry in run.unknown]
    problem = "; ".join(lines[-1] for _, _, lines in parts if lines[-1])
    short = "pocket" if "pocket" in base else str(next(iter(base.values())))
    return short, tasks[0] if len(tasks) == 1 else both, study, "\n".join(told), problem


def _arm(run: TrainerFile) -> dict[str, Any]:
    """Return an arm whose grid has the run's rank and rate in the middle."""
    facts, rank = run.facts, run.facts["rank"]
    alpha, method = resolved_alpha(facts["alpha"], rank), run.methods[0]
    ranks = sorted({max(1, rank // 4), rank, max(rank, min(4 * rank, MAX_RANK))})
    ratio = alpha / rank
    return {
        "method": method,
        "rank": ranks,
        # rsLoRA's own scaling keeps the size of the update at any rank.
        "alpha": alpha if method == "rslora" else f"{int(ratio) if ratio % 1 == 0 else ratio}r",
        "lr": [f * facts["lr"] for f in (0.5, 1, 2)] if "lr" in facts else DEFAULT_RATES,
        **{name: facts[name] for name in ("targets", "dropout", "lr_ratio") if facts.get(name)},
    }


def _train(run: TrainerFile, warmup: float, labels: str) -> dict[str, Any]:
    values = {name: run.facts[name] for name in COPIED if name in run.facts}
    if "max_steps" in values:
        values.pop("epochs", None)
    return values | {"warmup_fraction": warmup, "labels": labels}


def _warmup(run: TrainerFile, num_rows: int, notes: list[str]) -> float:
    """Return warm-up as a share of the steps of the run."""
    facts = run.facts
    if run.values.get(run.sources.get("schedule", "")) == "constant":
        return 0.0  # in transformers, a schedule without warm-up
    if (steps := float(facts.get("warmup", 0.1))) < 1:
        return steps
    batch = facts["batch_size"] * facts["gradient_accumulation"]
    total = float(facts.get("max_steps") or math.ceil(num_rows / batch) * facts["epochs"])
    if steps >= total:
        notes.append(f"warm-up of {steps:g} steps: the number of steps is not known or smaller, so "
                     "train.warmup_fraction is 0.1: set it to their share")  # fmt: skip
        return 0.1
    notes.append(f"train.warmup_fraction is {steps:g} of about {total:g} steps")
    return round(steps / total, 4)


def _table(run: TrainerFile, notes: list[str]) -> str:
    """Write the head of the study file: every key, and its place in the study."""
    path = run.document.path
    content = path.read_bytes() if path.is_file() else (path / "adapter_config.json").read_bytes()
    lines = [f"Made from {path}, a file of {run.name} (sha256 "
             f"{hashlib.sha256(content).hexdigest()[:12]}).", "", "In the study:"]  # fmt: skip
    unset = [(f"({fact})", value, f"{PLACES[fact]} (default of {run.name})")
             for fact, value in run.facts.items() if fact not in run.sources]  # fmt: skip
    lines += [_entry(*entry) for entry in (*run.went, *unset)]
    lines += ["", "Not in the study:", *(_entry(*entry) for entry in run.left)] if run.left else []
    lines += ["", "Not understood:", *(f"  {entry}" for entry in run.unknown)] * bool(run.unknown)
    lines += ["", "Rows and steps:", *(f"  {note}" for note in notes)] if notes else []
    wrapped = [textwrap.wrap(line, HEAD_WIDTH, subsequent_indent=" " * 8) or [""] for line in lines]
    return "".join(f"# {line}".rstrip() + "\n" for one in wrapped for line in one)


def _entry(key: str, value: Any, text: str) -> str:
    shown = json.dumps(value, default=str)
    return f"  {key} = {shown if len(shown) < 50 else shown[:47] + '...'} -> {text}"
