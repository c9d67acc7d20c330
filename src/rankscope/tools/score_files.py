"""Tables of scores that other programs wrote, a row for each model, task and item.

Read are CSV and Parquet, samples of lm-evaluation-harness (``--log_samples``; from 0.4.7 on they
name their filter and metrics), and results of the MetaMathQA comparison in PEFT's repository
(``method_comparison``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from rankscope.errors import UserError, did_you_mean, reading
from rankscope.filesystem import read_json_object
from rankscope.records import BASE

MODEL = ["arm", "seed"]
ITEM = ["task", "split", "item"]
OF_ARM = ["method", "rank", "alpha", "lr", "parameters", "named"]
OF_TASK = ["role", "metric", "unit", "chance"]
SCORE_COLUMNS = [*MODEL, *ITEM, *OF_ARM, *OF_TASK]
SCORE_COLUMNS += ["score", "subject", "gold_logprob", "seconds", "memory"]

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


def read_scores(source: Path, columns: Mapping[str, str], faults: list[UserError]) -> pd.DataFrame:
    """Some of ``SCORE_COLUMNS``, with values as the source has them; ``faults`` gets those of
    ``columns``, our name -> the source's."""
    known = SCORE_COLUMNS
    samples = sorted(source.rglob("samples_*.jsonl"))
    results = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if samples:
        known = ["score"]
        table = _read_harness(source, samples, columns.get("score"), faults)
    elif results and results[0].suffix == ".json":
        known, table = [], _read_peft(results)
    elif source.suffix in (".csv", ".parquet"):
        table = _read_table(source, columns, faults)
    else:
        expected = "a .csv or .parquet table, samples of lm-evaluation-harness or PEFT's results"
        raise UserError(source, "no scores", expected, "see docs/data.md")
    for name in columns.keys() - known:
        expected = f"one of {', '.join(known)}" if known else "none for this source"
        hint = did_you_mean(name, known)
        faults.append(UserError(f"--map {name}={columns[name]}", repr(name), expected, hint))
    return table


def _read_table(file: Path, columns: Mapping[str, str], faults: list[UserError]) -> pd.DataFrame:
    with reading(file, "a table"):
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
        else:
            table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    for name, column in columns.items():
        if column not in table:
            found, expected = f"no column {column!r}", f"one of {', '.join(map(str, table))}"
            faults.append(UserError(f"--map {name}={column}", found, expected))
    names = {name: columns.get(name, name) for name in SCORE_COLUMNS}
    return pd.DataFrame({name: table[column] for name, column in names.items() if column in table})


def _read_harness(
    folder: Path, files: Sequence[Path], wanted: str | None, faults: list[UserError]
) -> pd.DataFrame:
    """A model for each folder in ``folder``; ``seed1`` in a folder's name is its seed."""
    newest: dict[tuple[str, str, str], Path] = {}
    for file in files:  # in the order of their times: a later one replaces an earlier one
        parts = file.relative_to(folder).parts[:-1]
        arm = next((name for part in parts if (name := SEED.sub("", part))), folder.name)
        seed = SEED.search("/".join(parts))
        if match := SAMPLES.fullmatch(file.name):
            newest[arm, seed[1] if seed else "0", match[1]] = file
    rows, chosen = [], set[str]()
    for (arm, number, task), file in newest.items():
        with reading(file, "samples of lm-evaluation-harness 0.4.7 or later"):
            samples = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
            # As the harness calls a metric of the answers that a filter leaves.
            keys = [f"{name},{s['filter']}" for s in samples for name in s["metrics"]]
            found = [
                key
                for name in (wanted, *HARNESS_METRICS)
                for key in keys
                if name in (key, key.partition(",")[0])
            ]
            metric, _, kept = [*found, *keys][0].partition(",")
            model = {"arm": arm, "seed": number, "task": task, "metric": f"{metric},{kept}"}
            rows += [
                {**model, "item": sample["doc_id"], "score": sample[metric]}
                for sample in samples
                if sample["filter"] == kept
            ]
        chosen |= {metric, f"{metric},{kept}"}
    if wanted and wanted not in chosen:
        expected = f"one that a task has, such as {', '.join(sorted(chosen))}"
        faults.append(UserError(f"--map score={wanted}", f"no metric {wanted!r}", expected))
    return pd.DataFrame(rows)


def _read_peft(files: Sequence[Path]) -> pd.DataFrame:
    """The last run of every experiment that succeeded. Of the loss on Wikipedia the rise alone is
    recorded, so the base has a score of 0 there."""
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
