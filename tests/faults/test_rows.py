"""Faults of rows: each is named by file and row, or counted, and none changes a figure unseen."""

import csv
import io
import math
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import Outcome, rankscope, settings, write_rows
from pocket_study import results

from faults import good_rows, refused
from rankscope.records import BASE, EvalKey, EvalRecord
from rankscope.store import Ledger

NAN = float("nan")


def check_rows(place: Path, rows: list[Any], *values: str, verb: str = "check") -> Outcome:
    """``rankscope check`` on these rows."""
    write_rows(place / "rows.jsonl", rows)
    return rankscope(verb, "study.yaml", *settings(*values))


def sums(count: int) -> list[dict[str, Any]]:
    """Prompts with completions, all different."""
    return [{"prompt": f"{i} +", "completion": str(i)} for i in range(count)]


@pytest.mark.pitfall(9, 10, 31)
def test_rows_with_nothing_to_learn_are_left_out_and_counted(place: Path) -> None:
    """NaN is how pandas writes an empty cell."""
    rows = sums(200)
    rows[150]["completion"] = NAN
    assert "mine: 1 of 200 rows were dropped: " in check_rows(place, rows).told
    rows = sums(200)
    rows[101]["prompt"] = "1 + " * 40
    rows[51]["completion"] = "1 " * 40
    outcome = check_rows(place, rows)
    assert outcome.code == 0
    assert "mine: 1 training rows dropped, 1 completions cut at max_length = 32" in outcome.told


@pytest.mark.pitfall(31, 22)
def test_what_is_no_number_is_no_figure(place: Path) -> None:
    """A trial whose weights are beyond reason has no scores: it is shown as failed, and unknown
    figures are empty in every file."""
    asked = settings("tasks.0.scorer=exact_match", "arms.0.lr=[1e-3, 1e30]")
    write_rows(place / "rows.jsonl", sums(40))
    ran = rankscope("run", "study.yaml", *asked, "--out", "out")
    assert ran.code == 3, ran.err
    assert "1 of 2 trials" in ran.told or "diverged" in ran.told
    tables = sorted((place / "out").rglob("items/*.parquet"))
    assert len(tables) == 4  # validation and test split, of the base and of the trial that ended
    for table in tables:
        rows = pq.read_table(table).to_pylist()
        assert all(math.isfinite(row["gold_logprob"]) for row in rows)
        assert {row["score"] for row in rows} <= {0.0, 1.0}
    assert rankscope("report", "out", "--tables", "tables").code == 0
    with (place / "tables" / "failed.csv").open(encoding="utf-8", newline="") as file:
        heading, failed = csv.reader(file)
    assert "diverged" in failed, heading
    texts = [path.read_text("utf-8") for path in (place / "tables").glob("*.csv")]
    cells = {cell for text in texts for line in csv.reader(io.StringIO(text)) for cell in line}
    assert not {"nan", "NaN", "inf", "-inf", "None"} & cells
    page = (place / "out" / "report.html").read_text("utf-8")
    assert not re.search(r">\s*(nan|NaN|inf)\b", page.partition("<script")[0])


# --- rows that change between two runs ----------------------------------------------------------


@pytest.mark.pitfall(32)
def test_shuffled_rows_are_the_same_data(own: Path, copied: Path, tmp_path: Path) -> None:
    """Whether they are shuffled before the first run or between two: equal ids, weights, scores."""
    shuffled = random.Random(1).sample(good_rows(40), 40)
    write_rows(copied.parent / "rows.jsonl", shuffled)
    file, before = copied.parent / "study.yaml", results(copied)
    again = rankscope("run", file, "--out", copied)
    assert again.code == 0
    assert "group 1/" not in again.err  # nothing was trained again
    assert results(copied)["trials"] == before["trials"]
    assert rankscope("run", file, "--out", tmp_path / "other").code == 0
    other = results(tmp_path / "other")
    assert {key: other[key] for key in ("trials", "evals", "files")} == {
        key: before[key] for key in ("trials", "evals", "files")
    }


@pytest.mark.pitfall(32, 24)
@pytest.mark.parametrize("change", ["a copy", "another answer"])
def test_other_rows_are_not_mixed_with_stored_results(copied: Path, change: str) -> None:
    before, rows = results(copied), good_rows(40)
    if change == "a copy":
        rows.append(rows[0])
    else:
        rows = [{**row, "answer": (row["answer"] + 1) % 4} for row in rows]
    write_rows(copied.parent / "rows.jsonl", rows)
    needs_another_folder(copied, "sha256 was")
    assert results(copied) == before


def needs_another_folder(out: Path, changed: str) -> None:
    refused(
        rankscope("run", out.parent / "study.yaml", "--out", out),
        where=f"{out}: found results on task 'mine'",
        found=changed,
        do="give the changed study its own --out folder",
    )


@pytest.mark.pitfall(32)
def test_other_training_rows_are_other_trials_with_the_same_base(copied: Path) -> None:
    before, scored = results(copied), base_evaluations(copied)
    file = copied.parent / "study.yaml"
    again = rankscope("run", file, "--out", copied, "--set", "tasks.0.max_train_rows=8")
    assert again.code == 0, again.told
    assert "that it no longer has are kept there and not shown" in again.told
    after = results(copied)
    ids = [{spec.trial_id for spec, *_ in r["trials"].values()} for r in (before, after)]
    assert len(ids[0]) == len(ids[1]) == len(ids[0] ^ ids[1]) / 2
    assert base_evaluations(copied) == scored


def base_evaluations(out: Path) -> dict[EvalKey, EvalRecord]:
    """With the seconds that they took, which no second evaluation takes again."""
    with Ledger.open(out, write=False) as ledger:
        return {key: record for key, record in ledger.load().evals.items() if key[0] == BASE}
