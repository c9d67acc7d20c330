"""Attention within rows by torch's variable-length kernel (FlashAttention), on CUDA.

R rows, N tokens, H query and K key/value heads, D head dim
"""

import torch
from torch import Tensor

FLASH_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 192  # Not every card has a backward pass for larger heads
LEAST_MAX_LENGTH = 1024


def has_varlen_kernel(device: torch.device) -> bool:
    """Whether a device has the kernel; a plan for CUDA on a machine without it assumes so."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    if not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY


class KernelRows:
    """Where each row ends, as the kernel takes it."""

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        """``lengths``: (R,) int64, on the CPU."""
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self.ends = ends.to(device, torch.int32)  # (R + 1,): tokens up to the end of each row
        longest = max(LEAST_MAX_LENGTH, int(lengths.max()))
        # A power of two, because how the kernel divides its work, and with it the order of sums,
        # may depend on it.
        self.max_length = 1 << (longest - 1).bit_length()

    def fits(self, query: Tensor) -> bool:
        size = query.shape[-1]
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        return is_half and size % 8 == 0 and size <= MAX_HEAD_DIM

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Causal attention: q (N, H, D), k and v (N, K, D) -> (N, H, D)."""
        from torch.nn.attention.varlen import varlen_attn

        # Keys before and after a query that it sees besides the one at its own place; -1 is all.
        sees = (-1 if window is None else window - 1, 0)
        ends, longest = self.ends, self.max_length
        out = varlen_attn(
            q,
            k,
            v,
            ends,
            ends,
            longest,
            longest,
            scale=scale,
            window_size=sees,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(out, Tensor)  # no auxiliary results were asked for
        return out
