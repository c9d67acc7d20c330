"""Hashes of a study's parts: files, folders, JSON, tensors, models and tokenizers."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.errors import reading
from rankscope.filesystem import read_json_object

if TYPE_CHECKING:  # the ledger hashes files without torch
    import torch

VOLATILE_CONFIG_KEYS = frozenset(
    "_attn_implementation _name_or_path dtype torch_dtype transformers_version use_cache".split()
)
"""Keys of ``config.json`` that change on saving or repeat what the weights determine."""

TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "additional_chat_templates/*", "*.model", "*.tiktoken"),
    *("vocab.json", "vocab.txt", "merges.txt"),
)
"""Files from which transformers builds a tokenizer and its chat templates."""

SUMS = "SHA256SUMS"
"""File with the hashes of the files beside it, as ``sha256sum`` writes and checks them."""


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_text(folder: Path, names: Iterable[str]) -> str:
    """Write lines like ``sha256sum`` for files of ``folder``; a name without a file is left out."""
    files = [(name, folder / name) for name in names]
    return "".join(f"{sha256_file(path)}  {name}\n" for name, path in files if path.is_file())


def sums_line(content: bytes, name: str) -> str:
    """Write the SHA256SUMS line of a file that is not written yet."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


def matches_sums(folder: Path) -> bool:
    """Whether ``SHA256SUMS`` in a folder lists all of its other files with their hashes."""
    sums = folder / SUMS
    names = sorted(path.name for path in folder.iterdir() if path != sums)
    return sums.is_file() and sums.read_bytes() == sums_text(folder, names).encode()


def sha256_json(value: object) -> str:
    """Return the hex sha256 of ``value`` in canonical JSON: sorted keys, no white space, no NaN.

    Raises ValueError for NaN and infinities, TypeError for values that JSON does not have.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """Write ``value`` as JSON text; equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def sha256_tensors(tensors: Mapping[str, "torch.Tensor"]) -> str:
    """Return the hex sha256 over names, dtypes, shapes and bits of ``tensors``, in order of names.

    Equal bits give equal hashes on any device; this shows that a frozen base stayed frozen.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """Return the hex sha256 of a model folder: ``config.json`` and every safetensors file.

    Keys of the configuration that change on saving are left out.
    """
    path = folder / "config.json"
    settings = {k: v for k, v in read_json_object(path).items() if k not in VOLATILE_CONFIG_KEYS}
    with reading(path, "a configuration with finite numbers"):
        digest = hashlib.sha256(canonical_json(settings).encode())
    digest.update(_sha256_named(folder, folder.glob("*.safetensors")).encode())
    return digest.hexdigest()


def tokenizer_sha256(folder: Path) -> str:
    """Return the hex sha256 over names and contents of a tokenizer's files in a model folder."""
    paths = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    return _sha256_named(folder, paths)


def _sha256_named(folder: Path, paths: Iterable[Path]) -> str:
    named = sorted((path.relative_to(folder).as_posix(), path) for path in paths)
    digest = hashlib.sha256()
    for name, path in named:
        # JSON marks the end of a name, so a character moved from a name into the contents changes
        # the hash.
        digest.update(canonical_json([name, sha256_file(path)]).encode())
    return digest.hexdigest()
