"""Adapter folders that plain PEFT wrote, and trials that go on from them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from rankscope.models.adapter_io import adapter_sha256
from rankscope.records import TrialSpec
from tiny_models import tiny_llama
from train.toy import ATTENTION, trial


def peft_adapter(
    folder: Path, model: PreTrainedModel | None = None, seed: int = 0, **settings: Any
) -> PeftModel:
    """An adapter that has been trained, as far as anyone can see: PEFT's, saved into ``folder``."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": list(ATTENTION), **settings}
    config = LoraConfig(task_type="CAUSAL_LM", **options)
    tuned = get_peft_model(model or tiny_llama(), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    tuned.save_pretrained(folder)
    return tuned.eval()


def continued(folder: Path, slot: str = "a", **changes: Any) -> TrialSpec:
    """A trial that goes on from the adapter in ``folder``, of rank 4 and alpha 6 unless said."""
    settings = {"init_from": str(folder), "init_sha256": adapter_sha256(folder), "alpha": 6.0}
    return trial(slot, **(settings | changes))
