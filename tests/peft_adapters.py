"""Adapters that plain PEFT made, on tiny random models: what users bring."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tiny_models import tiny_llama

TARGETS = ["q_proj", "v_proj", "down_proj"]


def saved_base(folder: Path, seed: int = 0) -> Path:
    """A tiny Llama's folder."""
    tiny_llama(seed).save_pretrained(folder)
    return folder


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Two layers whose linear layers are ``Conv1D``: weights stand (in, out)."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).eval()


def saved_adapter(
    folder: Path, model: PreTrainedModel, seed: int = 1, size: float = 0.3, **settings: Any
) -> Path:
    """A LoRA adapter of ``model``, put on and saved by PEFT, its numbers drawn anew."""
    defaults: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS}
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(**{**defaults, **settings}))
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            parameter.data += size * torch.randn_like(parameter)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged(model: PreTrainedModel, adapter: Path) -> dict[str, Tensor]:
    """Weights of every linear layer with an adapter merged in by PEFT, by module path."""
    whole: Any = PeftModel.from_pretrained(model, str(adapter))
    return weights(whole.merge_and_unload())


def weights(model: Any) -> dict[str, Tensor]:
    """Weights of every layer that has a matrix, float64, as they stand."""
    return {
        name.removesuffix(".weight"): tensor.detach().double()
        for name, tensor in model.state_dict().items()
        if name.endswith(".weight") and tensor.ndim == 2
    }
