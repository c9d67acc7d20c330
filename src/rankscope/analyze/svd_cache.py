"""Singular value decompositions of base weights: computed once, kept in memory and on disk.

On disk a decomposition is found by the sha256 of the matrix itself, whatever model or file it came
from: equal weights share it, changed weights never meet a stale one. Legend: m = out, n = in,
d = min(m, n).
"""

import contextlib
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankscope.models.fetch import cache_folder
from rankscope.provenance import sha256_tensors

SMALLEST_STORED = 256
"""d from which a decomposition is worth a file: below, computing it takes milliseconds."""
ROUNDED_FROM = 1024
"""d from which vectors are kept in 16 bits."""
BLOCK = 64
"""Rows of a vector that share a scale."""
STEPS = 32767
"""Of a block's largest number, in int16."""
LARGEST_CACHE = 20 * 1024**3
"""Bytes on disk; what was used longest ago leaves first."""
PROBE_TOLERANCE = 5e-3
"""|W x - U S V^T x| / |W x| of a stored decomposition that is taken for W's own."""


class SVD(NamedTuple):
    """Thin singular value decomposition, largest value first."""

    U: Tensor
    """Left vectors, (m, d)."""
    S: Tensor
    """Singular values, (d,)."""
    V: Tensor
    """Right vectors, (n, d)."""


def svd(weight: Tensor) -> SVD:
    """Thin SVD of ``weight`` (m, n) in float32 or better."""
    u, s, vh = torch.linalg.svd(precise(weight), full_matrices=False)
    return SVD(u, s, vh.mT)


def precise(weight: Tensor) -> Tensor:
    """``weight`` detached, in float64 if it is, else in float32."""
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def double(tensor: Tensor) -> Tensor:
    """``tensor`` detached, in float64; on the CPU where its device has no float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def as_stored(found: SVD) -> SVD:
    """What the disk gives back: float32, and where d is large, vectors rounded to 16 bits.

    Rounded in memory too, so that a result does not depend on whether a file was there.
    """
    if len(found.S) >= SMALLEST_STORED:
        found = SVD(*(part.float() for part in found))
    if len(found.S) < ROUNDED_FROM:
        return found
    return found._replace(U=unpacked(*packed(found.U)), V=unpacked(*packed(found.V)))


def packed(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in 16-bit fixed point: numbers (rows, d) int16, and the scale of each block of rows.

    A vector moves by about 3e-5 of its length, and by at most 1.3e-4 however few entries it lies
    in: half a step is 1 / 65534 of the block's largest number, in 64 rows. float16 has the same
    size and moves every vector by 2e-4, which is too much for singular values to 1e-5.
    """
    rows, count = vectors.shape
    blocks = torch.nn.functional.pad(vectors, (0, 0, 0, -rows % BLOCK)).view(-1, BLOCK, count)
    scale = blocks.abs().amax(dim=1) / STEPS
    steps = blocks / scale.clamp_min(torch.finfo(scale.dtype).tiny)[:, None]
    return steps.round().to(torch.int16).view(-1, count)[:rows], scale


def unpacked(steps: Tensor, scale: Tensor) -> Tensor:
    """The float32 vectors of :func:`packed`."""
    return steps.float() * scale.repeat_interleave(BLOCK, dim=0)[: len(steps)]


@dataclass(slots=True)
class SvdCache:
    """SVDs of base weights, kept for all trials of a study up to ``max_bytes``.

    The matrix used longest ago leaves first. A matrix larger than the bound is not kept in memory.
    With ``folder`` those of d >= 256 are kept on disk too, for other studies and inspections.
    """

    max_bytes: int = 2 * 1024**3
    folder: Path | None = None
    _kept: OrderedDict[str, SVD] = field(default_factory=OrderedDict, init=False, repr=False)

    def of(self, name: str, weight: Tensor) -> SVD:
        """The SVD of ``weight`` (m, n), computed at the first call for ``name``."""
        if name not in self._kept:
            found = self._found(weight)
            if sum(t.numel() * t.element_size() for t in found) > self.max_bytes:
                return found
            self._kept[name] = found
            self._shrink()
        self._kept.move_to_end(name)
        return self._kept[name]

    def keep(self, name: str, found: SVD) -> None:
        """Hold a decomposition that was made before."""
        self._kept[name] = found

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(t.numel() * t.element_size() for kept in self._kept.values() for t in kept)

    def _shrink(self) -> None:
        while self.num_bytes > self.max_bytes and self._kept:
            self._kept.popitem(last=False)

    def _found(self, weight: Tensor) -> SVD:
        if self.folder is None or min(weight.shape) < SMALLEST_STORED:
            return as_stored(svd(weight))
        path = stored_path(self.folder, weight)
        stored = read_stored(path, weight)
        if stored is None:
            found = svd(weight)
            write_stored(path, found)
            make_room(self.folder)
            stored = as_stored(found)
        return stored


def svd_cache_folder() -> Path:
    """Where decompositions of base weights are kept on disk."""
    return cache_folder() / "spectra"


def stored_path(folder: Path, weight: Tensor) -> Path:
    """Where the decomposition of a matrix lies: by its bits, shape and dtype."""
    return folder / f"{sha256_tensors({'W': weight})}.safetensors"


def read_stored(path: Path, weight: Tensor) -> SVD | None:
    """The decomposition in a file of the cache; None where there is none that is ``weight``'s."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).to(weight.device) for key in file.keys()}  # noqa: SIM118
        u, s, v = (
            unpacked(tensors[key], tensors[f"{key}.scale"])
            if tensors[key].dtype == torch.int16
            else tensors[key]
            for key in "USV"
        )
    except (SafetensorError, OSError, KeyError, RuntimeError):  # absent or damaged: made again
        return None
    m, n = weight.shape
    if (u.shape, s.shape, v.shape) != ((m, len(s)), (min(m, n),), (n, len(s))):
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator).to(u)
    expected = precise(weight).to(u) @ x
    gap = torch.linalg.vector_norm(expected - u @ (s[:, None] * (v.mT @ x)))
    if not bool(gap <= PROBE_TOLERANCE * torch.linalg.vector_norm(expected)):
        return None
    with contextlib.suppress(OSError):  # another user's file
        os.utime(path)
    return SVD(u, s, v)


def write_stored(path: Path, found: SVD) -> None:
    """Keep a decomposition, written aside and renamed; a disk or folder that takes none is let be.

    The cache only saves time, so none of this is an error.
    """
    tensors = {"U": found.U.float(), "S": found.S.float(), "V": found.V.float()}
    if len(found.S) >= ROUNDED_FROM:
        for key in "UV":
            tensors[key], tensors[f"{key}.scale"] = packed(tensors[key])
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: t.cpu().contiguous() for key, t in tensors.items()}, aside)
        os.replace(aside, path)
    except (OSError, SafetensorError):  # full, read-only, or in the way of a file
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def cache_bytes(folder: Path) -> int:
    """Size of the cache on disk."""
    return sum(found.st_size for _, found in cached_files(folder))


def cached_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Files of the cache, without those that another process has just removed or may alone see."""
    files = []
    with contextlib.suppress(OSError):
        for path in folder.glob("*.safetensors"):
            with contextlib.suppress(OSError):
                files.append((path, path.stat()))
    return files


def make_room(folder: Path, most: int = LARGEST_CACHE) -> None:
    """Remove what was used longest ago until the cache is within ``most`` bytes; what may not be
    removed stays."""
    files = sorted(cached_files(folder), key=lambda file: file[1].st_mtime)
    total = sum(found.st_size for _, found in files)
    for path, found in files:
        if total <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            total -= found.st_size
