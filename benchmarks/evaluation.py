"""Questions and adapters that the races of evaluation share."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rankscope.config.study import ModelConfig
from rankscope.data.items import LETTERS
from rankscope.device import choose_device, choose_dtype
from rankscope.models.adapters.folder import save_adapter
from rankscope.models.base import Base
from rankscope.models.init_context import new_adapter
from rankscope.models.load import load_base
from rankscope.records import TrialSpec

DATA = Path(os.environ.get("RANKSCOPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")

Row = Mapping[str, Any]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A JSONL file's rows."""
    # Not splitlines: some rows hold other line separators than the line feed.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# --- prompts ------------------------------------------------------------------------------------


def asked(row: Row, is_lettered: bool) -> str:
    """A question as the named tasks ask it."""
    options = ""
    if is_lettered:
        options = "".join(f"{a}. {b}\n" for a, b in zip(LETTERS, row["choices"], strict=False))
    return f"Question: {row['question']}\n{options}Answer:"


def answers_of(row: Row, is_lettered: bool) -> list[str]:
    """Texts that are scored after the prompt."""
    texts = LETTERS[: len(row["choices"])] if is_lettered else row["choices"]
    return [f" {text}" for text in texts]


def with_fewshot(row: Row, shots: Sequence[Row], is_lettered: bool) -> dict[str, Any]:
    """Prompt, continuations and the right one's index; examples are set off by an empty line."""
    examples = [
        asked(shot, is_lettered) + answers_of(shot, is_lettered)[shot["answer"]] for shot in shots
    ]
    return {
        "prompt": "\n\n".join([*examples, asked(row, is_lettered)]),
        "answers": answers_of(row, is_lettered),
        "choices": list(row["choices"]),
        "gold": row["answer"],
    }


def arc_easy(data_dir: Path, num_items: int, num_shots: int = 0) -> list[dict[str, Any]]:
    """ARC-easy by option text."""
    shots = rows_of(data_dir / "arc_easy" / "train.jsonl")[:num_shots]
    test = rows_of(data_dir / "arc_easy" / "test.jsonl")[:num_items]
    return [with_fewshot(row, shots, is_lettered=False) for row in test]


def mmlu(
    data_dir: Path, num_subjects: int, items_per_subject: int, num_shots: int = 5
) -> list[dict[str, Any]]:
    """MMLU by letter, with the subject's own examples; subjects spread over the alphabet."""
    examples = rows_of(data_dir / "mmlu" / "validation.jsonl")
    test = rows_of(data_dir / "mmlu" / "test.jsonl")
    subjects = sorted({row["subject"] for row in examples})
    found = []
    for subject in subjects[:: max(1, len(subjects) // num_subjects)][:num_subjects]:
        shots = [row for row in examples if row["subject"] == subject][:num_shots]
        own = [row for row in test if row["subject"] == subject][:items_per_subject]
        found += [with_fewshot(row, shots, is_lettered=True) for row in own]
    return found


def gsm8k(data_dir: Path, num_items: int) -> list[str]:
    """GSM8K's test prompts."""
    rows = rows_of(data_dir / "gsm8k" / "test.jsonl")[:num_items]
    return [f"Question: {row['question']}\nAnswer:" for row in rows]


# --- models -------------------------------------------------------------------------------------


def load(given: Mapping[str, Any]) -> Base:
    """The base that a side's setting names."""
    config = ModelConfig(path=given["model"])
    return load_base(config, torch.device("cpu"), getattr(torch, given["dtype"]))


def write_adapters(model: str, folder: Path, ranks: Sequence[int]) -> list[str]:
    """Adapters with random B on the attention matrices, in PEFT's format; their folders.

    B is drawn small enough that the model still answers, and large enough to change what it says.
    """
    base = load_base(ModelConfig(path=model), torch.device("cpu"), torch.float32)
    folders = []
    for number, rank in enumerate(ranks):
        trial = TrialSpec(
            trial_id=f"r{rank}-{number}",
            task="gsm8k",
            method="lora",
            rank=rank,
            alpha=2.0 * rank,
            lr=1e-4,
            targets=ATTENTION,
            dropout=0.0,
            seed=number,
        )
        made = new_adapter(base.model, trial)
        generator = torch.Generator().manual_seed(number)
        for b in made.b.values():
            b.data.copy_(0.01 / rank**0.5 * torch.randn(b.shape, generator=generator))
        place = folder / trial.trial_id
        place.mkdir()
        save_adapter(made, base.record, place)
        folders.append(str(place))
    return folders


def dtype_of(name: str) -> str:
    """``auto`` is what a study would take on this machine's processor."""
    return str(choose_dtype(name, choose_device("cpu"))).removeprefix("torch.")
