"""Tiny random models for tests: the real architectures, a few thousand parameters."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rankscope.models import row_attention
from rankscope.models.base import Base
from rankscope.models.packed import Pack
from rankscope.records import ModelRecord

VOCABULARY = 300


def tiny_llama(seed: int = 0, num_layers: int = 2) -> LlamaForCausalLM:
    """Hidden size 64, 4 query heads on 2 key/value heads, float32, stock attention."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def base_of(model: PreTrainedModel, tokenizer: object = None) -> Base:
    """The model as a frozen base with row attention."""
    row_attention.register()
    model.set_attn_implementation(row_attention.NAME)
    model.requires_grad_(False)
    record = ModelRecord(
        label="tiny",
        sha256="0" * 64,
        architecture=type(model).__name__,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
        vocab_size=model.config.vocab_size,
        dtype="float32",
        device="cpu",
        prompt_format="plain",
    )
    return Base(model, tokenizer, record, Path("tiny"), Pack(model))
