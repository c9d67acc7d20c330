"""Peak memory of a group, against one PEFT process per adapter and against what ``plan`` estimates.

    python benchmarks/train_memory.py [--shape pocket] [--adapters 1 --adapters 4]

Every figure is measured in a process of its own. A process's memory is its peak resident set
(VmHWM); what it held before the model was loaded, after a step of a tiny model had brought in the
libraries' lazy parts, is its libraries' and left out of the comparison with the estimate. One PEFT
process is measured and counted once per adapter, libraries included, as people run them. Rows are
random ids of the lengths that questions with a worked answer have. ``parity`` is the estimate's
largest error.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rankscope.config.study import ModelConfig, TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.device import (
    keep_freed_memory,
    limit_kernel_cache,
    peak_memory_bytes,
    release_freed_memory,
    reset_peak_memory,
)
from rankscope.models.load import load_base
from rankscope.models.model_folder import pocket_folder
from rankscope.models.parameters import read_model_config
from rankscope.records import TrialSpec
from rankscope.train.loop import train_group
from rankscope.train.memory import MemoryModel, RowCounts
from real_model import real_model

CPU = torch.device("cpu")
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
RANKS = (8, 16, 32, 64)
SHAPES = {
    "pocket": torch.float32,
    "smollm2-135m": torch.bfloat16,
    "random-56m": torch.float32,
    "random-70m": torch.bfloat16,
}
"""The estimate's one fitted figure is from SmolLM2; the random shapes had no part in it."""
RANDOM: dict[str, dict[str, int]] = {
    "random-56m": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 64_000,
    },
    "random-70m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32_000,
    },
}
PROTOCOL = TrainConfig(
    max_steps=2,
    batch_size=2,
    gradient_accumulation=4,
    warmup_fraction=0.0,
    schedule="constant",
    batch_tokens=1024,
)


def folder_of(shape: str, scratch: Path) -> Path:
    """The model's folder; the random one is made."""
    if shape == "pocket":
        return pocket_folder()
    if shape == "smollm2-135m":
        return real_model()
    folder = scratch / shape
    if not folder.exists():
        torch.manual_seed(0)
        config = LlamaConfig(**RANDOM[shape], tie_word_embeddings=True)
        LlamaForCausalLM(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((pocket_folder() / name).read_bytes())
    return folder


def rows_of(folder: Path) -> list[EncodedRow]:
    """Two hundred rows of random ids: 60 to 320 tokens, a quarter to a half of them labeled."""
    rng, vocabulary = random.Random(0), read_model_config(folder).vocab_size
    longest = min(320, read_model_config(folder).max_position_embeddings)
    rows = []
    for _ in range(200):
        length = rng.randint(longest // 5, longest)
        labels = rng.randint(length // 4, length // 2)
        ids = tuple(rng.randrange(5, vocabulary) for _ in range(length))
        rows.append(EncodedRow(ids, (False,) * (length - labels) + (True,) * labels, False))
    return rows


def trials(count: int) -> list[TrialSpec]:
    """LoRA on attention at mixed ranks."""
    return [
        TrialSpec(
            trial_id=str(i),
            task="memory",
            method="lora",
            rank=RANKS[i % len(RANKS)],
            alpha=16.0,
            lr=1e-3,
            targets=ATTENTION,
            dropout=0.0,
            seed=i,
        )
        for i in range(count)
    ]


def train_peft(folder: Path, dtype: torch.dtype, rows: list[EncodedRow], rank: int) -> None:
    """The loop people write: padded rows with their mask, logits everywhere."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=list(ATTENTION)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    size, accumulation = PROTOCOL.batch_size, PROTOCOL.gradient_accumulation
    for start in range(0, 2 * size * accumulation, size):
        batch = rows[start : start + size]
        width = max(len(row.input_ids) for row in batch)
        ids, mask = torch.zeros(2, size, width, dtype=torch.int64)
        labels = torch.full((size, width), -100)
        for i, row in enumerate(batch):
            length = len(row.input_ids)
            ids[i, :length], mask[i, :length] = torch.tensor(row.input_ids), 1
            labels[i, :length] = torch.where(torch.tensor(row.is_label), ids[i, :length], -100)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten()).backward()
        if start // size % accumulation == accumulation - 1:
            optimizer.step()
            optimizer.zero_grad()


def measure(side: str, shape: str, count: int, folder: Path) -> None:
    """In a process of its own: train, and print its peak and what its libraries took of it."""
    keep_freed_memory()
    limit_kernel_cache()
    rows, pocket = rows_of(folder), rows_of(pocket_folder())
    base = load_base(ModelConfig(pocket=True), CPU, torch.float32)
    train_group(base, trials(1), pocket, PROTOCOL.model_copy(update={"batch_size": 1}))
    release_freed_memory()  # kept pages of that step would serve the model for nothing
    reset_peak_memory(CPU)
    libraries = peak_memory_bytes(CPU)
    if side == "peft":
        train_peft(folder, SHAPES[shape], rows, RANKS[0])
    else:
        base = load_base(ModelConfig(path=str(folder)), CPU, SHAPES[shape])
        release_freed_memory()
        reset_peak_memory(CPU)  # what loading took and gave back is not training's
        train_group(base, trials(count), rows, PROTOCOL)
    print(json.dumps({"peak": peak_memory_bytes(CPU), "libraries": libraries}))


def measured(side: str, shape: str, count: int, folder: Path) -> dict[str, int]:
    """``measure`` in a new process."""
    command = [sys.executable, __file__, "--measure", side, shape, str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--adapters", action="append", type=int)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        side, shape, count, folder = asked.measure
        measure(side, shape, int(count), Path(folder))
        return
    ratios: dict[str, float] = {}
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for shape in asked.shape or SHAPES:
            folder = folder_of(shape, Path(scratch))
            counts = RowCounts.of(rows_of(folder))
            model = MemoryModel(read_model_config(folder), SHAPES[shape], CPU)
            single = measured("peft", shape, 1, folder)
            print(f"{shape}: one PEFT process {single['peak'] / 1e6:,.0f} MB", flush=True)
            for count in asked.adapters or (1, 4, 16):
                group = measured("group", shape, count, folder)
                estimate = model.of_group(trials(count), counts, PROTOCOL).total_bytes
                own = group["peak"] - group["libraries"]
                key = f"{shape} x {count}"
                ratios[key] = round(count * single["peak"] / group["peak"], 3)
                errors[key] = round(estimate / own - 1, 3)
                print(
                    f"{key}: group {group['peak'] / 1e6:,.0f} MB, {own / 1e6:,.0f} its own; "
                    f"estimated {estimate / 1e6:,.0f}; {ratios[key]:.2f} times less than PEFT",
                    flush=True,
                )
    print(
        json.dumps(
            {
                "benchmark": "train_memory",
                "ratio": ratios,
                "parity": max(map(abs, errors.values())),
                "estimate_errors": errors,
                "device": "cpu",
            }
        )
    )


if __name__ == "__main__":
    main()
