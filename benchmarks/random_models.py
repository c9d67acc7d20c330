"""Models of random weights, made on the device, and rows of random ids: for figures that do not
depend on what a model has learned."""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rankscope.data.encode import EncodedRow
from rankscope.models.attention import varlen
from rankscope.models.base import Base
from rankscope.models.load import frozen_base
from rankscope.records import ModelRecord

SEED = 0

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {  # Llama 3.2 1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "8b": {  # Llama 3.1 8B
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 304,
    },
}


def random_base(shape: str, device: torch.device, dtype: torch.dtype) -> Base:
    """Random weights of a shape, made on the device."""
    varlen.register_attention()
    torch.manual_seed(SEED)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192)
    with device:
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=varlen.NAME, dtype=dtype
        )
    record = ModelRecord(
        label=f"random {shape}",
        sha256="0" * 64,
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        prompt_format="plain",
    )
    tokenizer: Any = None  # rows are random ids
    return frozen_base(model, tokenizer, record, Path(shape))


def random_rows(count: int, mean: int, is_full: bool, vocabulary: int) -> list[EncodedRow]:
    """Rows of random ids: full ones with a label everywhere, or half to one and a half times as
    long as the mean, with labels in their second half."""
    rng = random.Random(SEED)
    rows = []
    for _ in range(count):
        length = mean if is_full else rng.randint(mean // 2, 3 * mean // 2)
        labels = length - 1 if is_full else length // 2
        ids = tuple(rng.randrange(5, vocabulary) for _ in range(length))
        rows.append(EncodedRow(ids, (False,) * (length - labels) + (True,) * labels, False))
    return rows
