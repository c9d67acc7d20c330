"""Attention by torch's own kernels: within rows on CUDA, and for one new token per row.

The kernel within rows is the variable-length one (FlashAttention).

A decoding step reads every cached key and value once and copies none. Query heads that share a
key/value head go to torch's fused attention as queries of one head. So 96 rows of 300 tokens (9
query and 3 key/value heads of 64) take 3.2 ms on two cores. ``enable_gqa`` takes 4.3 ms in float32
and 14.9 in bfloat16, plain products 4.0 and 3.6.

    R rows, S the longest with its new token, N tokens, C the cache's capacity; H query and K
    key/value heads, D head dim
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rankscope.device import on_device
from rankscope.models.attention.products import additive_mask

FLASH_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 256
NO_HEAD_DIM = range(193, 225)  # Not every card has a backward pass for these
LEAST_MAX_LENGTH = 1024


def has_varlen_kernel(device: torch.device) -> bool:
    """Whether a device has the kernel; a plan for CUDA, made on a machine without it, assumes
    so."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    if not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY


def kernel_takes(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel computes heads of that size, forward and backward, without dropout."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and not head_dim % 8 and head_dim <= MAX_HEAD_DIM and head_dim not in NO_HEAD_DIM


class KernelRows:
    """The ends of rows, in the form that the kernel takes."""

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        """``lengths``: (R,) int64, on the CPU."""
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self.ends = on_device(ends.int(), device)  # (R + 1,): tokens up to the end of each row
        longest = max(LEAST_MAX_LENGTH, int(lengths.max()))
        # A power of two: the kernel's division of work, and with it the order of sums, may depend
        # on it.
        self.max_length = 1 << (longest - 1).bit_length()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Causal attention: q (N, H, D), k and v (N, K, D) -> (N, H, D)."""
        from torch.nn.attention.varlen import varlen_attn

        # Keys before and after a query's own that it sees; -1 means all.
        sees = (-1 if window is None else window - 1, 0)
        ends, longest, grouped = self.ends, self.max_length, q.shape[1] != k.shape[1]
        out = varlen_attn(
            q, k, v, ends, ends, longest, longest, scale=scale, window_size=sees, enable_gqa=grouped
        )
        assert isinstance(out, Tensor)  # no auxiliary results were asked for
        return out


class DecodeStep:
    """The place of each row's new token, and the tokens that it sees."""

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        """``lengths`` are the cached tokens of each row, (R,) int64: the place of its new token."""
        self.columns = on_device(lengths, device)
        self.width = int(lengths.max()) + 1  # S
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the mask (R, 1, 1, S): 0 for tokens that a row sees, else minus infinity;
        cached."""
        key = (window, dtype)
        if key not in self._masks:
            newest = self.columns[:, None]
            places = torch.arange(self.width, device=newest.device)
            hidden = places > newest
            if window is not None:
                hidden |= newest - places >= window
            self._masks[key] = additive_mask(hidden, dtype)[:, None, None]
        return self._masks[key]

    def attend(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        cached: tuple[Tensor, Tensor],
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Write the new keys and values into the cache, and attend: (1, R, H, D).

        Shapes: q (1, H, R, D), k and v (1, K, R, D); the cached keys and values (R, K, C, D) change
        in place. A query sees ``window`` tokens, itself included; None means all.
        """
        query = qkv[0].squeeze(0).transpose(0, 1)
        num_rows, num_heads, size = query.shape
        num_kv = cached[0].shape[1]
        row = torch.arange(num_rows, device=query.device)
        for new, stored in zip(qkv[1:], cached, strict=True):
            stored[row, :, self.columns] = new.squeeze(0).transpose(0, 1)
        keys, values = (x[:, :, : self.width] for x in cached)
        query, mask = query.reshape(num_rows, num_kv, -1, size), self.mask(window, query.dtype)
        out = F.scaled_dot_product_attention(query, keys, values, mask, scale=scale)
        return out.reshape(1, num_rows, num_heads, size)
