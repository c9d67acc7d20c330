"""What changed since it was written: a bit, a row, a file, the data, the code, a library."""

import random
import re
import sqlite3
from pathlib import Path

import pytest
from command_line import rankscope
from pocket_study import loaded

from faults import edit, flip_bit, refused, run_again
from rankscope.store import Ledger, find_problems

CLOSED = "ledger.sha256"
READERS = ("verify", "status", "report")


# --- bits ---------------------------------------------------------------------------------------


@pytest.mark.pitfall(16, 36)
def test_one_flipped_bit_of_any_file_is_found(copied: Path) -> None:
    bits = random.Random(0)
    files = [path for path in sorted(copied.rglob("*")) if path.is_file() and path.stat().st_size]
    # A reader may leave the index that SQLite keeps of its write-ahead log, and builds anew.
    files = [path for path in files if path.suffix != ".sqlite-shm"]
    assert len(files) > 15
    for path in files:
        content = flip_bit(path, bits.randrange(path.stat().st_size), bits.randrange(8))
        found = find_problems(copied)
        assert found, path
        problem = found[0]
        name = path.relative_to(copied).as_posix()
        # A bit of the lists of hashes, too, is a difference of the file that it is the hash of.
        assert problem.where.split(":")[0] in LISTED.get(name, (name,)), problem
        assert problem.do
        path.write_bytes(content)
    assert find_problems(copied) == []


LISTED = {
    "SHA256SUMS": ("recommendation.json", "report.html"),
    CLOSED: ("ledger.sqlite", "log.jsonl", "study.resolved.yaml"),
}


@pytest.mark.pitfall(36)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_one_flipped_bit_of_any_page_is_never_other_results(copied: Path, closed: bool) -> None:
    """Of a ledger that a run closed, every bit is found, also in unused space. The ledger of a
    killed run has no hash as a whole: what is not found there changes nothing."""
    file, bits = copied / "ledger.sqlite", random.Random(0)
    if not closed:
        (copied / CLOSED).unlink()
    before = rankscope("status", copied, "--json").out
    content = file.read_bytes()
    for page in range(0, len(content), 4096):
        flip_bit(file, page + bits.randrange(4096), bits.randrange(8))
        verified, status = rankscope("verify", copied), rankscope("status", copied, "--json")
        if closed or verified.code:
            assert verified.code == 4, page
            assert "ledger.sqlite" in verified.err
        assert status.code == 4 or (not closed and status.out == before), page
        file.write_bytes(content)
    assert rankscope("verify", copied).code == 0


@pytest.mark.pitfall(36)
def test_every_verb_refuses_a_flipped_bit_of_the_ledger(copied: Path, tmp_path: Path) -> None:
    flip_bit(copied / "ledger.sqlite")
    for words in (
        ("run", copied.parent / "study.yaml", "--out", copied),
        *((verb, copied) for verb in READERS[1:]),
        ("export", copied, "--out", tmp_path / "x"),
        ("compare", copied, copied),
    ):
        refused(
            rankscope(*words), 4, where=str(copied / "ledger.sqlite"), found="sha256",
            expected="which it had when it was closed", do="rankscope verify",
        )  # fmt: skip
    assert not (tmp_path / "x").exists()


@pytest.mark.pitfall(16)
def test_an_altered_trial_can_be_computed_again(copied: Path, tmp_path: Path) -> None:
    """``verify`` names the command that does it."""
    weights = next(copied.glob("artifacts/*/adapter/adapter_model.safetensors"))
    trial = weights.parents[1].name
    sound = rankscope("verify", copied)
    assert sound.code == 0
    assert re.fullmatch(r"OK: \d+ artifacts verified\.\n", sound.out)
    flip_bit(weights)
    assert rankscope("verify", copied, "--quick").code == 0  # it compares sizes
    verified = rankscope("verify", copied)
    assert (verified.code, verified.out) == (4, "")
    assert weights.relative_to(copied).as_posix() in verified.err
    assert f"--out {copied} --retry {trial}" in verified.told
    exported = rankscope("export", copied, trial, "--out", tmp_path / "x")
    refused(exported, 4, where=str(weights), found="sha256", expected="sha256", do="--retry")
    assert not (tmp_path / "x").exists()
    weights.symlink_to(weights.rename(tmp_path / "elsewhere"))
    for quick in ((), ("--quick",)):
        linked = rankscope("verify", copied, *quick)
        assert linked.code == 4
        assert "found a link that leads out of it" in linked.told
    weights.unlink()
    assert rankscope("verify", copied, "--quick").code == 4
    before = scores(copied)
    assert run_again(copied, "--retry", trial).code == 0
    assert rankscope("verify", copied).code == 0
    # It trains without its neighbor now, which moves its sums by rounding alone.
    assert scores(copied) == pytest.approx(before, abs=0.13)  # one item of eight


def test_the_base_can_be_scored_again(copied: Path) -> None:
    items = next(copied.glob("artifacts/base/items/*.parquet"))
    flip_bit(items)
    refused(rankscope("report", copied), 4, where=str(items), found="sha256", do="--retry base")
    before = scores(copied)
    assert run_again(copied, "--retry", "base").code == 0
    assert scores(copied) == before
    assert rankscope("verify", copied).code == 0


def scores(out: Path) -> dict[str, float]:
    with Ledger.open(out, write=False) as ledger:
        return {"/".join(key): record.score for key, record in ledger.load().evals.items()}


# --- rows ---------------------------------------------------------------------------------------

RANK_2 = """(SELECT trial_id FROM trials WHERE spec LIKE '%"rank":2,%')"""
EDITS = {
    "a rank": """UPDATE trials SET spec = replace(spec, '"rank":2,', '"rank":16,')""",
    "a trial out of the study": "UPDATE trials SET position = NULL WHERE position = 0",
    "a trial, its records and artifacts": (
        f"DELETE FROM artifacts WHERE path LIKE '%' || {RANK_2} || '%'; "
        f"DELETE FROM records WHERE trial_id = {RANK_2}; "
        f"DELETE FROM trials WHERE trial_id = {RANK_2}"
    ),
    "a file's hash": "UPDATE artifacts SET file_sha256 = replace(file_sha256, 'a', 'b')",
    "an evaluation": "DELETE FROM records WHERE kind = 'eval' AND key LIKE '%/test'",
    "settings": "UPDATE records SET settings = '{}'",
    "groups": "UPDATE study SET body = replace(body, ',', ', ') WHERE key = 'groups'",
    "no groups": "DELETE FROM study WHERE key = 'groups'",
    "no totals": "DELETE FROM totals",
    "a total": "UPDATE totals SET num_rows = num_rows - 1 WHERE name = 'records'",
}


@pytest.mark.pitfall(36)
@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_an_edited_row_is_found_and_every_reader_refuses(copied: Path, change: str) -> None:
    """First of a ledger that a run closed, then of a killed run's, which has no hash as a whole."""
    with sqlite3.connect(copied / "ledger.sqlite") as db:
        db.executescript(change)
        assert db.total_changes > 0
    db.close()
    for _ in range(2):
        verified = rankscope("verify", copied)
        assert verified.code == 4, verified
        assert "\nledger.sqlite: " in verified.err, verified
        assert "restore it from a copy" in verified.told
        assert rankscope("status", copied).code == 4
        (copied / CLOSED).unlink(missing_ok=True)
    refused(run_again(copied), 4, where="ledger.sqlite", found="", do="restore it from a copy")


@pytest.mark.pitfall(36)
def test_a_ledger_of_garbage_ends_in_4(copied: Path) -> None:
    file = copied / "ledger.sqlite"
    content = file.read_bytes()
    (copied / CLOSED).unlink()
    for garbage in (content[:4096] + b"\xff" * (len(content) - 4096), content[:5000], b"no" * 999):
        file.write_bytes(garbage)
        for verb in READERS:
            outcome = rankscope(verb, copied)
            assert outcome.code == 4, outcome
            assert "ledger.sqlite" in outcome.err
        refused(run_again(copied), 4, where="ledger.sqlite", found="", do="restore it from a copy")


@pytest.mark.pitfall(36)
@pytest.mark.parametrize("found", ["no file", "an empty file"])
def test_a_lost_ledger_ends_in_4(copied: Path, found: str) -> None:
    file = copied / "ledger.sqlite"
    file.unlink() if found == "no file" else file.write_bytes(b"")
    expected, do = "the ledger that ledger.sha256 names", "restore it from a copy"
    for outcome in (run_again(copied), *(rankscope(verb, copied) for verb in READERS)):
        refused(outcome, 4, where=str(file), found=found, expected=expected, do=do)


def test_an_edited_answer_is_found_and_written_again(copied: Path) -> None:
    answer = copied / "recommendation.json"
    answer.write_text(answer.read_text("utf-8").replace("0.", "0.9"), "utf-8")
    for quick in ((), ("--quick",)):
        verified = rankscope("verify", copied, *quick)
        assert verified.code == 4
        assert f"write it again: rankscope report {copied}" in verified.told
        assert "\nrecommendation.json: found sha256 " in verified.err
    for name in ("recommendation.json", "report.html", "log.jsonl", "study.resolved.yaml"):
        content = (copied / name).read_bytes()
        (copied / name).unlink()
        verified = rankscope("verify", copied, "--quick")
        assert (verified.code, f"{name}: found no file" in verified.err) == (4, True)
        (copied / name).write_bytes(content)
    assert rankscope("report", copied).code == 0
    assert rankscope("verify", copied).code == 0


# --- data, code, libraries ----------------------------------------------------------------------


@pytest.mark.pitfall(24)
def test_results_of_other_versions_are_mixed_only_on_request(copied: Path) -> None:
    with Ledger.open(copied, write=True) as ledger:
        here = ledger.load().provenance
        older = here.model_copy(
            update={"rankscope": "0.0.1+0ld", "libraries": {**here.libraries, "torch": "2.0.0"}}
        )
        ledger.add_provenance(older, allow_mixed=True)
    assert run_again(copied).code == 0  # nothing is missing: nothing is mixed
    edit(copied.parent, "rank: [2, 4]", "rank: [2, 4, 8]")
    refused(
        run_again(copied), where=str(copied), found="",
        expected="torch was 2.0.0, is " + here.libraries["torch"], do="--allow-mixed",
    )  # fmt: skip
    mixed = run_again(copied, "--allow-mixed")
    assert mixed.code == 0, mixed
    study = loaded(copied)
    assert [trial.status for trial in study.trials] == ["done"] * 3
    (note,) = [note for note in study.notes if "more than one version" in note]
    assert "torch" in note
    assert "0.0.1+0ld" in note


def test_a_word_that_retry_does_not_know(copied: Path) -> None:
    refused(
        run_again(copied, "--retry", "failed,done"), where=f"{copied}: --retry", found="'done'",
        expected="diverged, failed, oom, base or the id of a trial", do="rankscope status",
    )  # fmt: skip
