"""Files of a study: staged, flushed to disk, hashed, renamed, and only then named in the ledger.

A file that the ledger does not name is garbage. So a process may die between any two of these steps
and leaves nothing that looks like a result.
"""

import os
import shlex
import shutil
import stat
import uuid
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rankscope.errors import IntegrityError, UserError, reporting_shortages
from rankscope.filesystem import check_in_place, fsync, make_readable
from rankscope.hashing import sha256_file
from rankscope.store.row_hashes import LEDGER, LEDGER_REMEDY

ARTIFACTS = "artifacts"
STAGING = "tmp"
CHECKPOINTS = "checkpoints"  # States of groups in training
UNITS = "units"  # Folders of units that workers run
UNIT_ORDER = "unit.json"  # In each; one without it is being made or removed


@dataclass(frozen=True, slots=True)
class Artifact:
    path: str  # Relative to the study, such as ``artifacts/base/items/x.parquet``
    sha256: str
    num_bytes: int

    def __post_init__(self) -> None:
        if [type(part) for part in (self.path, self.sha256, self.num_bytes)] != [str, str, int]:
            found = "no path with a sha256 and a number of bytes"
            raise IntegrityError(f"{LEDGER}: artifacts {self.path!r}", found, "one", LEDGER_REMEDY)


class ArtifactStore:
    """The folder ``OUT/artifacts`` and the staging area ``OUT/tmp`` beside it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._root = out.resolve() / ARTIFACTS

    def resolve(self, relative: str) -> Path:
        """Return the absolute path of an artifact. Raises UserError: a name outside
        ``artifacts/``."""
        parts = PurePosixPath(relative).parts
        unsafe = (
            len(parts) < 2
            or parts[0] != ARTIFACTS
            or ".." in parts
            or "\0" in relative
            or "\\" in relative
            or any(len(part.encode()) > 255 for part in parts)
        )
        path = self.out.joinpath(*parts) if not unsafe else self.out
        # A symbolic link inside the study could still lead out of it.
        if unsafe or not path.resolve().is_relative_to(self._root):
            shown = relative if len(relative) <= 80 else relative[:77] + "..."
            expected = f"a path inside the study, below '{ARTIFACTS}/'"
            raise UserError(f"artifact name {shown!r}", expected=expected)
        return path

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """Yield a fresh folder to write artifacts into, and remove it at the end.

        Raises DiskFull, and UserError if the study's folder is gone.
        """
        check_in_place(self.out)
        folder = self.out / STAGING / uuid.uuid4().hex

        def needed() -> str:
            files = [path for path in folder.rglob("*") if path.is_file()]
            return f"more than {sum(path.stat().st_size for path in files):,} bytes"

        try:
            with reporting_shortages(self.out, needed):
                folder.mkdir(parents=True)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, relative: str) -> tuple[Artifact, ...]:
        """Move a staged file or folder to its place, durably; return one Artifact per file.

        Anything at ``relative`` is replaced, so the ledger must not name it yet. Raises DiskFull.
        """
        target = self.resolve(relative)
        files = sorted(path for path in (staged, *staged.rglob("*")) if path.is_file())
        artifacts = []
        num_bytes = sum(path.stat().st_size for path in files)
        with reporting_shortages(self.out, lambda: f"{num_bytes:,} bytes"):
            make_readable(files)
            for path in files:
                fsync(path)
                inside = path.relative_to(staged).as_posix() if staged.is_dir() else ""
                name = f"{relative}/{inside}" if inside else relative
                artifacts.append(Artifact(name, sha256_file(path), path.stat().st_size))
            if staged.is_dir():
                for folder in [p for p in staged.rglob("*") if p.is_dir()] + [staged]:
                    fsync(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove(target)
            os.replace(staged, target)
            for folder in target.parents[: len(PurePosixPath(relative).parts)]:
                fsync(folder)  # may be new itself
        return tuple(artifacts)

    def remove_unnamed(self, named: Container[str]) -> None:
        """Remove staged files and every artifact not in ``named``."""
        shutil.rmtree(self.out / STAGING, ignore_errors=True)
        for folder, subfolders, files in os.walk(self.out / ARTIFACTS, topdown=False):
            for name in files:
                path = Path(folder, name)
                if path.relative_to(self.out).as_posix() not in named:
                    path.unlink()
            for name in subfolders:
                path = Path(folder, name)
                if path.is_symlink():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file below ``artifacts/`` by its name; links are not followed.

        Asking for each file by its name takes ten times as long.
        """
        root = self.out / ARTIFACTS
        found = {}
        for folder, _, files in os.walk(root) if not root.is_symlink() else ():
            below = folder[len(str(self.out)) + 1 :]
            for name in files:
                state = os.lstat(f"{folder}/{name}")
                if stat.S_ISREG(state.st_mode):
                    found[f"{below}/{name}"] = state.st_size
        return found

    def check(self, artifact: Artifact, *, quick: bool = False) -> IntegrityError | None:
        """Return how a stored file differs from the written one; ``quick`` compares sizes only."""
        path = self.resolve(artifact.path)
        expected, found = f"{artifact.num_bytes:,} bytes", "no file"
        if path.is_file():
            found = f"{path.stat().st_size:,} bytes"
            if found == expected and not quick:
                expected, found = f"sha256 {artifact.sha256}", f"sha256 {sha256_file(path)}"
        if found == expected:
            return None
        return IntegrityError(artifact.path, found, expected, self.remedy(artifact.path))

    @property
    def shown(self) -> str:
        """The study's folder, quoted for a shell."""
        return shlex.quote(str(self.out))

    def remedy(self, relative: str) -> str:
        """Return the advice for a stored file that is missing or altered."""
        study = shlex.quote(str(self.out / "study.resolved.yaml"))
        owner = PurePosixPath(relative).parts[1]
        return (
            "restore it from a copy, or compute its results again: "
            f"rankscope run {study} --out {self.shown} --retry {owner}"
        )

    def checked_path(self, relative: str, artifacts: Sequence[Artifact]) -> Path:
        """Return the path of a stored file or folder. Raises IntegrityError: it is altered."""
        path = self.resolve(relative)
        for problem in filter(None, map(self.check, artifacts)):
            raise IntegrityError(
                self.out / problem.where, problem.found, problem.expected, problem.do
            )
        if not artifacts:
            found, expected = "none of that name", "a stored artifact"
            raise IntegrityError(self.out / relative, found, expected, self.remedy(relative))
        return path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make a durable copy of a file that never changes; a hard link if the disk allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        fsync(target)
    fsync(target.parent)
