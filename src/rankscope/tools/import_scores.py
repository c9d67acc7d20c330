"""``rankscope import``: scores that were made elsewhere become the folder of a finished study.

It has no weights; otherwise it is read as any other. docs/data.md says what is read.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rankscope.config.section import NAME_PATTERN, NAME_RULE
from rankscope.device import provenance
from rankscope.errors import UserError, did_you_mean
from rankscope.evaluate.metrics import standard_error
from rankscope.filesystem import check_taken, folder_in_one_step
from rankscope.formatting import count, join_names
from rankscope.hashing import canonical_json, sha256_json
from rankscope.models.methods import all_methods
from rankscope.models.study_base import trial_of_given
from rankscope.records import (
    BASE,
    ITEM_SCHEMA,
    EvalRecord,
    GivenModel,
    ModelRecord,
    Split,
    TaskRecord,
    TrainRecord,
    TrialSpec,
)
from rankscope.run.given import given_record
from rankscope.store import Artifact, Ledger, items_path
from rankscope.tools.score_files import ITEM, MODEL, OF_ARM, OF_TASK, SCORE_COLUMNS, read_scores

SINGLE = {**dict.fromkeys(OF_ARM, "arm"), **dict.fromkeys(OF_TASK, "task")}
"""Columns that have one value for each value of another."""
NUMERIC = ["seed", "score", "gold_logprob", "seconds", "memory", "chance", *OF_ARM[1:]]
WORDS = {
    "split": ("validation", "test"),
    "role": ("", "in_domain", "cross_domain", "retention"),
    "unit": ("", "accuracy", "log_probability"),
}
LARGEST = 2**53  # Of the numbers that are read
MEAN = "mean"  # The only item of a table without items


def import_scores(
    source: Path, out: Path, columns: Sequence[str] = (), base: str = BASE, **options: Any
) -> None:
    """Write the study of the scores in a file or folder to the new folder ``out``.

    Args:
        columns: ``NAME=COLUMN``, our name of a column and the source's.
        base: the arm that is the untuned model, or its mean scores: ``TASK=SCORE,TASK=SCORE``.
        options: ``task``, which the arms were trained on, or None for the only one; ``retention``,
            names of tasks; ``unit`` of all scores, or None to recognize each task's.

    Raises:
        UserError: every fault of the scores; nothing is written then.
    """
    check_taken(out)
    faults, notes = list[UserError](), ["The models were trained and scored elsewhere."]
    table = read_scores(source, dict(text.partition("=")[::2] for text in columns), faults)
    missing = [name for name in ("arm", "task", "score") if name not in table]
    if missing or table.empty:
        found = f"no column {', '.join(missing)}" if missing else "no rows"
        do = "name it with --map NAME=COLUMN" if missing else ""
        faults.append(UserError(source, found, "arm, task and score in every row", do))
    elif not (table := _checked(table, base, faults)).empty:
        table = _matched(table, faults, notes)
        tasks = _tasks(table, source.name, options, faults)
    if faults:
        expected = "scores of a base and of its arms"
        raise UserError(source, count(len(faults), "fault"), expected, "correct them", faults)
    trials = _trials(table, tasks[0].name, notes)
    _write(out, source, table, tasks, trials, notes)


def _checked(table: pd.DataFrame, base: str, faults: list[UserError]) -> pd.DataFrame:
    """All columns as numbers and texts, in the rows that can be used; blank texts are empty, blank
    numbers NaN."""
    if "=" in base:
        means = [part.partition("=") for part in base.split(",")]
        own = [{"arm": BASE, "task": task.strip(), "score": score} for task, _, score in means]
        table, base = pd.concat([table, pd.DataFrame(own)]), BASE
    table = table.reindex(columns=SCORE_COLUMNS).reset_index(drop=True)
    texts = table.astype(object).where(table.notna(), "").map(lambda value: str(value).strip())
    for name, default in (("seed", "0"), ("split", "test"), ("item", MEAN)):
        texts[name] = texts[name].replace("", default)
    texts["arm"] = texts["arm"].replace({BASE: "another base", base: BASE})
    numbers = (
        texts[NUMERIC]
        .map(str.lower)
        .replace({"true": "1", "false": "0"})
        .apply(pd.to_numeric, errors="coerce")
    )
    usable = pd.Series(True, table.index)
    for name in SCORE_COLUMNS:
        text, words = texts[name], WORDS.get(name, ())
        bad = ~text.isin(words) if words else (text == "") & (name in ("arm", "task", "score"))
        if name in NUMERIC:
            bad |= (text != "") & ~(numbers[name].abs() < LARGEST)
        usable &= ~bad
        if bad.any():
            expected = " or ".join(filter(None, words)) or "a finite number in every row"
            found = f"{text[bad].iloc[0]!r} in {bad.sum():,} rows, first row {bad.idxmax() + 1}"
            faults.append(UserError(f"column {name}", found, expected))
    table = texts.assign(**numbers)[usable]
    table.loc[table["arm"] == BASE, "seed"] = 0
    for name, of in SINGLE.items():
        values = table[table[name] != ""].groupby(of)[name].nunique()
        if (values > 1).any():
            found = f"several values for {of} {values.idxmax()}"
            faults.append(UserError(f"column {name}", found, "one"))
    table["metric"] = table.groupby("task")["metric"].transform("max").replace("", "score")
    repeated = table.duplicated([*MODEL, *ITEM])
    if repeated.any():
        first = ", ".join(map(str, table[repeated][[*MODEL, *ITEM]].iloc[0]))
        found = f"{repeated.sum():,} more rows of an item, first {first}"
        faults.append(UserError("column item", found, "one row for each model and item"))
    return table[~repeated]


def _matched(table: pd.DataFrame, faults: list[UserError], notes: list[str]) -> pd.DataFrame:
    """The items that every model with scores on their task has, in the order of the table."""
    models, kept = set(table.set_index(MODEL).index), [table[:0]]
    if BASE not in set(table["arm"]) or len(set(table["arm"])) < 2:
        do = "name the base with --base NAME, or give its means: --base TASK=SCORE"
        found = f"arms {', '.join(dict.fromkeys(table['arm']))}"
        faults.append(UserError("column arm", found, f"{BASE!r} and others", do))
    for (task, split), part in table.groupby(ITEM[:2], sort=False):
        scored = set(part.set_index(MODEL).index)
        common = part.groupby("item")["score"].transform("size") == len(scored)
        place, names = pd.factorize(part["item"])
        left_out = len(names) - part[common]["item"].nunique()
        if (BASE, 0) in models - scored:
            is_mean = (split, *names) == ("test", MEAN)
            do = f"give its mean: --base {task}=SCORE" if is_mean else "add its rows"
            faults.append(UserError(f"task {task}", f"no {split} scores of the base", "some", do))
        elif left_out == len(names):
            found = f"no {split} item that the base and all others have"
            faults.append(UserError(f"task {task}", found, "one or more"))
        if left_out:
            of = f"{left_out:,} of {len(names):,} {split} items"
            notes.append(f"{task}: {of} are left out, because some model lacks them.")
        if lacking := sorted(f"{arm} seed={seed:g}" for arm, seed in models - scored):
            notes.append(f"{task}: no {split} scores of {join_names(lacking)}.")
        if [*names] == [MEAN]:
            notes.append(f"{task}: there are means without items, so intervals are wide.")
        kept.append(part.assign(place=place)[common].sort_values("place", kind="stable"))
    return pd.concat(kept)


def _tasks(
    table: pd.DataFrame, source: str, options: Mapping[str, Any], faults: list[UserError]
) -> list[TaskRecord]:
    """The training task first."""
    parts, tasks = dict(list(table.groupby("task", sort=False))), list[TaskRecord]()
    roles = {name: part["role"].max() for name, part in parts.items()}
    kept = options.get("retention") or [n for n, role in roles.items() if role == "retention"]
    trained = [options["task"]] if options.get("task") else []
    trained = trained or [name for name, role in roles.items() if role == "in_domain"]
    trained = trained or [name for name, role in roles.items() if not role and name not in kept]
    for name in {*trained, *kept} - parts.keys():
        hint = did_you_mean(name, parts)
        faults.append(UserError(f"task {name}", "no scores", f"one of {', '.join(parts)}", hint))
    if len(trained) != 1 or trained[0] in kept:
        found, do = ", ".join(trained) or "none", f"name it: --task {' or '.join(parts)}"
        expected = "the one task that the arms were trained on"
        faults.append(UserError("--task", found, expected, do))
    for name, part in parts.items():
        low, high = part["score"].min(), part["score"].max()
        unit = options.get("unit") or part["unit"].max()
        is_share = low >= 0 and high <= 1
        if not re.fullmatch(NAME_PATTERN, name):
            faults.append(UserError("column task", repr(name), NAME_RULE))
        if not is_share and (unit == "accuracy" or (not unit and high > 0)):
            found, do = f"scores from {low:g} to {high:g}", "divide percentages by 100"
            expected = "shares from 0 to 1, or with --metric log_probability nats per token"
            faults.append(UserError(f"task {name}", found, expected, do))
        metric, chance = part["metric"].iloc[0], part["chance"].max()
        answers = part[part["arm"] == BASE].groupby("split")[["item", "score"]]
        # Prompts are not known: tasks of two studies are the same if their bases answered alike.
        hashes = {s: sha256_json([name, metric, a.values.tolist()]) for s, a in answers}
        role = "in_domain" if name in trained else "retention" if name in kept else "cross_domain"
        record = {
            "name": name,
            "roles": (role,),
            "trained_on": name in trained,
            "metric": metric,
            "score_unit": unit or ("accuracy" if is_share else "log_probability"),
            "chance": chance if chance >= 0 else None,
            "rows": {"train": 0, "validation": 0, "test": 0, **{s: len(a) for s, a in answers}},
            "dropped": 0,
            "contamination": {},
            "source": source,
            "sha256": sha256_json(hashes),
            **{f"{split}_sha256": found for split, found in hashes.items()},
        }
        tasks.append(TaskRecord.model_validate(record))
    return sorted(tasks, key=lambda task: not task.trained_on)


def _point(arm: pd.Series) -> dict[str, Any]:
    """Method and settings of an arm as fields of its trials."""
    known = {method.name: method for method in all_methods() if not method.takes_settings}
    rank = int(arm["rank"]) if arm["rank"] >= 1 else None
    name = arm["method"].lower() or ("lora" if rank else "unknown")
    point = {"method": name, "rank": rank, "alpha": None, "lr": max(0.0, arm["lr"])}
    if name not in known or (known[name].has_rank and rank is None):
        other = next(method.name for method in all_methods() if method.takes_settings)
        return point | {"method": other, "peft": canonical_json({"peft_type": name.upper()})}
    if rank is None or not known[name].has_rank:
        return point | {"rank": None}
    return point | {"alpha": arm["alpha"] if arm["alpha"] > 0 else 2.0 * rank}


def _trials(
    table: pd.DataFrame, task: str, notes: list[str]
) -> dict[tuple[str, int], tuple[TrialSpec, TrainRecord]]:
    """By arm and seed. An arm whose settings tell it from all others is a point of the grid; any
    other goes by its name."""
    tuned, trials = table[table["arm"] != BASE], {}
    arms = dict(tuned.groupby("arm", sort=False)[OF_ARM].max().iterrows())
    points = {name: _point(arm) for name, arm in arms.items()}
    shared = Counter(map(canonical_json, points.values()))
    is_sized = all(arm["parameters"] > 0 for arm in arms.values())
    for (name, seed), rows in tuned.groupby(MODEL, sort=False):
        point, arm = points[name], arms[name]
        scores = sha256_json([seed, rows[[*ITEM, "score"]].values.tolist()])
        is_told = (arm["method"] or point["rank"]) and shared[canonical_json(point)] == 1
        given = GivenModel(name=name, folder="", sha256=sha256_json([name, point]))
        own = {"task": task, "seed": int(seed), "targets": ()}
        trial = trial_of_given(given, scores, point | own)
        train = given_record(trial, int(arm["parameters"]) if is_sized else 0)
        seconds, memory = (max(0.0, rows[cost].max()) for cost in ("seconds", "memory"))
        costs = {"seconds": seconds, "peak_memory_bytes": int(memory)}
        if is_told and not arm["named"] > 0:
            trial = trial.model_copy(update={"given": None})
        trials[name, seed] = trial, train.model_copy(update=costs)
    labels = {name: spec.arm_label for (name, _), (spec, _) in trials.items()}
    if renamed := [f"{label} is {name}" for name, label in labels.items() if name != label]:
        notes.append(f"Arms are called by their settings: {'; '.join(renamed)}.")
    if any(point["alpha"] and not arms[name]["alpha"] > 0 for name, point in points.items()):
        notes.append("An alpha that is not given is taken to be twice the rank.")
    if not is_sized:
        notes.append("Numbers of parameters are not given for all arms: a lower rank is smaller.")
    return trials


def _write(
    out: Path,
    source: Path,
    table: pd.DataFrame,
    tasks: Sequence[TaskRecord],
    trials: Mapping[tuple[str, int], tuple[TrialSpec, TrainRecord]],
    notes: Sequence[str],
) -> None:
    specs = [spec for spec, _ in trials.values()]
    full = [train.trainable_parameters for spec, train in trials.values() if spec.is_full]
    model = {
        **dict.fromkeys(("architecture", "dtype", "device"), "unknown"),
        **dict.fromkeys(("num_layers", "hidden_size", "vocab_size"), 0),
        "label": f"the base of {source.name}",
        "sha256": sha256_json([task.sha256 for task in tasks]),
        "num_parameters": max(full, default=0),
        "prompt_format": "plain",
    }
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem).strip("-_")[:64] or "imported"
    kept = [task.name for task in tasks if "retention" in task.roles]
    others = [task.name for task in tasks if task.name not in kept]
    evaluate = {"cross_domain": others, "retention": kept}
    config = {"name": name, "model": {"path": "unknown"}, "evaluate": evaluate}
    with folder_in_one_step(out) as folder, Ledger.open(folder, write=True) as ledger:
        ledger.put_study(name, config, ModelRecord.model_validate(model), tasks, provenance())
        ledger.put_notes(notes)
        ledger.put_trials(specs)
        ledger.commit([train for _, train in trials.values()])
        records, artifacts = list[EvalRecord](), list[Artifact]()
        with ledger.stage() as staged:
            for (arm, seed, task, split), part in table.groupby([*MODEL, *ITEM[:2]], sort=False):
                trial_id = BASE if arm == BASE else trials[arm, seed][0].trial_id
                records.append(_record(trial_id, task, split, part))
                pq.write_table(_items(part), staged / "items.parquet")
                place = items_path(trial_id, task, split)
                artifacts += ledger.publish(staged / "items.parquet", place)
        ledger.commit(records, artifacts)
        ledger.finish_trials([spec.trial_id for spec in specs])


def _record(trial_id: str, task: str, split: Split, part: pd.DataFrame) -> EvalRecord:
    scores, metric = part["score"].tolist(), part["metric"].iloc[0]
    return EvalRecord(
        trial_id=trial_id,
        task=task,
        split=split,
        metric=metric,
        score=fmean(scores),
        standard_error=standard_error(scores),
        n=len(scores),
        metrics={metric: fmean(scores)},
        seconds=0.0,
        num_tokens=0,
    )


def _items(part: pd.DataFrame) -> pa.Table:
    items = part.rename(columns={"item": "item_id"}).assign(gold="", prediction="", gold_tokens=1)
    items["subject"] = items["subject"].where(items["subject"] != "", None)
    items = items.reindex(columns=ITEM_SCHEMA.names).astype(object)  # blank numbers become null
    return pa.Table.from_pandas(items, ITEM_SCHEMA, preserve_index=False)
