"""Singular value decompositions of base weights, computed once and cached in memory and on disk.

A file on disk is named by the sha256 of the matrix, not of the model: models with equal weights
share it, and changed weights never get a stale one.

Shapes: m = out, n = in, d = min(m, n).
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rankscope.errors import DiskFull
from rankscope.filesystem import cache_folder, replace_bytes
from rankscope.hashing import sha256_json, sha256_tensors

SMALLEST_STORED = 256  # Smallest d that is kept on disk: others take milliseconds
ROUNDED_FROM = 1024  # Smallest d whose vectors are rounded to 16 bits
ROWS_PER_SCALE = 64  # Rows of a vector that share a scale when rounded
INT16_STEPS = 32767  # Steps from 0 to a block's largest number in int16
MAX_CACHE_BYTES = 20 * 1024**3  # On disk; the least recently used files go first


class SVD(NamedTuple):
    U: Tensor  # Left vectors, (m, d)
    S: Tensor  # Singular values, (d,)
    V: Tensor  # Right vectors, (n, d)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self)


def svd(weight: Tensor) -> SVD:
    """Thin SVD of ``weight`` (m, n) in float32, or in float64 if it is float64."""
    u, s, vh = torch.linalg.svd(at_least_float32(weight), full_matrices=False)
    return SVD(u, s, vh.mT)


def at_least_float32(weight: Tensor) -> Tensor:
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def decomposition_device(device: torch.device) -> torch.device:
    """Return the device for decompositions: not MPS, which has neither float64 nor eigenvalues."""
    return torch.device("cpu") if device.type == "mps" else device


def _round_as_stored(decomposition: SVD) -> SVD:
    """Round a decomposition as a file would, so that results do not depend on a cached file."""
    if len(decomposition.S) >= SMALLEST_STORED:
        decomposition = SVD(*(part.float() for part in decomposition))
    if len(decomposition.S) < ROUNDED_FROM:
        return decomposition
    u, v = (from_int16(*to_int16(part)) for part in (decomposition.U, decomposition.V))
    return decomposition._replace(U=u, V=v)


def to_int16(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Convert columns to 16-bit fixed point: int16 numbers (rows, d), and a scale per 64 rows.

    A vector moves by about 3e-5 of its length, at most by 1.3e-4. float16 takes the same space and
    moves every vector by 2e-4, too much for singular values to 1e-5.
    """
    rows, count = vectors.shape
    blocks = torch.nn.functional.pad(vectors, (0, 0, 0, -rows % ROWS_PER_SCALE)).view(
        -1, ROWS_PER_SCALE, count
    )
    scale = blocks.abs().amax(dim=1) / INT16_STEPS
    steps = blocks / scale.clamp_min(torch.finfo(scale.dtype).tiny)[:, None]
    return steps.round().to(torch.int16).view(-1, count)[:rows], scale


def from_int16(steps: Tensor, scale: Tensor) -> Tensor:
    return steps.float() * scale.repeat_interleave(ROWS_PER_SCALE, dim=0)[: len(steps)]


class SvdCache:
    """SVDs of base weights, in memory for the trials of a group, on disk for all.

    Memory holds the first ones, up to ``max_bytes``. Trials ask for all matrices in one order, so
    dropping the least recently used one would drop each before its next use. With a ``folder``,
    matrices of d >= 256 are also kept on disk for other studies and inspections.
    """

    def __init__(self, max_bytes: int = 2 * 1024**3, folder: Path | None = None) -> None:
        self.max_bytes, self.folder = max_bytes, folder
        self._in_memory: dict[str, SVD] = {}

    def of(self, name: str, weight: Tensor) -> SVD:
        """Return the SVD of ``weight`` (m, n), computed at the first call for ``name``."""
        if name in self._in_memory:
            return self._in_memory[name]
        decomposition = self._load_or_compute(weight)
        if self.num_bytes + decomposition.num_bytes <= self.max_bytes:
            self._in_memory[name] = decomposition
        return decomposition

    def clear(self) -> None:
        self._in_memory.clear()

    @property
    def num_bytes(self) -> int:
        return sum(kept.num_bytes for kept in self._in_memory.values())

    def _load_or_compute(self, weight: Tensor) -> SVD:
        if self.folder is None or min(weight.shape) < SMALLEST_STORED:
            return _round_as_stored(svd(weight))
        path = svd_path(self.folder, weight)
        stored = read_svd(path, weight)
        if stored is None:
            exact = svd(weight)
            _write_svd(path, exact)
            evict_least_recent(self.folder)
            stored = _round_as_stored(exact)
        return stored


def svd_cache_folder() -> Path:
    return cache_folder() / "spectra"


def svd_path(folder: Path, weight: Tensor) -> Path:
    return folder / f"{sha256_tensors({'W': weight})}.safetensors"


def read_svd(path: Path, weight: Tensor) -> SVD | None:
    """Read the SVD in a cache file; None if the file is missing, damaged, or of another matrix."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    # A damaged bit that leaves the format intact would move every cosine measured from then on.
    if written != _checksum(path, tensors):
        return None
    on_device = {key: tensor.to(weight.device) for key, tensor in tensors.items()}
    u, s, v = (
        from_int16(on_device[key], on_device[f"{key}.scale"])
        if on_device[key].dtype == torch.int16
        else on_device[key]
        for key in "USV"
    )
    with contextlib.suppress(OSError):  # another user's file
        os.utime(path)
    return SVD(u, s, v)


def _checksum(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Hash the tensors of a file with its name, which is the hash of the decomposed matrix."""
    return sha256_json([path.stem, sha256_tensors(tensors)])


def _write_svd(path: Path, decomposition: SVD) -> None:
    """Write a cache file in one step; a failure only costs time, and a torn file is not used."""
    u, s, v = (part.float() for part in decomposition)
    tensors = {"U": u, "S": s, "V": v}
    if len(s) >= ROUNDED_FROM:
        for key in "UV":
            tensors[key], tensors[f"{key}.scale"] = to_int16(tensors[key])
    tensors = {key: t.cpu().contiguous() for key, t in tensors.items()}
    content = save(tensors, metadata={"sha256": _checksum(path, tensors)})
    with contextlib.suppress(OSError, DiskFull):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, content)


def evict_least_recent(folder: Path, max_bytes: int = MAX_CACHE_BYTES) -> None:
    stats = {}
    with contextlib.suppress(OSError):
        for path in folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):  # another process may remove files meanwhile
                stats[path] = path.stat()
    total = sum(stat.st_size for stat in stats.values())
    for path, stat in sorted(stats.items(), key=lambda file: file[1].st_mtime):
        if total <= max_bytes:
            return
        with contextlib.suppress(OSError):  # another user's
            path.unlink(missing_ok=True)
            total -= stat.st_size
