"""Versions, processor and threads with which results are made."""

import functools
import hashlib
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from rankscope.device import processor_field
from rankscope.hashing import sha256_file
from rankscope.records import Provenance

LIBRARIES = "datasets numpy peft pyarrow safetensors scipy tokenizers torch transformers".split()
"""Distributions whose version can change a result."""


def provenance() -> Provenance:
    """Return the versions, processor and threads of this process."""
    # Linux's ``platform.processor()`` is empty.
    if processor := processor_field("model name"):
        processor = f"{processor} ({os.cpu_count()} logical)"
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rankscope=f"{_version('rankscope')}+{_source_sha256()[:8]}",
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor or platform.processor() or platform.machine() or "unknown",
        num_threads=torch.get_num_threads(),
        libraries={name: _version(name) for name in LIBRARIES},
    )


@functools.cache
def _source_sha256() -> str:
    """Hash this package's source, hex sha256; code edited in place keeps its version number."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
