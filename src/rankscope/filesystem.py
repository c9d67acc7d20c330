"""Output folders, and writes that are durable and take effect at once."""

import glob
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rankscope.errors import UserError, reading, reporting_shortages

NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 cifs smb3 smbfs sshfs afs ceph lustre gpfs beegfs glusterfs orangefs pvfs2".split()
    + "ocfs2 gfs2 juicefs s3fs gcsfuse rclone davfs".split()
)
"""Types of mounts on which locks and SQLite's write-ahead log do not hold between machines."""


def network_file_system(path: Path) -> str | None:
    """Return the network file system of a path, such as ``nfs4 at /home``; None without one."""
    import psutil  # most commands need none of it

    # If several mounts share a place, the last is on top.
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    for folder in (path.resolve(), *path.resolve().parents):
        if kind := mounts.get(str(folder)):
            is_network = kind.removeprefix("fuse.") in NETWORK_FILE_SYSTEMS
            return f"{kind} at {folder}" if is_network else None
    return None


def user_path(given: str | Path) -> Path:
    """Expand a path that the user gave, with ``~`` as the home folder.

    Raises UserError: there is no such home, or its name is not UTF-8, which the libraries that
    write here need.
    """
    with reading(given, "a path in UTF-8", do="write it in full, or rename the folder or file"):
        path = Path(given).expanduser()
        with suppress(FileNotFoundError):  # of the current folder, which was removed
            str(path.absolute()).encode()
    return path


def cache_folder() -> Path:
    """Return the folder of cached files: $RANKSCOPE_CACHE, or ~/.cache/rankscope."""
    return user_path(os.environ.get("RANKSCOPE_CACHE") or "~/.cache/rankscope")


def make_folder(folder: Path) -> None:
    """Create a folder that the user named, and those above it, unless it exists.

    Raises UserError: the place takes no folders, such as /proc.
    """
    with reading(folder, "a place for a folder", do="give another"):
        folder.mkdir(parents=True, exist_ok=True)


def check_taken(out: Path) -> None:
    """Refuse a place that a finished folder could not be renamed to.

    The current folder is refused, too: replacing it would leave the shell in a deleted one.
    """
    place = out.resolve()  # "x/.." is a folder even if there is no x
    if place.is_dir() and not any(place.iterdir()):
        if place == Path.cwd():
            found = "the folder this command runs in, which would be replaced"
            raise UserError(out, found, "a new folder", "give a name in it, or elsewhere")
        return
    if place.exists() or out.is_symlink():
        content = "a folder with files in it" if place.is_dir() else "a file"
        raise UserError(out, content, "nothing or an empty folder", "give another")


def check_outside(out: Path, study: Path, option: str) -> None:
    """Refuse a place inside a study, whose folder the ledger accounts for."""
    places = (out.parent.resolve() / out.name, out.resolve())  # of a link and of its target
    if any(place.is_relative_to(study.resolve()) for place in places):
        found = f"a place inside the study {study}"
        raise UserError(out, found, "one outside it", f"give {option} another place")


def check_folder(study: Path, out: Path, option: str) -> None:
    """Raise UserError unless ``out`` is a folder, new or not, outside the study."""
    check_outside(out, study, option)
    if out.exists() and not out.is_dir():
        raise UserError(out, "a file", "a folder", f"choose another {option}")


def check_in_place(out: Path, *, is_another: bool = False) -> None:
    """Refuse to make the folder of a running study anew, because its ledger is elsewhere then."""
    if is_another or not out.is_dir():
        found = "no folder or another one, as it was moved or removed"
        expected = "the running study's"
        raise UserError(out, found, expected, "give the command again with its new place as --out")


@contextmanager
def output_folder(out: Path | None) -> Iterator[None]:
    """Create ``out`` before minutes of work whose result belongs there; None means no folder.

    If the work fails, created folders are removed again, unless they have content.
    """
    if out is None:
        yield
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}", "a file", "a folder or a new name", "give another")
    place = out.resolve()  # "x/.." would make x
    new = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        with reading(f"--out {out}", "a folder to write to", do="give another"):
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):  # does not exist, or has content
                folder.rmdir()
        raise


@contextmanager
def folder_in_one_step(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out`` that takes its place at the end, unless something fails.

    Raises:
        DiskFull: ``out`` is left unchanged.
    """
    import psutil  # most commands need none of it

    out = out.resolve()  # "x/.." has no name to put a copy beside
    own = f".{out.name}.{socket.gethostname()}"  # another machine's process ids say nothing here
    partial = out.with_name(f"{own}.{os.getpid()}.part")
    for left in out.parent.glob(f"{glob.escape(own)}.*.part"):
        pid = left.suffixes[-2][1:]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    try:
        with reporting_shortages(out):
            make_folder(out.parent)
            partial.mkdir()
            yield partial
            make_readable(path for path in partial.rglob("*") if path.is_file())
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_readable(files: Iterable[Path]) -> None:
    """Give files the mode of other new ones; safetensors writes some for their owner only.

    The targets of links keep their modes.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in files:
        if not path.is_symlink():
            path.chmod(0o666 & ~umask)


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> bool:
    """Call ``replace_bytes`` with text in UTF-8."""
    return replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> bool:
    """Replace the content of ``path`` in one step; return False if it was ``content`` already.

    A reader, or a run after a crash, finds the old content or the new one, never a part.

    Raises:
        DiskFull: the old content stays.
    """
    if path.is_file() and path.read_bytes() == content:
        return False
    partial = path.with_name(path.name + ".part")
    try:
        with reporting_shortages(path, lambda: f"{len(content):,} bytes"):
            partial.write_bytes(content)
            fsync(partial)
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return True


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file that somebody else may have written.

    Raises:
        UserError: there is no such file, or no JSON object in it.
    """
    expected, do = "a JSON object", "restore it from where it came from"
    with reading(path, expected, do=do):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise UserError(path, f"a JSON {type(value).__name__}", expected, do)
    return value
