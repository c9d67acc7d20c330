"""Which of two ways computes the adapters' products: a loop over adapters, or grouped products.

``loop`` is the reference and runs everywhere. ``grouped_mm`` (``grouped_lora.py``) is fast on CUDA
from compute capability 9.0 on, in bfloat16; earlier devices run it as a loop that waits for the
device. On a processor it computes the same, slowly, which is how it is tested.
"""

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

from rankscope.errors import UserError

GROUPED_MM_CAPABILITY = (9, 0)
CHECKED_TOKENS = (1, 7, 64, 130)  # Of the groups that a device is checked with


def choose_lora_implementation(
    wanted: str, device: torch.device, dtype: torch.dtype
) -> Literal["loop", "grouped_mm"]:
    """What ``train.lora_implementation`` means on a device. UserError if it cannot run there."""
    if wanted == "loop" or (wanted == "auto" and device.type != "cuda"):
        return "loop"
    obstacle = _grouped_mm_obstacle(device, dtype)
    if obstacle and wanted == "grouped_mm":
        raise UserError(
            "train.lora_implementation", f"'grouped_mm', but {obstacle}", do="use 'auto' or 'loop'"
        )
    return "loop" if obstacle else "grouped_mm"


def lora_implementation_notes(wanted: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """A note if a device that should group products computes them wrong. UserError as above."""
    chosen = choose_lora_implementation(wanted, device, dtype)
    if chosen == "loop" and wanted == "auto" and _is_fast(device, dtype):
        return [f"adapters are computed in a loop: {_grouped_mm_obstacle(device, dtype)}"]
    return []


def _is_fast(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= GROUPED_MM_CAPABILITY


def _grouped_mm_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why grouped products cannot be used; '' if they can."""
    if device.type != "cpu" and not _is_fast(device, dtype):
        return "it needs bfloat16 on CUDA of compute capability 9.0 or more, or a CPU"
    if not computes_groups_right(device, dtype):
        return "torch.nn.functional.grouped_mm fails or gives wrong numbers on this device"
    return ""


@cache
def computes_groups_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the three kinds of grouped product that training needs equal single products, with
    groups of uneven sizes. Rounding to bfloat16 changes a number by up to 2^-9 of it."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, block = draw(sum(CHECKED_TOKENS), 64), draw(len(CHECKED_TOKENS), 8, 64)
    offs = torch.tensor(CHECKED_TOKENS).cumsum(0).to(device, torch.int32)
    try:
        hidden = F.grouped_mm(x, block.mT, offs=offs)
        y, sums = F.grouped_mm(hidden, block, offs=offs), F.grouped_mm(hidden.T, x, offs=offs)
    except RuntimeError:
        return False
    rows = [part.float() for part in x.split(CHECKED_TOKENS)]
    inner = [part.float() for part in hidden.split(CHECKED_TOKENS)]
    expected = (
        torch.cat([row @ a.T for row, a in zip(rows, block.float(), strict=True)]),
        torch.cat([row @ a for row, a in zip(inner, block.float(), strict=True)]),
        torch.stack([part.T @ row for part, row in zip(inner, rows, strict=True)]),
    )
    pairs = zip((hidden, y, sums), expected, strict=True)
    gaps = [float((found.float() - right).norm() / right.norm()) for found, right in pairs]
    return all(gap < 2**-8 for gap in gaps)
