"""Short questions of published rows."""

import json
from pathlib import Path

from short_exam_rows import write_short_rows


def test_long_questions_and_law_are_left_out_and_copies_stay_together(tmp_path: Path) -> None:
    rows = [{"question": f"q{n // 2}", "choices": ["a", "b"], "subject": "sums"} for n in range(40)]
    rows += [{**rows[0], "question": "x" * 500}, {**rows[0], "subject": "jurisprudence"}]
    (tmp_path / "data" / "mmlu").mkdir(parents=True)
    (tmp_path / "data" / "mmlu" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_short_rows(tmp_path / "data", tmp_path / "out")
    files = sorted((tmp_path / "out" / "mmlu").iterdir())
    assert [file.name for file in files] == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    splits = [
        [json.loads(line)["question"] for line in file.read_text().splitlines()] for file in files
    ]
    assert sorted(question for split in splits for question in split) == sorted(
        row["question"] for row in rows[:40]
    )
    assert not any(set(a) & set(b) for a in splits for b in splits if a is not b)
