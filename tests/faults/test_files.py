"""Faults of study files, task files, names and folders: refused, and nothing is written."""

import json
from pathlib import Path

import pytest
from command_line import files_below, rankscope, settings

from faults import OPENED, edit, refused

# --- the study file -----------------------------------------------------------------------------


@pytest.mark.pitfall(2)
def test_a_rank_above_the_smaller_dimension(place: Path) -> None:
    """The pocket model's attention matrices are 128 x 128; the cap stands in the run's notes."""
    asked = settings("arms.0.rank=[128,129]")
    warning = "rank 129 is above 128, the smaller dimension of the smallest target matrix"
    for verb in ("check", "plan"):
        outcome = rankscope(verb, "study.yaml", *asked)
        assert outcome.code == 0
        assert outcome.told.count(f"note: {warning}") == 1
        assert "rank 128 is above" not in outcome.told
    planned = rankscope("plan", "study.yaml", *asked, "--json")
    assert sum(warning in note for note in json.loads(planned.out)["notes"]) == 1


@pytest.mark.pitfall(3)
def test_repeated_grid_points(place: Path) -> None:
    edit(place, "rank: [2]", "rank: [2, 4, 2, 2]")
    outcome = rankscope("check", "study.yaml")
    assert outcome.code == 0
    assert "2 grid points are repeated in the study file and merged" in outcome.told
    assert "2 trials in 1 group:" in outcome.told


# --- names and places ---------------------------------------------------------------------------


@pytest.mark.pitfall(6)
@pytest.mark.parametrize(
    "words",
    [
        ("run", "study.yaml", "--out", "x" * 300),
        ("quickstart", "--out", "x" * 300),
        ("quickstart", "--out", "rows.jsonl"),
        # The kernel's own file system makes no folders: "No such file or directory".
        ("quickstart", "--out", f"/proc/{'x' * 9}"),
        ("init", f"/proc/{'x' * 9}/study.yaml", "--preset", "pocket"),
        ("run", "study.yaml", "--out", "rows.jsonl"),
        ("run", "study.yaml", "--set", f"tasks.0.train={'x' * 300}.jsonl"),
        ("check", "study.yaml", "--set", f"model=./{'x' * 300}"),
        ("check", "x" * 300),
        ("init", "x" * 300),
        ("init", "rows.jsonl/study.yaml"),
        ("params", "x" * 300),
        ("status", "x" * 300),
        ("verify", "rows.jsonl"),
        ("export", "x" * 300, "0", "--out", "y"),
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_places_that_cannot_be_used(place: Path, words: tuple[str, ...]) -> None:
    before = files_below(place)
    outcome = rankscope(*words)
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    assert ("rows.jsonl" if "rows.jsonl" in " ".join(words) else "x" * 8) in outcome.err
    assert files_below(place) - before <= {"studies", "studies/own", *OPENED}


# --- folders of studies -------------------------------------------------------------------------


@pytest.mark.pitfall(27)
@pytest.mark.parametrize("verb", ["status", "report", "verify", "stop"])
def test_a_folder_without_a_study(tmp_path: Path, verb: str) -> None:
    refused(
        rankscope(verb, tmp_path),
        where=f"{tmp_path}: ",
        found="found no study here",
        expected="expected a folder that 'rankscope run' or 'rankscope quickstart' wrote to",
    )
    assert files_below(tmp_path) == set()


def test_a_tilde_that_no_shell_replaced_is_the_home_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    assert rankscope("run", "study.yaml", "--out", "~/x").code == 0
    assert rankscope("verify", "~/x").code == 0
    assert (place / "home" / "x" / "report.html").is_file()
    assert not (place / "~").exists()


@pytest.mark.parametrize(
    ("words", "where", "found"),
    [
        (("run", "study.yaml", "--out", "x\udcff/out"), "x[U+DCFF]/out", "lone surrogate"),
        (("export", "x\udcff", "--out", "new"), "x[U+DCFF]", "lone surrogate"),
        (("params", "~no-such-user/x"), "~no-such-user/x", "home directory"),
        (("eval", "~no-such-user/x", "--tasks", "pocket_med"), "~no-such-user/x", "home directory"),
    ],
)
def test_a_path_that_libraries_cannot_use_is_refused_at_the_beginning(
    place: Path, words: tuple[str, ...], where: str, found: str
) -> None:
    before = files_below(place)
    refused(rankscope(*words), where=where, found=found, expected="a ", do=" ")
    assert files_below(place) == before
