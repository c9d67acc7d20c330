"""``rankscope import``: scores from elsewhere become the folder of a finished study.

It has no weights; otherwise it reads like any other. docs/your-model-and-data.md lists the formats.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from rankscope.errors import UserError
from rankscope.evaluate.metrics import standard_error
from rankscope.extensions.imports.score_files import (
    ITEM,
    MEAN,
    MODEL,
    OF_ARM,
    Said,
    plain_name,
    read_scores,
)
from rankscope.filesystem import check_taken, folder_in_one_step
from rankscope.formatting import count, join_names
from rankscope.hashing import canonical_json, sha256_json
from rankscope.models.given import trial_of_given
from rankscope.models.methods import all_methods
from rankscope.records import (
    BASE,
    EvalRecord,
    GivenModel,
    ItemResult,
    ModelRecord,
    TaskRecord,
    TrainRecord,
    TrialSpec,
    write_items,
)
from rankscope.run.given import given_record, store_finished
from rankscope.run.versions import provenance
from rankscope.store import Artifact, Ledger, items_path

LOWER = re.compile(
    r"(?i)(?<![a-z])(loss|nll|entropy|perplexity|ppl|bits|bpb|brier|[wct]er|r?mse|mae|err|error)"
    r"(?![a-z])"
)
"""Names of metrics that are better if lower."""
HIGHER = re.compile(
    r"(?i)score|\w*(acc|accuracy|f1)(_\w+)?|exact_match|em|(rouge|bleu|chrf)[\w+]*|mcc|pass@\d+"
    r"|precision|recall|reward|win_rate|likelihood|log_?prob(ability)?"
)
Options = Mapping[str, str | None]


def import_scores(
    source: Path, out: Path, columns: Sequence[str] = (), base: str = BASE, **options: str | None
) -> None:
    """Write the study of the scores in a file or folder to the new folder ``out``.

    Args:
        columns: ``NAME=COLUMN``, our name of a column and the source's.
        base: the arm that is the untuned model, or its mean scores: ``TASK=SCORE,TASK=SCORE``.
        options: ``task`` is the arms' training task; None takes the only one. ``unit`` is that of
            all scores; None recognizes each task's. ``retention`` and ``lower`` are names by
            commas, or "none". ``retention`` names tasks; None takes all others. ``lower`` names
            metrics or tasks that are better if lower; None refuses metrics of unknown direction.

    Raises:
        UserError: every fault of the scores; nothing is written then.
    """
    check_taken(out)
    said: Said = ["The models were trained and scored elsewhere."]
    named = dict(text.partition("=")[::2] for text in columns)
    table = read_scores(source, named, base, options.get("task"), said)
    if not table.empty:
        table = _matched(table, said)
        roles = _roles(table, options, said)
        parts = [_scaled(part, options, said) for _, part in table.groupby("task")]
    if faults := [fault for fault in said if isinstance(fault, UserError)]:
        expected = "scores of a base and of its arms"
        raise UserError(source, count(len(faults), "fault"), expected, "correct them", faults)
    tasks = [_task(part, roles, source.name) for part in parts]
    tasks.sort(key=lambda task: not task.trained_on)
    table, notes = pd.concat(parts), list(map(str, said))
    _write(out, source, table, tasks, _trials(table, tasks[0].name, notes), notes)


def _matched(table: pd.DataFrame, said: Said) -> pd.DataFrame:
    """Keep the scores of every model on the items that the base has."""
    models, kept = {*table.set_index(MODEL).index}, [table[:0]]
    if not {BASE} < {*table["arm"]}:
        do = "name the base with --base NAME, or give its means: --base TASK=SCORE"
        found = f"arms {', '.join(dict.fromkeys(table['arm']))}"
        said.append(UserError("column arm", found, f"{BASE!r} and others", do))
    for (task, split), part in table.dropna(subset="score").groupby(ITEM[:2]):
        items = {*part[part["arm"] == BASE]["item"]} or {*part["item"]}
        own = part[part["item"].isin(items)]
        sizes = own.groupby(MODEL).size()
        if (BASE, 0) not in sizes or len(sizes) < min(2, part.groupby(MODEL).ngroups):
            found = f"no {split} item that the base and another model have"
            do = f"add rows of the base, or give its mean: --base {task}=SCORE"
            said.append(UserError(f"task {task}", found, "one or more", do))
        if left_out := len({*part["item"]} - items):
            of = f"{left_out:,} of {part['item'].nunique():,} {split} items"
            said.append(f"{task}: {of} are left out, because the base lacks them.")
        if fewer := [f"{a} seed={s:g} has {n:,}" for (a, s), n in sizes.items() if n < len(items)]:
            said.append(f"{task}: of {len(items):,} {split} items, {join_names(fewer)}.")
        if lacking := sorted(f"{arm} seed={seed:g}" for arm, seed in models - {*sizes.index}):
            said.append(f"{task}: there are no {split} scores of {join_names(lacking)}.")
        if items == {MEAN} and own[["items", "stderr"]].isna().all(axis=1).any():
            said.append(f"{task}: means come without items or errors, so intervals are wide.")
        kept.append(own)
    return pd.concat(kept)


def _names(options: Options, key: str) -> set[str]:
    return {plain_name(name) for name in (options.get(key) or "").split(",")} - {"", "none"}


def _roles(table: pd.DataFrame, options: Options, said: Said) -> dict[str, str]:
    """Return the roles of the tasks by name."""
    stated = table.groupby("task")["role"].max()
    kept = _names(options, "retention") or {*stated[stated == "retention"].index}
    free = [name for name, role in stated.items() if not role and name not in kept]
    trained = [*_names(options, "task")] or [*stated[stated == "in_domain"].index] or free
    others = [name for name in free if name not in trained and options.get("retention") is None]
    if others:
        kept |= {*others}
        said.append(f"A fall on {join_names(others)} is forgetting; --retention can name others.")
    names = {*table["metric"], *(name.partition(",")[0] for name in table["metric"].unique())}
    for name in _names(options, "lower") - {*map(plain_name, names)} - {*stated.index}:
        said.append(UserError(f"--lower {name}", "no such metric", "a metric or task"))
    for name in {*trained, *kept} - {*stated.index}:
        said.append(UserError(f"task {name}", "no scores", f"one of {', '.join(stated.index)}"))
    if len(trained) != 1 or trained[0] in kept:
        found, do = ", ".join(trained) or "none", f"name it: --task {' or '.join(stated.index)}"
        said.append(UserError("--task", found, "the one task that the arms were trained on", do))
    roles = {name: "retention" if name in kept else "cross_domain" for name in stated.index}
    return roles | dict.fromkeys(trained, "in_domain")


def _scaled(part: pd.DataFrame, options: Options, said: Said) -> pd.DataFrame:
    """Convert the scores of one task to its unit: percentages to shares, losses to their
    negative."""
    task, metric, unit, stated = (part[name].max() for name in ("task", "metric", "unit", "lower"))
    name, unit, scores = metric.partition(",")[0], options.get("unit") or unit, part["score"]
    called = task if name.lower() == "score" else name
    is_loss = stated > 0 if stated >= 0 else bool(LOWER.search(called))
    if {task, *map(plain_name, (name, metric))} & _names(options, "lower"):
        is_loss = True
    elif not (is_loss or stated >= 0 or options.get("lower") or HIGHER.fullmatch(name)):
        do = f"give --lower {name} if less is better, else --lower none"
        said.append(UserError(f"task {task}", f"the metric {name!r}", "a known direction", do))
    low, high = scores.min(), scores.max()
    is_percent = low >= 0 and 1 < high <= 100 and not ((scores > 0) & (scores <= 1)).any()
    if is_percent and (unit == "accuracy" or not (unit or is_loss)):
        said.append(f"{task}: scores up to {high:g} are percentages and are divided by 100.")
        part = part.assign(**(part[["score", "stderr"]] / 100).round(12))
        low, high = low / 100, high / 100
    is_share = low >= 0 and high <= 1
    is_possible = low >= 0 if is_loss else low <= 0 if unit else high <= 0 or is_share
    if not (is_share if unit == "accuracy" else is_possible):
        found, do = f"scores from {low:g} to {high:g}", f"give --lower {name} if less is better"
        expected = "shares (0 to 1), percentages (none between 0 and 1) or nats per token (below 0)"
        said.append(UserError(f"task {task}", found, expected, f"correct them, or {do}"))
    if is_loss:
        how = "subtracted from 1" if unit == "accuracy" else "negated"
        said.append(f"{task}: less {called} is better, so its scores are {how}.")
        part = part.assign(score=(unit == "accuracy") - part["score"])
        unit = unit or ("log_probability" if re.search("loss|nll|entropy", called) else "other")
    return part.assign(unit=unit or ("accuracy" if is_share else "log_probability"))


def _task(part: pd.DataFrame, roles: Mapping[str, str], source: str) -> TaskRecord:
    name, metric, unit, chance = (part[n].max() for n in ("task", "metric", "unit", "chance"))
    answers = dict(list(part[part["arm"] == BASE].groupby("split")))
    rows = {split: int(max(len(a), a["items"].max())) for split, a in answers.items()}
    # Prompts are not known: tasks of two studies are the same if their bases answered alike.
    known = {s: [name, metric, a[["item", "score"]].values.tolist()] for s, a in answers.items()}
    hashes = {split: sha256_json(values) for split, values in known.items()}
    record = {
        "name": name,
        "roles": (roles[name],),
        "trained_on": roles[name] == "in_domain",
        "metric": metric,
        "score_unit": None if unit == "other" else unit,
        "chance": chance if chance >= 0 else None,
        "rows": {"train": 0, "validation": 0, "test": 0, **rows},
        "dropped": 0,
        "contamination": {},
        "source": source,
        "sha256": sha256_json(hashes),
        **{f"{split}_sha256": found for split, found in hashes.items()},
    }
    return TaskRecord.model_validate(record)


def _point(arm: pd.Series) -> dict[str, Any]:
    """Return method and settings of an arm as fields of its trials."""
    known = {method.name: method for method in all_methods() if not method.takes_settings}
    rank = int(arm["rank"]) if arm["rank"] >= 1 else None
    name = "full" if arm["method"].startswith("full") else arm["method"]
    name = name or ("lora" if rank else "unknown")
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
    """Make trials by arm and seed.

    An arm whose settings tell it from all others is a point of the grid; any other goes by its
    name.
    """
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
    named = {name: label for name, label in labels.items() if arms[name]["named"] != 0}
    if renamed := [f"{label} is {name}" for name, label in named.items() if name != label]:
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
    full = [train.trainable_parameters for spec, train in trials.values() if spec.is_full]
    model = {
        **dict.fromkeys(("architecture", "dtype", "device"), "unknown"),
        **dict.fromkeys(("num_layers", "hidden_size", "vocab_size"), 0),
        "label": f"the base of {source.name}",
        "sha256": sha256_json([task.sha256 for task in tasks]),
        "num_parameters": max(full, default=0),
        "prompt_format": "plain",
    }
    name = plain_name(source.stem) or "imported"
    kept = [task.name for task in tasks if "retention" in task.roles]
    others = [task.name for task in tasks if task.name not in kept]
    evaluate = {"cross_domain": others, "retention": kept}
    config = {"name": name, "model": {"path": "unknown"}, "evaluate": evaluate}
    with folder_in_one_step(out) as folder, Ledger.open(folder, write=True) as ledger:
        ledger.put_study(name, config, ModelRecord.model_validate(model), tasks, provenance())
        ledger.put_notes(notes)
        ledger.put_trials([spec for spec, _ in trials.values()])
        records, artifacts = list[EvalRecord](), list[Artifact]()
        with ledger.stage() as staged:
            for (arm, seed, task, split), part in table.groupby([*MODEL, *ITEM[:2]], sort=False):
                trial_id = BASE if arm == BASE else trials[arm, seed][0].trial_id
                records.append(_record(part, {"trial_id": trial_id, "task": task, "split": split}))
                write_items(staged / "items.parquet", _items(part))
                place = items_path(trial_id, task, split)
                artifacts += ledger.publish(staged / "items.parquet", place)
        store_finished(ledger, [*trials.values()], records, artifacts)


def _record(part: pd.DataFrame, key: Mapping[str, str]) -> EvalRecord:
    scores, first = part["score"].tolist(), part.iloc[0]
    score, n, error = fmean(scores), len(scores), standard_error(scores)
    if first["item"] == MEAN:
        is_known = first["items"] >= 1
        n, error = int(first["items"]) if is_known else 1, first["stderr"]
        if not error >= 0:
            is_share = is_known and first["unit"] == "accuracy"
            error = math.sqrt(score * (1 - score) / n) if is_share else None
    record = {"metric": first["metric"], "score": score, "standard_error": error, "n": n}
    costs = {"metrics": {first["metric"]: score}, "seconds": 0.0, "num_tokens": 0}
    return EvalRecord.model_validate({**key, **record, **costs})


def _items(part: pd.DataFrame) -> list[ItemResult]:
    columns = (part[name] for name in ("item", "subject", "score", "gold_logprob"))
    return [
        ItemResult(item, subject or None, score, "", "", None if math.isnan(gold) else gold, 1)
        for item, subject, score, gold in zip(*columns, strict=True)
    ]
