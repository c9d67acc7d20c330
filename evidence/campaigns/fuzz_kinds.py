"""The eight kinds of input from outside: how one is made, and everything that reads it."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st

from fuzz_adapters import ADAPTERS, PATTERNS, WEIGHTS, read_adapter, read_safetensors
from fuzz_ledgers import LEDGERS, read_ledger
from fuzz_mutations import HOSTILE, TEXTS, altered, as_bytes, damaged, json_text
from fuzz_rows import JSONL, PARQUET, TABLES, read_jsonl, read_parquet, read_table

REPOSITORY = Path(__file__).parents[2]


class Kind(NamedTuple):
    """One kind of input, as bytes."""

    inputs: st.SearchStrategy[bytes]
    read: Callable[[bytes, Path], None]
    """Reads an input with a folder of its own to write it to; raises what Rankscope raises."""


# --- study files ---------------------------------------------------------------------------------


@cache
def studies() -> list[Any]:
    """Every study file in the repository, as plain values."""
    from rankscope.config.loader import STUDY_KEYS, _read_yaml as read_yaml

    folders = (REPOSITORY / "src", REPOSITORY / "examples")
    files = [path for folder in folders for path in sorted(folder.rglob("*.yaml"))]
    return [read_yaml(path, STUDY_KEYS, "").values for path in files]


@st.composite
def study_inputs(draw: st.DrawFn) -> bytes:
    """``--set`` lines, each with a JSON text, before the file."""
    from rankscope.config.yaml_lines import dump

    study = draw(st.sampled_from(studies()))
    text = draw(st.just(dump(study)) | altered(study, 2).map(json_text))
    overrides = draw(st.lists(override(study), max_size=2))
    lines = [b"--set " + json.dumps(line).encode() for line in overrides]
    return b"\n".join([*lines, draw(damaged(as_bytes(text)))])


@st.composite
def override(draw: st.DrawFn, study: Any) -> str:
    parts, value = [], study
    while isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        part = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        parts.append(str(part))
        value = value[part]
    more = st.sampled_from((*TEXTS, "0", "-1", "rank", ".".join("a" * 3000)))
    parts += draw(st.lists(more, max_size=1))
    shown = draw(HOSTILE)
    text = draw(st.sampled_from([json_text(shown), str(shown)]))
    return f"{'.'.join(parts)}{draw(st.sampled_from(['=', '', ' = ']))}{text}"


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

MINE = {"name": "mine", "test": "rows.jsonl"}
TASKS: Sequence[dict[str, Any]] = (
    {**MINE, "scorer": "regex", "extract": "is (\\w+)", "stop": ["\n"]},
    {**MINE, "scorer": "exact_match", "prompt": "Q: {question}\nA:"},
    {**MINE, "scorer": "contains", "extract": "(a|b)+", "num_fewshot": 0},
    {"name": "mine", "path": ".", "fields": {"question": "question", "answer": "answer"}},
    {"name": "mine", "train": "rows.jsonl", "on_bad_rows": "drop", "max_train_rows": 3},
    {"task": "h", "dataset_path": "json", "metric_list": [{"metric": "acc"}], "include": "h.yaml"},
)
ANSWERS = ("a" * 30 + "!", "the answer is b", "x" * 5000, "1 " * 2000, "\0\u202e", "")
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 12))
"""Each line is ten times the one before."""


@st.composite
def task_inputs(draw: st.DrawFn) -> bytes:
    task = dict(draw(st.sampled_from(TASKS)))
    patterns = [*PATTERNS, *(text for text in TEXTS if "(" in text)]
    if "extract" in task:
        task["extract"] = draw(st.just(task["extract"]) | st.sampled_from(patterns))
    texts = st.sampled_from([*[yaml.safe_dump(task)] * 9, ALIASES]) | altered(task).map(json_text)
    return draw(damaged(as_bytes(draw(texts))))


def read_task(content: bytes, folder: Path) -> None:
    """Load a task file, judge answers by it, and read it as a file of the harness."""
    from rankscope.config.loader import load_task_file
    from rankscope.config.patterns import compile_pattern
    from rankscope.data.tasks import load_task
    from rankscope.errors import RankscopeError
    from rankscope.evaluate.scorers import get_scorer
    from rankscope.evaluate.scorers.generation import GenerationScorer
    from rankscope.registry import extension_files

    path = folder / "task.yaml"
    path.write_bytes(content)
    rows = [{"question": f"what is {n}?", "answer": f"the answer is {'ab' * n}"} for n in range(9)]
    for name in ("rows", "train", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    for harness in extension_files("task_files"):
        with suppress(RankscopeError):
            harness.check_tags(path, False)
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
    "study": Kind(study_inputs(), read_study),
    "jsonl": Kind(JSONL, read_jsonl),
    "table": Kind(TABLES, read_table),
    "parquet": Kind(PARQUET, read_parquet),
    "adapter": Kind(ADAPTERS, read_adapter),
    "safetensors": Kind(WEIGHTS, read_safetensors),
    "task": Kind(task_inputs(), read_task),
    "ledger": Kind(LEDGERS, read_ledger),
}
"""Kinds by their name on the command line."""
