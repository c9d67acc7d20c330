"""A full or failing disk: one message, nothing lost, and the same command ends the study.

``evidence/campaigns/faults.py`` lets every single change fail; these are a few of them.
"""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from launcher import COMMAND, Launcher

from fault_points import Undisturbed, tiny_study
from fault_shim import FaultShim, NoCompiler
from faults import files_of_at_most, message_of, refused
from rankscope.errors import DiskFull, UserError
from rankscope.store import Ledger, transfer

SHORTAGE = DiskFull
"""SQLite does not always know which of the two it met."""


class Starved(NamedTuple):
    """Commands whose changes of files can be made to fail."""

    launcher: Launcher
    shim: FaultShim | None
    """None on a machine without a C compiler: the size of files is limited instead."""
    reference: Undisturbed
    num_changes: int
    """That the reference run made."""


@pytest.fixture(scope="module")
def starved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starved]:
    folder = tmp_path_factory.mktemp("starved")
    try:
        shim = FaultShim(folder)
    except NoCompiler:
        shim = None
    # Of what is written, only how many lines the log has of a stage depends on the speed.
    code = "from rankscope.progress import JsonlReporter; JsonlReporter.LINE_SECONDS = 1e9"
    with Launcher(folder, shim.environment if shim else {}, f"{code}\n{COMMAND}") as launcher:
        if shim:
            shim.arm(folder / "undisturbed")
        reference = Undisturbed.of(launcher, tiny_study(folder))
        yield Starved(launcher, shim, reference, len(shim.changes) if shim else 0)


@pytest.mark.pitfall(20, 33)
@pytest.mark.parametrize(
    ("share", "number", "lasts", "file_size"),
    [
        (0.01, errno.ENOSPC, True, 4_000),
        (0.4, errno.EIO, False, 20_000),
        (0.99, errno.ENOSPC, True, 100_000),
    ],
)
def test_a_disk_that_fails_anywhere_in_a_run(
    starved: Starved, tmp_path: Path, share: float, number: int, lasts: bool, file_size: int
) -> None:
    """The change at that share of all changes fails, or every file that grows beyond a size."""
    out, shim, limits = tmp_path / "out", starved.shim, {}
    if shim is None:
        limits, number = {"RLIMIT_FSIZE": file_size}, errno.EFBIG
    else:
        shim.arm(out, 1 + int(share * starved.num_changes), number, lasts=lasts)
    ran = starved.launcher.run("run", starved.reference.file, "--out", out, "--json", limits=limits)
    if shim is not None:
        assert shim.failure
        shim.disarm()
    found = "found a disk that" if number == errno.EIO else "bytes free"
    refused(ran, 3, where=str(out), found=found, do="then give the same command again")
    status = starved.launcher.run("status", out)
    assert status.code == 0 or "found no study here" in message_of(status)
    assert starved.reference.resumed(starved.launcher, out) == ""


@pytest.mark.pitfall(20)
def test_a_ledger_that_cannot_be_created_leaves_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for size in (0, 1, 4_000, 20_000):
        with files_of_at_most(size), pytest.raises(SHORTAGE, match="expected room for"):
            Ledger.open(out, write=True)
        assert {path.name for path in out.iterdir()} <= {"ledger.lock"}
        with pytest.raises(UserError, match="found no study here"):
            Ledger.open(out, write=False)
    with Ledger.open(out, write=True) as ledger:
        with files_of_at_most(20_000), pytest.raises(SHORTAGE, match=r"ledger\.sqlite: found"):
            ledger.put_notes(["x" * 100_000])
        ledger.put_notes(["after"])


def test_a_new_ledger_needs_no_rollback_journal(tmp_path: Path) -> None:
    """A disk that failed would leave one behind, and readers cannot roll back."""
    with Ledger.open(tmp_path / "out", write=True):
        pass
    header = (tmp_path / "out" / "ledger.sqlite").read_bytes()
    assert header[18:20] == bytes([2, 2])  # "file format write version" and "read version": WAL
    assert not list((tmp_path / "out").glob("*.part"))


@pytest.mark.pitfall(33)
def test_a_report_on_a_full_disk_keeps_the_old_one(starved: Starved, tmp_path: Path) -> None:
    out = shutil.copytree(starved.reference.file.with_name("undisturbed"), tmp_path / "out")
    (out / "report.html").write_text("old")
    before = sorted(path.name for path in out.iterdir())
    ran = starved.launcher.run("report", out, "--json", limits={"RLIMIT_FSIZE": 50_000})
    refused(ran, 3, where="report.html", found="bytes free", do="'ulimit -f'")
    assert sorted(path.name for path in out.iterdir()) == before
    assert (out / "report.html").read_text() == "old"


NO_READER = {
    "a pipe nobody reads": "reader, pipe = os.pipe(); os.close(reader); os.dup2(pipe, {0})",
    "a closed terminal": "other, pty = os.openpty(); os.close(other); os.dup2(pty, {0})",
    "closed": "os.close({0}); sys.{1} = None",  # as Python begins with ``>&-``
}


@pytest.mark.parametrize("gone", NO_READER.values(), ids=NO_READER)
def test_outputs_without_a_reader_stop_no_command(
    starved: Starved, tmp_path: Path, gone: str
) -> None:
    launcher, file, out = starved.launcher, starved.reference.file, tmp_path / "out"
    lost = "; ".join(gone.format(*stream) for stream in ((2, "stderr"), (1, "stdout")))
    without = f"import os, sys; {lost}; {COMMAND}"
    launcher.start("run", file, "--out", out, code=without)
    assert launcher.outcome().code == 0
    assert starved.reference.differs(out) == ""
    for verb in ("status", "verify", "report"):
        launcher.start(verb, out, *(["--json"] if verb == "status" else []), code=without)
        assert launcher.outcome().code == 0, verb
    launcher.start("status", tmp_path, code=without)
    assert launcher.outcome().code == 2


def test_a_full_disk_below_an_output(starved: Starved, tmp_path: Path) -> None:
    """Progress is lost; a result that cannot be printed is code 3."""
    onto_full = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {}); " + COMMAND
    launcher, file, out = starved.launcher, starved.reference.file, tmp_path / "out"
    launcher.start("run", file, "--out", out, code=onto_full.format(2))
    assert launcher.outcome().code == 0
    assert starved.reference.differs(out) == ""
    launcher.start("status", out, code=onto_full.format(1))
    outcome = launcher.outcome()
    assert outcome.code == 3
    assert "writing: found the disk full" in message_of(outcome)


def test_results_of_a_worker_that_do_not_fit(starved: Starved, tmp_path: Path) -> None:
    """The study is on another disk than the unit, so that files are copied; none is left half."""
    source = starved.reference.file.with_name("undisturbed")
    if tmp_path.stat().st_dev == Path("/dev/shm").stat().st_dev:
        pytest.skip("/dev/shm is the disk of temporary files here, so that files are linked")
    other = Path(tempfile.mkdtemp(prefix="rankscope-", dir="/dev/shm"))
    try:
        with Ledger.open(source, write=False) as unit, Ledger.open(other, write=True) as ledger:
            ledger.put_trials(unit.trials())
            ids = [trial.trial_id for trial in unit.trials()]
            with files_of_at_most(100_000), pytest.raises(DiskFull, match=r"for [\d,]{7,} bytes"):
                transfer(unit, ledger, ids)
            assert ledger.artifacts() == ()
            transfer(unit, ledger, ids)
            copied = ledger.artifacts()
            assert set(copied) == {a for i in ids for a in unit.artifacts(f"artifacts/{i}")}
            assert all(ledger.checked_path(artifact.path) for artifact in copied)
    finally:
        shutil.rmtree(other, ignore_errors=True)
