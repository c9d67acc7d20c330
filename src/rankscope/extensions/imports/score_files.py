"""Tables of scores that other programs wrote, one row for each model, task and item.

The module reads CSV and Parquet with a row for each score or for each model. It reads samples of
lm-evaluation-harness (``--log_samples``), which name their filter and metrics from 0.4.7 on. It
also reads results of the MetaMathQA comparison in PEFT's repository (``method_comparison``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rankscope.errors import UserError, reading
from rankscope.filesystem import read_json_object
from rankscope.formatting import join_names
from rankscope.records import BASE

Said = list[UserError | str]
"""Faults, and notes for the reader of the study."""
MODEL = ["arm", "seed"]
ITEM = ["task", "split", "item"]
OF_ARM = ["method", "rank", "alpha", "lr", "parameters", "named"]
OF_TASK = ["role", "metric", "unit", "chance", "lower"]
OF_MEAN = ["stderr", "items"]
NUMERIC = ["seed", *OF_ARM[1:], "chance", "lower", *OF_MEAN, "score", "gold_logprob"]
NUMERIC += ["seconds", "memory"]
SCORE_COLUMNS = [*MODEL, *ITEM, "method", *OF_TASK[:3], "subject", *NUMERIC[1:]]
SINGLE = {**dict.fromkeys(OF_ARM, "arm"), **dict.fromkeys(OF_TASK, "task")}
"""Maps a column to the one whose values determine its value."""
CELL_RULES = {
    **dict.fromkeys(("arm", "task"), "a name in every row"),
    **dict.fromkeys(NUMERIC, "a finite number"),
    **dict.fromkeys(("seed", "rank", "items"), "a whole number"),
    "split": "validation or test",
    "role": "in_domain or cross_domain or retention",
    "unit": "accuracy or log_probability",
}
LARGEST = 2**53  # Largest number that is read
MEAN = "mean"  # The only item of a table without items
NO_NUMBER = ("nan", "-", "\N{EN DASH}", "\N{EM DASH}", "na", "n/a", "none", "null", BASE, "full")
"""Cells that hold no number; for a rank, ``base`` and ``full`` name the method."""
CELLS = {"true": "1", "false": "0", **dict.fromkeys(NO_NUMBER, "")}
COMMON_HEADERS = {"arm": "name", "rank": "r", "alpha": "lora_alpha", "lr": "learning_rate"}
NOT_A_TASK = re.compile(
    r"(?i)unnamed.*|index|id|n|train_.*|(eval|val)_(loss|samples.*)|max_.*|.*_(rows|stderr|items)"
    r"|.*(epoch|step|batch|dropout|decay|warmup|time|hour|token|memory|param).*"
)
"""Matches columns of numbers that trainers write beside scores."""

SAMPLES = re.compile(r"samples_(.+?)(_\d{4}-\d\d-\d\dT[\d.-]+)?\.jsonl")
SEED = re.compile(r"[-_.]?seed[-_=]?(\d+)")
HARNESS_METRICS = ("acc", "exact_match", "acc_norm")  # The first that a task has is its score

PEFT_COLUMNS = {
    "run_info.experiment_name": "arm",
    "run_info.train_config.seed": "seed",
    "run_info.peft_config.peft_type": "method",
    "run_info.peft_config.r": "rank",
    "run_info.peft_config.lora_alpha": "alpha",
    "run_info.train_config.optimizer_kwargs.lr": "lr",
    "train_info.num_trainable_params": "parameters",
    "train_info.train_time": "seconds",
    "train_info.accelerator_memory_max": "memory",
}
WIKIPEDIA = {"task": "wikipedia", "role": "retention", "unit": "log_probability"}


def plain_name(text: str) -> str:
    """Turn a text into the name of a task or study."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-_.")[:64]


def read_scores(
    source: Path, columns: Mapping[str, str], base: str, task: str | None, said: Said
) -> pd.DataFrame:
    """Read ``SCORE_COLUMNS`` as numbers and texts, from the usable rows, in any order.

    Blank texts are empty, blank numbers NaN.

    Args:
        columns: maps our name to the source's.
        base: as in ``import_scores``.
        task: the column of the training task in a table with a row for each model.
    """
    known, samples = SCORE_COLUMNS, sorted(source.rglob("samples_*.jsonl"))
    results = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if samples:
        known, table = ["score"], _read_harness(source, samples, columns.get("score"), said)
    elif results and results[0].suffix == ".json":
        known, table = [], _read_peft(results)
    elif source.suffix in (".csv", ".parquet"):
        table = _read_table(source, columns, task, said)
    else:
        expected = "a .csv or .parquet table, samples of lm-evaluation-harness or PEFT's results"
        raise UserError(source, "no scores", expected, "see docs/your-model-and-data.md")
    for name in columns.keys() - known:
        expected = f"one of {', '.join(known)}" if known else "none for this source"
        said.append(UserError(f"--map {name}={columns[name]}", repr(name), expected))
    wanted = ["task", "score"] if {*OF_ARM[:4]} & {*table} else ["arm", "task", "score"]
    if (missing := [name for name in wanted if name not in table]) or table.empty:
        found = f"no column {', '.join(missing)}" if missing else "no rows"
        do = "name columns with --map NAME=COLUMN"
        said.append(UserError(source, found, "arm, task and score in every row", do))
        return table[:0]
    return _checked(table, base, said)


def _checked(table: pd.DataFrame, base: str, said: Said) -> pd.DataFrame:
    if "=" in base:
        means = [part.partition("=") for part in base.split(",")]
        own = [{"arm": BASE, "task": task, "score": score} for task, _, score in means]
        table, base = pd.concat([table, pd.DataFrame(own)]), BASE
    table = table.reindex(columns=SCORE_COLUMNS)
    texts = table.astype(object).where(table.notna(), "").map(lambda value: str(value).strip())
    texts = texts.replace({"seed": {"": "0"}, "split": {"": "test"}, "item": {"": MEAN}})
    texts["task"], arm = texts["task"].map(plain_name), texts["arm"].str.lower()
    method, rank = texts["method"].str.lower(), texts["rank"].str.lower()
    method = texts["method"] = method.mask(rank.isin(NO_NUMBER[-2:]) & (method == ""), rank)
    texts[NUMERIC] = texts[NUMERIC].map(str.lower).replace(CELLS)
    numbers = texts[NUMERIC].apply(pd.to_numeric, errors="coerce")
    numbers["named"] = numbers["named"].mask(arm == "", 0)
    is_base = (arm == "") & method.isin(("", "lora")) & (numbers["rank"] == 0)
    is_base |= (arm == base.lower()) | (method == base.lower())
    settings = numbers[OF_ARM[1:4]].map("{:g}".format).replace("nan", "").assign(method=method)
    rows = settings.to_dict("records")
    names = [" ".join(f"{key} {value}" for key, value in row.items() if value) for row in rows]
    arms = texts["arm"].replace(BASE, "another base").mask(arm == "", pd.Series(names, table.index))
    texts["arm"], usable = arms.mask(is_base, BASE), pd.Series(True, table.index)
    for name, expected in CELL_RULES.items():
        text = texts[name]
        if name in NUMERIC:
            bad = (text != "") & ~(numbers[name].abs() < LARGEST)
            bad |= (numbers[name] % 1 > 0) & ("whole" in expected)
        else:
            bad = text == "" if "name" in expected else ~text.isin(["", *expected.split(" or ")])
        usable &= ~bad
        if bad.any():
            found = f"{text[bad].iloc[0]!r} in {bad.sum():,} rows, first row {bad.idxmax() + 1}"
            said.append(UserError(f"column {name}", found, expected))
    table = texts.assign(**numbers)[usable]
    table.loc[table["arm"] == BASE, "seed"] = 0
    table = table[(table["arm"] != BASE) | ~table.duplicated([*MODEL, *ITEM, "score"])]
    for name, of in SINGLE.items():
        values = table[table[name] != ""].groupby(of)[name].nunique()
        if (values > 1).any():
            found = f"several values for {of} {values.idxmax()}"
            said.append(UserError(f"column {name}", found, "one"))
    table["metric"] = table.groupby("task")["metric"].transform("max").replace("", "score")
    repeated = table[table.duplicated([*MODEL, *ITEM])][[*MODEL, *ITEM]].astype(str)
    if len(repeated):
        found = f"{len(repeated):,} more rows of an item, first {', '.join(repeated.iloc[0])}"
        do = "tell models apart by a column arm or seed"
        said.append(UserError("column item", found, "one row for each model and item", do))
    return table.drop_duplicates([*MODEL, *ITEM]).sort_values(["rank", *MODEL, *ITEM])


def _read_table(
    file: Path, columns: Mapping[str, str], task: str | None, said: Said
) -> pd.DataFrame:
    with reading(file, "a table"):
        if file.suffix == ".parquet":
            table = pd.read_parquet(file).rename(columns=str)
        else:
            table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    for name, column in columns.items():
        if column not in table:
            found, expected = f"no column {column!r}", f"one of {', '.join(table)}"
            said.append(UserError(f"--map {name}={column}", found, expected))
    headers = {column.strip().lower(): column for column in table}
    known = {n: headers.get(n, headers.get(COMMON_HEADERS.get(n, n))) for n in SCORE_COLUMNS}
    known = {name: column for name, column in {**known, **columns}.items() if column in table}
    scores, used, tasks = known.get("score"), {*known.values()}, list[str]()
    read = pd.DataFrame({name: table[column] for name, column in known.items()})
    if "task" in read:
        read = read if "metric" in read else read.assign(metric=scores)
    else:  # a row for each model, a column for each task
        own = [c for c in table if task and plain_name(c) == plain_name(task)] or [scores]
        tasks = [c for c in table if c in (*own, scores) or (c not in used and _is_task(table[c]))]
        own, others = own if tasks[1:] else tasks, read.drop(columns=OF_MEAN, errors="ignore")
        read, parts = read.assign(role="in_domain"), [read[:0]]
        for column in tasks:
            part = read if column in own else others.assign(role="")
            errors = {n: table[c] for n in OF_MEAN if (c := headers.get(f"{column}_{n}".lower()))}
            parts.append(part.assign(task=column, score=table[column], **errors))
        read = pd.concat(parts)
    read_too = {*used, *tasks, *(f"{task}_{name}" for task in tasks for name in OF_MEAN)}
    if unread := [column for column in table if column not in read_too]:
        said.append(f"Rankscope does not read these columns: {join_names(unread)}.")
    return read


def _is_task(column: pd.Series) -> bool:
    """Whether most cells are numbers, and the column is no setting."""
    texts = column.astype(str).str.strip().str.lower()
    numbers = pd.to_numeric(texts[~texts.isin(["", *NO_NUMBER])], errors="coerce")
    return bool(numbers.notna().mean() > 0.5) and not NOT_A_TASK.fullmatch(str(column.name))


def _read_harness(folder: Path, files: list[Path], wanted: str | None, said: Said) -> pd.DataFrame:
    """Read samples, one model for each folder in ``folder``; ``seed1`` in its name is its seed."""
    newest, directions = dict[tuple[str, str, str], Path](), dict[tuple[Path, str], Any]()
    for file in sorted(folder.rglob("results_*.json")):
        with reading(file, "results of lm-evaluation-harness"):
            stated = read_json_object(file).get("higher_is_better", {})
            directions |= {(file.parent, task): metrics for task, metrics in stated.items()}
    for file in files:  # in the order of their times: a later one replaces an earlier one
        parts = file.relative_to(folder).parts[:-1]
        arm = next((name for part in parts if (name := SEED.sub("", part))), folder.name)
        seed = SEED.search("/".join(parts))
        if match := SAMPLES.fullmatch(file.name):
            newest[arm, seed[1] if seed else "0", match[1]] = file
    tables, chosen = [], set[str]()
    order = {name: place for place, name in enumerate([*HARNESS_METRICS[::-1], wanted])}
    for (arm, number, task), file in newest.items():
        with reading(file, "samples of lm-evaluation-harness 0.4.7 or later"):
            lines = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
            # The harness's own name for a metric of the answers that a filter leaves.
            keys = [(name, line["filter"]) for line in lines for name in line["metrics"]]
            known = {key: max(order.get(key[0], -1), order.get(",".join(key), -1)) for key in keys}
            metric, kept = max(known, key=known.__getitem__)
            samples = pd.DataFrame(line for line in lines if line["filter"] == kept)
            read = pd.DataFrame({"item": samples["doc_id"], "score": samples[metric]})
        is_higher = directions.get((file.parent, task), {}).get(metric)
        lower = "" if is_higher is None else str(not is_higher)
        model = {"arm": arm, "seed": number, "task": task, "lower": lower}
        tables.append(read.assign(metric=f"{metric},{kept}", **model))
        chosen |= {metric, f"{metric},{kept}"}
    if wanted and wanted not in chosen:
        expected = f"one that a task has, such as {', '.join(sorted(chosen))}"
        said.append(UserError(f"--map score={wanted}", f"no metric {wanted!r}", expected))
    return pd.concat(tables)


def _read_peft(files: Sequence[Path]) -> pd.DataFrame:
    """Read the last successful run of every experiment.

    Only the rise of the loss on Wikipedia is recorded, so the base has a score of 0 there.
    """
    with reading(files[0].parent, "results as PEFT's comparison writes them"):
        runs = pd.json_normalize([read_json_object(file) for file in files])
        runs = runs[runs["train_info.status"] == "success"].sort_values("run_info.created_at")
        runs = runs.drop_duplicates("run_info.experiment_name", keep="last")
        last = pd.DataFrame([*runs["train_info.metrics"].str[-1]], index=runs.index)
        arms = runs.rename(columns=PEFT_COLUMNS).reindex(columns=[*PEFT_COLUMNS.values()])
        arms["method"] = arms["method"].fillna("full")
        arms["named"] = 1  # an experiment's name also tells its modules and LoRA's variant
        tables = [arms.assign(task="gsm8k", role="in_domain", score=last["test accuracy"])]
        if "forgetting" in last:
            rises = arms.assign(**WIKIPEDIA, score=-last["forgetting"]).dropna(subset="score")
            tables += [rises, pd.DataFrame([WIKIPEDIA | {"arm": BASE, "score": 0.0}])]
    return pd.concat(tables)
