"""The machine and libraries that a study ran on."""

import functools
import hashlib
import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rankscope.hashing import sha256_file
from rankscope.records import Provenance

LIBRARIES = (
    "datasets",
    "numpy",
    "peft",
    "pyarrow",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
"""Distributions whose version can move a result."""


def provenance() -> Provenance:
    """Versions, processor and threads of this process, now."""
    import torch

    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rankscope=f"{_version('rankscope')}+{source_sha256()[:8]}",
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        num_threads=torch.get_num_threads(),
        libraries={name: _version(name) for name in LIBRARIES},
    )


@functools.cache
def source_sha256() -> str:
    """Hex sha256 of this package's source: code that was edited in place has the same version."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Name of the processor; Linux's ``platform.processor()`` is empty, so /proc comes first."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.M)
        if match:
            return f"{match[1].strip()} ({os.cpu_count()} logical)"
    return platform.processor() or platform.machine() or "unknown"
