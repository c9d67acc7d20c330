"""Builds ``fault_shim.c`` and tells it which change of a folder is to fail."""

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fault_shim.c")
LAYOUT = struct.Struct("6q1024s64s1024s")
"""Fields of ``struct fault``: armed, count, at, lasts, number, failed, folder, call, path."""


class NoCompiler(Exception):
    """The shim cannot be built on this machine."""


class FaultShim:
    """One shim with its state; ``environment`` preloads it into a process and its children."""

    def __init__(self, folder: Path) -> None:
        """Build it in ``folder``.

        Raises:
            NoCompiler: there is no C compiler, or it cannot build the shim.
        """
        library, state = folder / "fault_shim.so", folder / "fault_state"
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise NoCompiler("found no C compiler (cc, gcc or clang) on the path")
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise NoCompiler(f"{compiler} cannot build {SOURCE.name}: {built.stderr.strip()}")
        state.write_bytes(bytes(LAYOUT.size))
        with state.open("r+b") as file:
            self._state = mmap.mmap(file.fileno(), LAYOUT.size)
        self._log = folder / "fault_log"
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAULT_STATE": str(state),
            "FAULT_LOG": str(self._log),
        }

    def arm(self, folder: Path, at: int = 0, number: int = 0, *, lasts: bool = False) -> None:
        """Count changes below ``folder`` from now on, and let the one ``at`` (from 1) fail.

        Args:
            folder: need not exist.
            at: 0 lets none fail.
            number: ``errno`` of the failure.
            lasts: all later changes fail, too, until :meth:`disarm`.
        """
        self._log.unlink(missing_ok=True)
        name = os.fsencode(folder.resolve())
        self._state[:] = LAYOUT.pack(0, 0, at, lasts, number, 0, name, b"", b"")
        self._state[:8] = (1).to_bytes(8, "little")

    def disarm(self) -> None:
        """Let everything succeed."""
        self._state[:8] = bytes(8)

    @property
    def changes(self) -> list[str]:
        """Changes since :meth:`arm`, such as ``fsync of /x/y``."""
        return self._log.read_text(errors="replace").splitlines() if self._log.exists() else []

    @property
    def failure(self) -> str:
        """The first change that failed; '' if none did."""
        *_, failed, _, call, path = LAYOUT.unpack(self._state[:])
        return f"{_text(call)} of {_text(path)}" if failed else ""


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])
