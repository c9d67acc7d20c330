"""Cut short questions for a small study from published rows.

    python evidence/short_exam_rows.py DATA OUT

``DATA`` has a folder per task, as ``data_dir`` of a study. ``OUT`` gets the same for the tasks of
studies/paper-in-small: rows whose question and options have at most 500 characters together. The
published MMLU has no training rows, and LegalMCQ few short ones: of these two, all rows are divided
anew by the SHA-256 of their question, half for training and a quarter each for validation and test,
so copies of a question stay together. Law is left out of MMLU, because LegalMCQ is made of it.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

TASKS = ("gsm8k", "mathqa", "medmcqa", "mmlu", "legal_mcq", "arc_easy")
DIVIDED_ANEW = ("mmlu", "legal_mcq")
LAW = ("professional_law", "jurisprudence", "international_law")
MOST_CHARACTERS = 500


def is_short(row: dict[str, Any]) -> bool:
    return len(row["question"]) + sum(map(len, row.get("choices", []))) <= MOST_CHARACTERS


def split_of(row: dict[str, Any]) -> str:
    digest = hashlib.sha256(row["question"].strip().encode()).digest()
    return ("train", "train", "validation", "test")[digest[-1] % 4]


def write_short_rows(data: Path, out: Path) -> None:
    for task in TASKS:
        splits = {
            split: [json.loads(line) for line in path.read_bytes().splitlines()]
            for split in ("train", "test")
            if (path := data / task / f"{split}.jsonl").exists()
        }
        if task in DIVIDED_ANEW:
            rows = [row for part in splits.values() for row in part]
            if task == "mmlu":
                rows = [row for row in rows if row["subject"] not in LAW]
            rows = [row for row in rows if len(set(row["choices"])) == len(row["choices"])]
            names = ("train", "validation", "test")
            splits = {split: [row for row in rows if split_of(row) == split] for split in names}
        (out / task).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            text = "".join(json.dumps(row) + "\n" for row in rows if is_short(row))
            (out / task / f"{split}.jsonl").write_text(text, "utf-8")


if __name__ == "__main__":
    write_short_rows(Path(sys.argv[1]), Path(sys.argv[2]))
