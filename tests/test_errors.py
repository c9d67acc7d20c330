"""Messages of errors and their parts for --json; a library's error is known as a full or failing
disk or as a lack of memory, and nothing else is."""

import json
import os
import pickle
import resource
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from faults import files_of_at_most
from rankscope.config.section import Unfit
from rankscope.data.rows import BadRow, NoCompletion, RawRow
from rankscope.errors import (
    DiskFull,
    IntegrityError,
    Interrupted,
    OutOfMemory,
    UserError,
    is_out_of_memory,
    reading,
    reason_of,
    reporting_shortages,
    shortage_behind,
)
from rankscope.filesystem import folder_in_one_step, output_folder, replace_text


def test_an_error_is_rendered_from_its_parts() -> None:
    error = IntegrityError("a/b", "5 bytes", "7 bytes", "restore it")
    assert str(error) == "a/b: found 5 bytes, expected 7 bytes; restore it"
    assert error.description() == {
        "kind": "IntegrityError", "message": str(error), "where": "a/b", "found": "5 bytes",
        "expected": "7 bytes", "do": "restore it", "exit_code": 4,
    }  # fmt: skip
    some = UserError(
        "task 'a'", "2 bad rows of 9", do="correct them", faults=[error, "a, row 3: x"]
    )
    assert str(some) == (
        f"task 'a': found 2 bad rows of 9:\n  {error}\n  a, row 3: x\ncorrect them"
    )
    described = some.description()
    assert (described["where"], described["found"], described["do"]) == (
        *("a/b", "5 bytes", "restore it"),
    )
    assert UserError("--rank 0", expected="at least 1").description()["found"] is None


def test_errors_are_pickled_whole() -> None:
    row = BadRow("a", "b").at(RawRow("rows, row 7", 7))
    for error in (row, NoCompletion("f"), Unfit("a", "b"), UserError("c", faults=[row])):
        again = pickle.loads(pickle.dumps(error))
        assert again.description() == error.description()
        assert vars(again).keys() == vars(error).keys()


class Row(BaseModel):
    size: int


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda: json.loads("[" * 5000), "nested too deeply"),
        (lambda: json.loads("9" * 5000), "an integer of more than 4,300 digits"),
        (lambda: b"ab\xff".decode(), "byte 3 is not UTF-8 text"),
        (
            lambda: "\ud800".encode(),
            "a lone surrogate (\\ud800 to \\udfff), which is not a character",
        ),
        (lambda: {}["weights"], "there is no 'weights'"),
        (lambda: yaml.safe_load("a: [\n"), "while parsing a flow node"),
        (lambda: Row.model_validate({}), "size: Field required"),
        (lambda: Row.model_validate(1), "Input should be a valid dictionary or instance of Row"),
    ],
)
def test_what_a_library_raises_becomes_one_message(read: Callable[[], object], reason: str) -> None:
    with (
        pytest.raises(IntegrityError) as refused,
        reading("a/b", "a list", IntegrityError, "fix it"),
    ):
        read()
    assert str(refused.value) == f"a/b: found a fault ({reason}), expected a list; fix it"
    assert reason_of(refused.value.__cause__) == reason


def test_own_errors_and_a_lack_of_memory_pass_through() -> None:
    for error in (UserError("as it was"), MemoryError("no room")):
        with pytest.raises(type(error)) as raised, reading("a/b", "a list", IntegrityError):
            raise error
        assert raised.value is error


# --- shortages


def write_to_a_full_device(place: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def write_tensors(place: Path) -> None:
    save_file({"x": torch.zeros(10_000)}, place / "x.safetensors")


def write_table(place: Path) -> None:
    pq.write_table(pa.table({"x": list(range(100_000))}), place / "x.parquet")


@pytest.mark.parametrize("write", [write_to_a_full_device, write_tensors, write_table])
def test_a_full_disk_is_known_in_the_words_of_every_library(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with files_of_at_most(1000), pytest.raises((SafetensorError, OSError)) as failure:
        write(tmp_path)
    assert isinstance(shortage_behind(failure.value), DiskFull)
    with pytest.raises((SafetensorError, OSError)) as absent:
        save_file({"x": torch.zeros(1)}, tmp_path / "nowhere" / "x.safetensors")
    assert shortage_behind(absent.value) is None
    failing = shortage_behind(OSError(5, "Input/output error", "/x/y"))
    assert isinstance(failing, DiskFull)
    assert failing.found.startswith("a disk that fails, with ")
    assert failing.do.startswith("check the disk, then give the same command again")


def test_sqlite_names_a_full_disk_and_others_with_the_free_space(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.sqlite", isolation_level=None)) as db:
        db.execute("CREATE TABLE t (x)")
        with files_of_at_most(10_000), pytest.raises(sqlite3.OperationalError) as failure:
            db.execute("INSERT INTO t VALUES (?)", ("x" * 20_000_000,))
        with pytest.raises(sqlite3.OperationalError) as wrong:
            db.execute("SELECT nothing")
    known = shortage_behind(failure.value, tmp_path / "x.sqlite")
    assert isinstance(known, DiskFull)
    assert "bytes free" in str(known)
    assert shortage_behind(wrong.value) is None


def test_too_many_open_files_are_no_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    sqlite3.connect(tmp_path / "x.sqlite").close()
    used = os.open(os.devnull, os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, before[1]))
        with pytest.raises(sqlite3.OperationalError) as failure:
            sqlite3.connect(tmp_path / "x.sqlite")
        error = shortage_behind(failure.value, tmp_path / "x.sqlite")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        os.close(used)
    assert isinstance(error, DiskFull)
    assert error.found == "the limit of open files reached (unable to open database file)"
    assert "'ulimit -n'" in error.do


def test_a_folder_that_cannot_be_copied_names_the_cause_once(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "x").write_bytes(bytes(20_000))
    with files_of_at_most(1000), pytest.raises(shutil.Error) as failure:
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=shutil.copyfile)
    text = str(shortage_behind(failure.value, tmp_path / "to"))
    assert " bytes free (File too large), expected room for more; " in text


def allocator_failure() -> None:
    torch.empty(2**55, dtype=torch.float32)


def python_failure() -> None:
    bytearray(2**62)


def thread_failure() -> None:
    """A stack of more than there is; the size is put back."""
    before = threading.stack_size(2**46)
    try:
        threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)


class PanicException(BaseException):
    """Of pyo3, by its name: a real one, under a limit of memory, may end the tests' process."""


def panic_of_rust() -> None:
    raise PanicException("PyObject pointer is null")


@pytest.mark.parametrize("act", [allocator_failure, python_failure, thread_failure, panic_of_rust])
def test_out_of_memory_is_known_behind_other_errors(act: Callable[[], None]) -> None:
    """Whatever its words, and if the error that it caused says something else."""

    def read_weights() -> None:
        try:
            act()
        except Exception as error:
            raise IntegrityError("weights cannot be read") from error

    with (
        pytest.raises(OutOfMemory, match=r"^here: out of memory: ") as known,
        reporting_shortages("here"),
    ):
        read_weights()
    assert known.value.exit_code == 3


def test_other_errors_are_no_shortage() -> None:
    for error in (RuntimeError("size mismatch"), UserError("memory_limit 1"), KeyError("x")):
        assert not is_out_of_memory(error)
        assert shortage_behind(error) is None
    stopped = Interrupted("stopped")
    stopped.__cause__ = MemoryError()
    assert shortage_behind(stopped) is None


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
