"""Texts are replaced whole, or not at all; no empty folder is left."""

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from full_disks import files_of_at_most

from rankscope.errors import DiskFull, UserError
from rankscope.filesystem import folder_in_one_step, output_folder, replace_text


def test_a_text_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    assert replace_text(path, "old")
    with files_of_at_most(1000), pytest.raises(DiskFull, match=r"2,000 bytes"):
        replace_text(path, "n" * 2000)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_text_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    assert replace_text(path, "naïve\r\n")
    before = path.stat()
    assert not replace_text(path, "naïve\r\n")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert replace_text(path, "naïve\n")


def test_a_folder_made_for_what_fails_goes_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with suppress(UserError), output_folder(out):
        assert out.is_dir()
        raise UserError("refused")
    assert not (tmp_path / "new").exists()
    with suppress(UserError), output_folder(out):
        (out / "first.json").write_text("{}")
        raise UserError("refused")
    assert (out / "first.json").is_file()


def test_a_folder_has_the_mode_of_others_and_takes_the_place_of_a_killed_one(
    tmp_path: Path,
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname()
    left = {f".new.{host}.{os.getppid()}.part", f".new.other.{ended.pid}.part", ".new.own.part"}
    for name in (f".new.{host}.{ended.pid}.part", *left):
        (tmp_path / name).mkdir()
    (tmp_path / "secret").touch(0o600)
    with folder_in_one_step(tmp_path / "new") as partial:
        (partial / "weights").write_bytes(b"x")
        (partial / "weights").chmod(0o600)
        (partial / "other").write_bytes(b"y")
        (partial / "link").symlink_to(tmp_path / "secret")
    assert stat_of(tmp_path / "new" / "weights") == stat_of(tmp_path / "new" / "other")
    assert stat_of(tmp_path / "secret") & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"new", "secret", *left}


def stat_of(path: Path) -> int:
    return path.stat().st_mode
