"""One writer per study, on one machine's disk, in one place; readers beside it change nothing."""

import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from command_line import rankscope
from launcher import Launcher, stopping_after
from pocket_study import Undisturbed, results

from fault_readers import readers
from faults import edit, held, refused, run_again
from rankscope.filesystem import network_file_system
from rankscope.store import Ledger

READERS = ("status", "verify", "report")


@pytest.mark.pitfall(23)
def test_a_second_runner_is_refused_and_a_dead_ones_lock_is_none(copied: Path) -> None:
    with held(copied) as holder:
        name = f"process {holder.pid} on {socket.gethostname()}"
        outcome = run_again(copied)
        refused(outcome, where=str(copied), found=name, do="wait for it or stop it")
        assert rankscope("status", copied).code == 0
        holder.kill()
    # The killed holder's lock is gone, whatever its file says.
    assert str(holder.pid) in (copied / "ledger.lock").read_text("utf-8")
    assert run_again(copied).code == 0


@pytest.mark.pitfall(30)
def test_the_lock_of_another_machine_is_named_and_taken_over_only_on_request(copied: Path) -> None:
    (copied / "ledger.lock").write_text("4711 on elsewhere\n", "utf-8")
    for _ in range(2):
        refused(
            run_again(copied), where=str(copied), found="process 4711 on elsewhere",
            expected=f"one of this machine ({socket.gethostname()})", do="--take-over",
        )  # fmt: skip
    assert run_again(copied, "--take-over").code == 0
    assert run_again(copied).code == 0


@pytest.mark.pitfall(30)
def test_a_network_disk_is_named_and_used_only_on_request(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, MOUNTS | {str(copied.parent): "nfs4"})
    refused(
        run_again(copied),
        where=str(copied),
        found=f"a network file system (nfs4 at {copied.parent})",
        expected="a disk of this machine",
        do="--take-over",
    )
    assert rankscope("verify", copied).code == 0
    assert run_again(copied, "--take-over").code == 0


MOUNTS = {"/": "ext4", "/net disk": "fuse.sshfs", "/net disk/local": "tmpfs", "/twice": "xfs"}


def mounted(monkeypatch: pytest.MonkeyPatch, mounts: dict[str, str]) -> None:
    """A machine with these file systems, and another one below the last."""
    parts = [SimpleNamespace(mountpoint="/twice", fstype="nfs")]
    parts += [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: parts)


def test_the_file_system_below_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, MOUNTS)
    assert network_file_system(Path("/home/x")) is None
    assert network_file_system(Path("/net disk/x/y")) == "fuse.sshfs at /net disk"
    assert network_file_system(Path("/net disk/local/y")) is None
    assert network_file_system(Path("/twice")) is None


@pytest.mark.pitfall(27)
def test_a_folder_moved_between_runs_continues(copied: Path) -> None:
    edit(copied.parent, "rank: [2, 4]", "rank: [2, 4, 8]")
    moved = copied.rename(copied.with_name("elsewhere"))
    outcome = run_again(moved)
    assert outcome.code == 0, outcome
    assert "1 of its 3 trials are new" in outcome.told
    assert rankscope("verify", moved).code == 0
    assert not copied.exists()


@pytest.mark.pitfall(27)
def test_a_folder_moved_while_it_runs_ends_the_run_and_continues_there(
    launcher: Launcher, long_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    launcher.start("run", long_file, "--out", out, "--json", code=stopping_after(1))
    launcher.wait_until_stopped()
    out.rename(moved)
    launcher.send(signal.SIGCONT)
    refused(
        launcher.outcome(), where=str(out), found="no folder or another one",
        expected="the running study's", do="give the command again with its new place",
    )  # fmt: skip
    assert not out.exists()
    assert launcher.run("run", long_file, "--out", moved).code == 0
    undisturbed.assert_equal(moved)


@pytest.mark.pitfall(27)
def test_another_studys_folder_is_refused(copied: Path) -> None:
    edit(copied.parent, "rank: [2, 4]", "rank: [16]")
    edit(copied.parent, "name: own", "name: other")
    refused(
        run_again(copied), where=str(copied), found="results of the study 'own'",
        expected="those of 'other'", do="its own --out folder",
    )  # fmt: skip
    with Ledger.open(copied, write=False) as ledger:
        assert set(ledger.statuses().values()) == {"done"}


def test_a_folder_in_the_ledgers_place(tmp_path: Path, place: Path) -> None:
    (tmp_path / "out" / "ledger.sqlite").mkdir(parents=True)
    run = ("run", "study.yaml", "--out", tmp_path / "out")
    for words in (run, *((verb, tmp_path / "out") for verb in READERS)):
        outcome = rankscope(*words)
        refused(outcome, where="ledger.sqlite", found="a folder", expected="a file", do="move it")


def test_readers_beside_a_run_change_nothing(place: Path, own: Path) -> None:
    """From before its first write to after its end; ``own`` is the same study without them."""
    out = place / "out"
    with readers(out, place / "readers", 2) as seen:
        ran = rankscope("run", own.parent / "study.yaml", "--out", out)
    assert ran.code == 0, ran.err
    assert seen.faults == {}
    assert seen.total > 2
    assert results(out) == results(own)
