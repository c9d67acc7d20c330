"""A hub on disk: folders named as the hub names its data sets, with their splits and fields.

``load_dataset("cais/mmlu", ...)`` reads a folder of that name below the working directory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Rows = list[dict[str, Any]]


def exam_rows(count: int, subject: str, what: str) -> Rows:
    """Questions in MMLU's fields."""
    return [
        {
            "question": f"Which of these is the {what} number {n} of {subject or 'a school test'}?",
            "subject": subject,
            "choices": [f"{what} {n} {letter}" for letter in "abcd"],
            "answer": n % 4,
        }
        for n in range(count)
    ]


def problem(n: int, what: str) -> dict[str, Any]:
    """A word problem in MathQA's fields."""
    options = " , ".join(f"{letter} ) {n + i}" for i, letter in enumerate("abcde"))
    return {"Problem": f"{what} {n} plus two is", "options": options, "correct": "c"}


def medical(n: int, what: str) -> dict[str, Any]:
    """A question in MedMCQA's fields."""
    options = {f"op{letter}": f"{what} {letter} {n}" for letter in "abcd"}
    return {"question": f"The {what} sign of syndrome {n} is", **options, "cop": n % 4}


def written(hub: Path, name: str, config: str, splits: Mapping[str, Rows]) -> None:
    """One data set: a Parquet file a split, and the header that names them."""
    folder = hub / name
    folder.mkdir(parents=True)
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        lines += [f"  - split: {split}", f"    path: {split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def paper_hub(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets of arXiv 2512.15634 as the hub lays them out, found from ``hub``."""
    monkeypatch.chdir(hub)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", hub / "cache")
    sums = [{"question": f"What is {n} and 2?", "answer": f"So\n#### {n + 2}"} for n in range(140)]
    written(hub, "openai/gsm8k", "main", {"train": sums[:100], "test": sums[100:]})
    law = exam_rows(520, "professional_law", "rule")  # the first 500 of a shuffle are tested on
    tested = [*exam_rows(60, "anatomy", "bone"), *law]
    mmlu = {
        "auxiliary_train": exam_rows(90, "", "word"),
        "validation": exam_rows(55, "anatomy", "muscle"),
        "dev": exam_rows(5, "anatomy", "nerve"),
        "test": tested,
    }
    written(hub, "cais/mmlu", "all", mmlu)
    train, validation = ([medical(n, what) for n in range(70)] for what in ("first", "last"))
    written(hub, "openlifescienceai/medmcqa", "default", {"train": train, "validation": validation})
    splits = ("train", "validation", "test")
    maths = {s: [problem(n, s) for n in range(60)] for s in splits}
    written(hub, "allenai/math_qa", "default", maths)
