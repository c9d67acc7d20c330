"""The eight kinds of input from outside: how one is made, and everything that reads it."""

import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fuzz_adapters import PATTERNS, make_adapter, make_safetensors, read_adapter, read_safetensors
from fuzz_ledgers import make_ledger, read_ledger
from fuzz_mutations import TEXTS, altered, as_bytes, damaged, hostile, json_text
from fuzz_rows import make_jsonl, make_parquet, make_table, read_jsonl, read_parquet, read_table

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of input, as bytes."""

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes, Path], None]
    """Reads an input with a folder of its own to write it to; raises what Rankscope raises."""


# --- study files ---------------------------------------------------------------------------------


@cache
def studies() -> list[Any]:
    """Every study file in the repository, as plain values."""
    from rankscope.config.loader import STUDY_KEYS, read_yaml

    folders = (REPOSITORY / "src" / "rankscope" / "config" / "presets", REPOSITORY / "examples")
    files = [path for folder in folders for path in sorted(folder.rglob("*.yaml"))]
    return [read_yaml(path, STUDY_KEYS, "").values for path in files]


def make_study(rng: random.Random) -> bytes:
    """``--set`` lines, each with a JSON text, before the file."""
    from rankscope.config.yaml_lines import dump

    study = rng.choice(studies())
    is_altered = rng.random() < 0.6
    text = json_text(altered(study, rng, 2)) if is_altered else dump(study)
    content = as_bytes(text)
    if rng.random() < (0.15 if is_altered else 0.5):
        content = damaged(content, rng)
    count = rng.choice([0, 0, 1, 2])
    lines = [b"--set " + json.dumps(override(study, rng)).encode() for _ in range(count)]
    return b"\n".join([*lines, content])


def override(study: Any, rng: random.Random) -> str:
    parts, value = [], study
    while isinstance(value, dict | list) and value and rng.random() < 0.8:
        part = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        parts.append(str(part))
        value = value[part]
    if rng.random() < 0.3:
        parts.append(rng.choice([*TEXTS, "0", "-1", "rank", ".".join("a" * 3000)]))
    shown = hostile(rng)
    text = json_text(shown) if rng.random() < 0.7 else str(shown)
    return f"{'.'.join(parts)}{rng.choice(['=', '=', '=', '', ' = '])}{text}"


def read_study(content: bytes, folder: Path) -> None:
    from rankscope.config.loader import dump_study, load_study_file

    overrides = []
    while content.startswith(b"--set "):
        line, _, content = content.partition(b"\n")
        overrides.append(json.loads(line.removeprefix(b"--set ")))
    path = folder / "study.yaml"
    path.write_bytes(content)
    config = load_study_file(path, overrides)
    (folder / "again.yaml").write_text(dump_study(config), "utf-8")
    if load_study_file(folder / "again.yaml") != config:
        raise AssertionError("a written study reads back as another")


# --- task files ----------------------------------------------------------------------------------

TASKS: Sequence[dict[str, Any]] = (
    {
        "name": "mine",
        "test": "rows.jsonl",
        "scorer": "regex",
        "extract": "is (\\w+)",
        "stop": ["\n"],
    },
    {"name": "mine", "test": "rows.jsonl", "scorer": "exact_match", "prompt": "Q: {question}\nA:"},
    {
        "name": "mine",
        "test": "rows.jsonl",
        "scorer": "contains",
        "extract": "(a|b)+",
        "num_fewshot": 0,
    },
    {"name": "mine", "path": ".", "fields": {"question": "question", "answer": "answer"}},
    {"name": "mine", "train": "rows.jsonl", "on_bad_rows": "drop", "max_train_rows": 3},
    {"task": "h", "dataset_path": "json", "metric_list": [{"metric": "acc"}], "include": "h.yaml"},
)
ANSWERS = ("a" * 30 + "!", "the answer is b", "x" * 5000, "1 " * 2000, "\0\u202e", "")


def make_task(rng: random.Random) -> bytes:
    task = dict(rng.choice(TASKS))
    if "extract" in task and rng.random() < 0.2:
        task["extract"] = rng.choice([*PATTERNS, *(text for text in TEXTS if "(" in text)])
    text = json_text(altered(task, rng)) if rng.random() < 0.7 else yaml.safe_dump(task)
    if rng.random() < 0.05:  # each line ten times the one before
        text = "a0: &a0 [x]\n" + "".join(
            f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 12)
        )
    content = as_bytes(text)
    return damaged(content, rng) if rng.random() < 0.3 else content


def read_task(content: bytes, folder: Path) -> None:
    """Load a task file, judge answers by it, and read it as a file of the harness."""
    from rankscope.config.loader import load_task_file
    from rankscope.config.patterns import compile_pattern
    from rankscope.data.tasks import load_task
    from rankscope.errors import RankscopeError
    from rankscope.evaluate.lm_eval.task_files import check_tags
    from rankscope.evaluate.scorers import get_scorer
    from rankscope.evaluate.scorers.generation import GenerationScorer

    path = folder / "task.yaml"
    path.write_bytes(content)
    rows = [{"question": f"what is {n}?", "answer": f"the answer is {'ab' * n}"} for n in range(9)]
    for name in ("rows", "train", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with suppress(RankscopeError):
        check_tags(path, False)
    config = load_task_file(path)
    if config.hub is not None:
        return
    task = load_task(config, folder, 0)
    scorer = get_scorer(task.spec.scorer)
    if isinstance(scorer, GenerationScorer) and not scorer.name.startswith("python:"):
        pattern = None if task.spec.extract is None else compile_pattern(task.spec.extract)
        for answer in ANSWERS:
            scorer.judge_answer(task.test[0], answer, pattern)


KINDS = {
    "study": Kind(make_study, read_study),
    "jsonl": Kind(make_jsonl, read_jsonl),
    "table": Kind(make_table, read_table),
    "parquet": Kind(make_parquet, read_parquet),
    "adapter": Kind(make_adapter, read_adapter),
    "safetensors": Kind(make_safetensors, read_safetensors),
    "task": Kind(make_task, read_task),
    "ledger": Kind(make_ledger, read_ledger),
}
"""By the name on the command line."""
