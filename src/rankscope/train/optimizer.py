"""AdamW and gradient clipping of one trial."""

import importlib
from collections.abc import Container, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from rankscope.models.quantize import require_bitsandbytes
from rankscope.models.sharding import whole

Kind = Literal["adamw", "adamw8bit"]


def new_optimizer(
    parameters: ParamsT, weight_decay: float, kind: Kind = "adamw"
) -> torch.optim.Optimizer:
    """AdamW (betas .9, .999, eps 1e-8, decoupled decay), fused; each step sets the rate.

    ``adamw8bit`` keeps the moments of all but small parameters in 8 bits, with a scale for every
    256 of them (Dettmers et al., 2110.02861): a quarter of the optimizer's memory.
    """
    options: Any = {"lr": 0.0, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8}
    if kind == "adamw8bit":
        require_bitsandbytes("optimizer: adamw8bit")
        package: Any = importlib.import_module("bitsandbytes.optim")
        eight_bit: torch.optim.Optimizer = package.AdamW8bit(parameters, **options)
        return eight_bit
    return torch.optim.AdamW(parameters, **options, fused=True)


RATIO = "lr_ratio"  # Key of a parameter group: its learning rate over the trial's


def rate_groups(
    parameters: Sequence[nn.Parameter], faster: Container[nn.Parameter], ratio: float
) -> list[dict[str, Any]]:
    """LoRA+ (Hayou et al., 2402.12354): ``faster`` parameters at ``ratio`` times the rate."""
    return [
        {"params": [p for p in parameters if p not in faster], RATIO: 1.0},
        {"params": [p for p in parameters if p in faster], RATIO: ratio},
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATIO, 1.0)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to ``max_norm`` (2-norm over all parameters); the norm before."""
    return float(whole(torch.nn.utils.clip_grad_norm_(parameters, max_norm)))
