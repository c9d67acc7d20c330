"""A machine that lost power: the ledger lost its last transactions, and files are ahead of it."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher import Launcher

from fault_bits import kill_with_workers
from fault_points import Undisturbed, tiny_study
from fault_workers import COMMAND
from rankscope.store import Ledger

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


@pytest.mark.pitfall(18)
def test_a_ledger_that_lost_its_last_transactions_continues(tmp_path: Path) -> None:
    """SQLite does not wait for the disk at each of them. Units of workers are there already, also
    if the study's groups are lost."""
    with Launcher(tmp_path, code=COMMAND) as launcher:
        reference = Undisturbed.of(launcher, tiny_study(tmp_path))
        killed = tmp_path / "killed"
        kill_with_workers(launcher, reference.file, killed)
        sizes = list(commits(killed / WAL))
        assert len(sizes) > 3
        copies = {size: shortened(killed, tmp_path / str(size), size) for size in sizes}
        before_groups = max(size for size, out in copies.items() if not has_groups(out))
        for size in sorted({before_groups, *sizes[:: len(sizes) // 3]}):
            assert reference.resumed(launcher, copies[size]) == "", size
