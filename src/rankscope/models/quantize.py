"""A base held in 4 bits (NF4 with double quantization, Dettmers et al., 2305.14314).

Quantized layers are bitsandbytes' ``Linear4bit``, which are ``nn.Linear`` whose weight holds packed
bytes: products run through the layer itself, and whoever needs numbers asks :func:`dense_weight`.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.errors import UserError

INSTALL = "pip install 'rankscope[gpu]'"


def check_quantize(device: torch.device) -> None:
    """Raise UserError where a 4-bit base cannot be used: no CUDA device, or no bitsandbytes."""
    if device.type != "cuda":
        raise UserError(
            f"quantize: 4bit needs a CUDA device, this study runs on {device.type!r}; remove "
            "'quantize', or run the study on a machine with one"
        )
    require_bitsandbytes("quantize: 4bit")


def require_bitsandbytes(what: str) -> None:
    """Raise UserError where the optional package that ``what`` needs is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{what} needs the package bitsandbytes: {INSTALL}")


def quantization(dtype: torch.dtype) -> Any:
    """transformers' settings of a 4-bit load: NF4, double quantization, products in ``dtype``."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantized(layer: nn.Module) -> bool:
    """Whether a linear layer holds packed 4-bit weights."""
    return getattr(layer.weight, "quant_state", None) is not None


def dense_weight(linear: nn.Linear) -> Tensor:
    """The weight of a frozen linear layer as numbers, (out, in), detached; nothing is copied
    unless it is quantized, and then it is in the dtype it was quantized from."""
    if not is_quantized(linear):
        return linear.weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    packed: Any = linear.weight
    dense: Tensor = dequantize_4bit(packed.data, packed.quant_state)
    return dense.detach()
