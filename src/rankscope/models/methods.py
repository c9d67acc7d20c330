"""How each method starts: one function per way of filling A and B."""

import math

import torch
from torch import nn

from rankscope.models.lora import Adapter, seed_of
from rankscope.models.packed import target_linears
from rankscope.records import TrialSpec


def new_adapter(model: nn.Module, trial: TrialSpec) -> Adapter:
    """A fresh adapter: A uniform in +-1/sqrt(in) (PEFT's Kaiming default), B zero.

    Each matrix draws from its own seed, (trial seed, module name), so an adapter's start does not
    depend on which other modules or adapters exist.
    """
    if trial.rank is None or trial.alpha is None:
        raise ValueError(f"{trial.label}: not a LoRA trial")
    a: dict[str, nn.Parameter] = {}
    b: dict[str, nn.Parameter] = {}
    for name, layer in target_linears(model, trial.targets).items():
        generator = torch.Generator().manual_seed(seed_of("init", trial.seed, name))
        bound = 1 / math.sqrt(layer.in_features)
        start = torch.empty(trial.rank, layer.in_features)
        start.uniform_(-bound, bound, generator=generator)
        device = layer.weight.device
        a[name] = nn.Parameter(start.to(device))
        b[name] = nn.Parameter(torch.zeros(layer.out_features, trial.rank, device=device))
    return Adapter(
        slot=trial.trial_id,
        rank=trial.rank,
        alpha=trial.alpha,
        scaling=trial.scaling,
        targets=trial.targets,
        a=a,
        b=b,
        dropout=trial.dropout,
        dropout_seed=trial.seed,
    )
