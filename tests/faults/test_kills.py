"""Whatever kills a run, or the machine below it, the same command brings it to the same end."""

import os
import random
import shutil
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import rankscope
from launcher import Launcher, stopping_after
from pocket_study import SETTINGS, Undisturbed, results, study_file

from fault_bits import kill_with_workers
from fault_points import Undisturbed as Reference, tiny_study
from fault_workers import COMMAND as FORKED_WORKERS
from faults import flip_bit, refused
from rankscope.store import Ledger

KILLS = 3


@pytest.mark.pitfall(18, 26, 33)
def test_a_run_killed_at_any_moment_continues(
    launcher: Launcher, long_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """SIGKILLs at moments spread over the whole life of the command; a study that came to its
    end before its turn to be killed is checked, and the next one begins in a new folder."""
    moments = random.Random(0)
    kills, studies = 0, 1
    while kills < KILLS:
        out = tmp_path / str(studies)
        launcher.start("run", long_file, "--out", out)
        code = launcher.ended(moments.uniform(0, 0.8 * undisturbed.seconds))
        if code is None:
            launcher.send(signal.SIGKILL)
            code = launcher.ended()
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0, launcher.said()
        undisturbed.assert_equal(out)
        studies += 1
    ran = launcher.run("run", long_file, "--out", tmp_path / str(studies))
    assert ran.code == 0, ran.err
    undisturbed.assert_equal(tmp_path / str(studies))


@pytest.mark.pitfall(36)
def test_an_altered_checkpoint_is_refused_and_a_removed_one_costs_only_time(
    launcher: Launcher, long_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    launcher.start("run", long_file, "--out", out, code=stopping_after(2))
    launcher.wait_until_stopped()
    launcher.send(signal.SIGKILL)
    launcher.ended()
    (state,) = out.glob("checkpoints/*/step-*")
    assert rankscope("verify", out).code == 0
    assert "; checkpoint after step 1\n" in rankscope("status", out).out
    for file in sorted(state.iterdir()):
        content = flip_bit(file)
        verified = rankscope("verify", out)
        assert verified.code == 4, file
        assert str(state.relative_to(out)) in verified.err
        file.write_bytes(content)
    flip_bit(state / "state.safetensors")
    refused(
        launcher.run("run", long_file, "--out", out, "--json"), 4, where=str(state),
        found="altered files", expected="the hashes in its SHA256SUMS",
        do=f"remove {state.parent}",
    )  # fmt: skip
    shutil.rmtree(state.parent)
    assert launcher.run("run", long_file, "--out", out).code == 0
    undisturbed.assert_equal(out)


@pytest.mark.pitfall(18)
def test_killed_drivers_leave_workers_that_the_next_one_waits_for(
    launcher: Launcher, tmp_path: Path
) -> None:
    """While a worker is stopped, its driver lives and a second one is refused. A stopped worker of
    a dead driver holds its unit: the next driver says that it waits, Ctrl-C
    ends the wait, and once the worker is gone the study comes to the end of one without workers.
    """
    changes = {"arms": [SETTINGS["arms"][1]], "evaluate": {"max_items": 8}}
    file, out = study_file(tmp_path, **changes), tmp_path / "out"
    words = ("run", file, "--out", out, "--workers", "2")
    launcher.start(*words, code=stopping_after(2, FORKED_WORKERS))
    worker = launcher.wait_until_stopped()
    name = f"process {launcher.child} on {socket.gethostname()}"
    refused(rankscope(*words), where=str(out), found=name, do="wait for it or stop it")
    launcher.send(signal.SIGKILL)
    launcher.ended()
    launcher.start(*words, code=FORKED_WORKERS)
    launcher.wait_for(lambda: f"waiting for worker {worker} on " in launcher.said())
    launcher.send(signal.SIGINT)
    assert launcher.ended() == 130, launcher.said()
    os.kill(worker, signal.SIGCONT)  # it sees that its driver died, and writes a checkpoint
    launcher.start(*words, code=FORKED_WORKERS)
    assert launcher.outcome().code == 0, launcher.said()
    alone = launcher.run("run", file, "--out", tmp_path / "alone")
    assert alone.code == 0, alone.err
    assert results(out) == results(tmp_path / "alone")
    assert rankscope("verify", out).code == 0


WAL = "ledger.sqlite-wal"
HEADER, FRAME_HEADER = 32, 24
"""Bytes; https://www.sqlite.org/fileformat.html#walformat"""


def commits(log: Path) -> Iterator[int]:
    """Sizes that a write-ahead log had after each of its transactions, and before the first."""
    content = log.read_bytes()
    (page,) = struct.unpack_from(">I", content, 8)
    yield HEADER
    for start in range(HEADER, len(content), FRAME_HEADER + page):
        (pages_after_commit,) = struct.unpack_from(">I", content, start + 4)
        if pages_after_commit:
            yield start + FRAME_HEADER + page


def shortened(killed: Path, out: Path, size: int) -> Path:
    """A copy of a study whose log has lost what came after ``size``."""
    shutil.copytree(killed, out)
    with (out / WAL).open("r+b") as log:
        log.truncate(size)
    return out


def has_groups(out: Path) -> bool:
    with Ledger.open(out, write=False) as ledger:
        return ledger.groups() is not None


@pytest.mark.usefixtures("minutes")
@pytest.mark.pitfall(18)
def test_a_ledger_that_lost_its_last_transactions_continues(tmp_path: Path) -> None:
    """SQLite does not wait for the disk at each of them. Units of workers are there already, also
    if the study's groups are lost."""
    with Launcher(tmp_path, code=FORKED_WORKERS) as launcher:
        reference = Reference.of(launcher, tiny_study(tmp_path))
        killed = tmp_path / "killed"
        kill_with_workers(launcher, reference.file, killed)
        sizes = list(commits(killed / WAL))
        assert len(sizes) > 3
        copies = {size: shortened(killed, tmp_path / str(size), size) for size in sizes}
        before_groups = max(size for size, out in copies.items() if not has_groups(out))
        for size in sorted({before_groups, *sizes[:: len(sizes) // 3]}):
            assert reference.resumed(launcher, copies[size]) == "", size
