"""Write the rows that the package brings, ``src/rankscope/data/built_in_rows.json.gz``.

    python scripts/built_in_rows.py

They are those of the pocket world and questions on facts that most models know. Task hashes of
every study rest on them: other rows make other tasks.
"""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from pocket_world import POCKET_SPLITS, POCKET_TASKS, pocket_rows

HERE = Path(__file__).parent
PACKED = HERE.parent / "src" / "rankscope" / "data" / "built_in_rows.json.gz"


def common_facts() -> list[dict[str, Any]]:
    """Questions with three wrong answers to the same question.

    The facts are common knowledge, collected for this package (Apache-2.0). Small models answer
    well above chance, so fine-tuning that costs them can be seen.
    """
    facts = json.loads((HERE / "common_facts.json").read_text(encoding="utf-8"))
    rows = []
    for question, answers in facts.items():
        for subject, answer in answers.items():
            draw = random.Random(question + subject)
            wrong = draw.sample(sorted(set(answers.values()) - {answer}), 3)
            choices = draw.sample([answer, *wrong], 4)
            asked = {"question": question.format(subject), "choices": choices, "answer": answer}
            rows.append({**asked, "subject": question.replace("{}", "...")})
    return rows


def built_in_rows() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By task and split."""
    pocket = {
        task: {split: pocket_rows(task, split) for split in POCKET_SPLITS} for task in POCKET_TASKS
    }
    return {**pocket, "common_facts": {"test": common_facts()}}


if __name__ == "__main__":
    text = json.dumps(built_in_rows(), separators=(",", ":"), ensure_ascii=False)
    PACKED.write_bytes(gzip.compress(text.encode(), mtime=0))
