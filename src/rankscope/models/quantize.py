"""A base in 4 bits (NF4 with double quantization, Dettmers et al., 2305.14314).

Quantized layers are bitsandbytes' ``Linear4bit``: ``nn.Linear`` whose weight holds packed bytes.
Products run through the layer itself; :func:`dense_weight` gives the weight as numbers.
"""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.errors import UserError
from rankscope.records import TrialSpec

INSTALL = "pip install 'rankscope[gpu]'"
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight: 4 bits, an 8-bit scale per 64 weights, and a 32-bit scale per 256 scales
(2305.14314, section 3)."""


def check_quantize(device: torch.device) -> None:
    if device.type != "cuda":
        do = "remove 'quantize', or run the study on a machine with one"
        raise UserError("quantize: 4bit", f"a study on {device.type!r}", "a CUDA device", do)
    require_bitsandbytes("quantize: 4bit")


def check_bitsandbytes(
    quantize: str, optimizer: str, trials: Iterable[TrialSpec], device: torch.device
) -> None:
    trains_base = any(trial.is_full for trial in trials)
    if optimizer == "adamw8bit" and trains_base:
        require_bitsandbytes("optimizer: adamw8bit")
    if quantize == "none":
        return
    check_quantize(device)
    if trains_base:
        found = "full fine-tuning, which trains the base's own weights"
        do = "remove the arm of method 'full', or 'quantize'"
        raise UserError("quantize: 4bit", found, "a base that stays as it is", do)


def require_bitsandbytes(feature: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(feature, "no package bitsandbytes", "it installed", INSTALL)


def quantization(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantized(layer: nn.Module) -> bool:
    return getattr(layer.weight, "quant_state", None) is not None


def dense_weight(linear: nn.Linear) -> Tensor:
    """Return the weight of a frozen linear layer as numbers, (out, in), detached, unpacked."""
    if hasattr(linear.weight, "full_tensor"):  # sharded, and not amid the layer's own products
        gather: Any = linear.gather_weight
        gathered: Tensor = gather()
        return gathered
    if not is_quantized(linear):
        return linear.weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    packed: Any = linear.weight
    dense: Tensor = dequantize_4bit(packed.data, packed.quant_state)
    return dense.detach()
