"""Attention over concatenated rows: no padding in any linear layer, any number of rows per pass.

Shape legend, used across ``models``, ``train`` and ``evaluate``:

    R  rows in a batch                N  valid tokens of all rows together
    T  longest row                    P  longest cached prefix of a row
    H  query heads, K  key/value heads, D  head dim

A model sees one sequence of N tokens, ``(1, N)``, with positions that restart at every row. The
attention function registered here lays the rows out as ``(R, T)`` for the attention products only,
so each row attends to itself and its own cached prefix. Padding follows a row's tokens, where
causality hides it.

This works for every architecture that uses transformers' attention interface, passes its keyword
arguments on, and mixes tokens nowhere else. Rows of others run alone (``models/base.py``).
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig

from rankscope.device import on_device
from rankscope.errors import UserError
from rankscope.models.attention.kernel import (
    DecodeStep,
    KernelRows,
    has_varlen_kernel,
    kernel_takes,
)
from rankscope.models.attention.products import (
    MAX_LENGTH,
    MAX_SCORES,
    RowLayout,
    TreeMask,
    causal_products,
    tree_attention,
)

NAME = "rankscope_varlen"  # Name of the attention implementation, for ``attn_implementation=``

Probe = Callable[[int, Tensor, Tensor, float, int | None], None]
"""Function that reads one layer's attention: (layer, queries (H, N, D), keys (K, N, D), scale,
window)."""


class KVCache:
    """Keys and values of earlier tokens, by row and layer."""

    def __init__(self, num_rows: int, capacity: int) -> None:
        self.lengths = torch.zeros(num_rows, dtype=torch.int64)  # Cached tokens, (R,), on the CPU
        self.capacity = capacity
        self.keys: dict[int, Tensor] = {}  # Layer -> (R, K, capacity, D); unused beyond the lengths
        self.values: dict[int, Tensor] = {}
        self.rows: list[tuple[Tensor | None, Any]] = [(None, None)] * num_rows
        """Used if rows run alone: each row's token ids, (1, P), and the model's own cache."""

    @classmethod
    def of_rows(
        cls, parts: Sequence[tuple["KVCache", Tensor]], capacity: int, *, empties: bool = False
    ) -> "KVCache":
        """Make a cache of the given rows of several caches, in order.

        Args:
            empties: each part gives up a layer once it is copied, so that two whole caches never
                exist at once.
        """
        whole = cls(0, capacity)
        lengths = [cache.lengths[rows] for cache, rows in parts]
        whole.lengths = torch.cat(lengths)
        whole.rows = [cache.rows[i] for cache, rows in parts for i in rows.tolist()]
        for side in ("keys", "values"):
            stored = [getattr(cache, side) for cache, _ in parts]
            for layer in tuple(stored[0]):
                first = stored[0][layer]
                _, num_heads, _, width = first.shape
                grown = first.new_zeros((len(whole.lengths), num_heads, capacity, width))
                stop = 0
                for own, (_, rows), kept in zip(lengths, parts, stored, strict=True):
                    start, stop = stop, stop + len(own)
                    longest = int(own.max()) if len(own) else 0
                    source = kept[layer][rows.to(grown.device), :, :longest]
                    grown[start:stop, :, :longest] = source
                    if empties:
                        del kept[layer]
                getattr(whole, side)[layer] = grown
        return whole

    def append(self, layer: int, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        """Store (R, K, T, D), ``lengths[i]`` tokens of row i, after the row's cached tokens.

        The cache's own ``lengths`` change only in :meth:`advance`, after every layer has stored.
        """
        if layer not in self.keys:
            shape = (keys.shape[0], keys.shape[1], self.capacity, keys.shape[3])
            self.keys[layer] = keys.new_zeros(shape)
            self.values[layer] = keys.new_zeros(shape)
        steps = torch.arange(keys.shape[2])
        row, step = torch.nonzero(steps[None, :] < lengths[:, None], as_tuple=True)
        column = self.lengths[row] + step
        row, step, column = (on_device(index, keys.device) for index in (row, step, column))
        self.keys[layer][row, :, column] = keys[row, :, step]
        self.values[layer][row, :, column] = values[row, :, step]

    def advance(self, lengths: Tensor) -> None:
        self.lengths = self.lengths + lengths


def cached_values_per_token(config: PretrainedConfig) -> int:
    """Count the keys and values of one token in all layers, if every layer keeps all tokens."""
    text = config.get_text_config()
    queries = getattr(text, "num_attention_heads", None) or 1  # a state space has none
    heads = getattr(text, "num_key_value_heads", None) or queries
    width = getattr(text, "qk_head_dim", None) or getattr(text, "head_dim", None)
    width = width or text.hidden_size // queries
    return int(2 * text.num_hidden_layers * heads * width)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The assignment of N tokens to R rows; made once per forward pass."""

    lengths: Tensor  # (R,) int64, on the CPU
    to_rows: Tensor  # (R * T,) index into the N tokens; padding points at its row's first token
    to_tokens: Tensor  # (N,) index into R * T
    is_rectangular: bool  # All rows are equally long, so a plain reshape gives the rows
    cache: KVCache | None = None
    store: bool = False  # Append this pass's keys and values to ``cache``
    layout: RowLayout | None = None  # Layout for ``causal_products``, if that is the faster way
    kernel: KernelRows | None = None  # Rows for torch's kernel, if the device has it
    repeats_keys: bool = False  # Set on CUDA, see ``_padded_attention``
    step: DecodeStep | None = None  # Set if every row continues its cache by one token
    tree: TreeMask | None = None  # Set if rows branch or continue ``prefix``
    prefix: KVCache | None = None  # A cache of one row, which every row continues
    probe: Probe | None = None  # Called in every layer, before its attention is computed
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # By window, once computed

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the laid-out rows, (R, T)."""
        return len(self.lengths), int(self.lengths.max())

    @property
    def num_shared(self) -> int:
        """Tokens of the prefix that all rows continue, P."""
        return 0 if self.prefix is None else int(self.prefix.lengths)

    def prefix_of(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the keys and values of that prefix, (K, P, D) each."""
        if self.prefix is None:
            return None
        keys, values = self.prefix.keys[layer][0], self.prefix.values[layer][0]
        return keys[:, : self.num_shared], values[:, : self.num_shared]

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device,
        cache: KVCache | None = None,
        store: bool = False,
    ) -> "AttentionPlan":
        counts = torch.tensor(lengths, dtype=torch.int64)
        width = int(counts.max())
        starts = torch.cumsum(counts, 0) - counts
        steps = torch.arange(width)
        valid = steps[None, :] < counts[:, None]
        to_rows = torch.where(valid, starts[:, None] + steps[None, :], starts[:, None])
        is_fresh = cache is None or not cache.lengths.any()
        is_step = width == 1 and store and cache is not None and bool(cache.lengths.all())
        by_products = device.type == "cpu" and is_fresh and width <= MAX_LENGTH
        by_kernel = is_fresh and has_varlen_kernel(device)
        return cls(
            lengths=counts,
            to_rows=on_device(to_rows.reshape(-1), device),
            to_tokens=on_device(torch.nonzero(valid.reshape(-1)).reshape(-1), device),
            is_rectangular=bool(valid.all()),
            cache=cache,
            store=store,
            layout=RowLayout(lengths, device) if by_products else None,
            kernel=KernelRows(counts, device) if by_kernel else None,
            repeats_keys=device.type == "cuda",
            step=DecodeStep(cache.lengths, device) if is_step and cache is not None else None,
        )

    def with_branches(
        self, branches: Sequence[Sequence[int]], prefix: KVCache | None, device: torch.device
    ) -> "AttentionPlan":
        """Return the plan for rows that branch, or that continue ``prefix`` without gradients."""
        if prefix is not None and len(prefix.lengths) != 1:
            raise ValueError(f"a prefix of {len(prefix.lengths)} rows; all rows continue one")
        if torch.is_grad_enabled() and prefix is not None:
            raise ValueError("rows that continue a prefix have no backward pass")
        lengths, layout = self.lengths.tolist(), None
        if device.type == "cpu" and not torch.is_grad_enabled():
            num_shared = 0 if prefix is None else int(prefix.lengths)
            layout = RowLayout(lengths, device, MAX_SCORES, num_shared)
        tree = TreeMask(lengths, branches or [()] * len(lengths))
        return replace(self, prefix=prefix, tree=tree, layout=layout, masks={})

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """Return which of P cached keys and its row's T each query sees, (R, 1, T, P + T) bool.

        The first dimension is 1 if all rows see the same.
        """
        if window not in self.masks:
            before = torch.tensor([self.num_shared])
            if self.tree is None and self.cache is not None:
                before = self.cache.lengths
            steps = torch.arange(self.shape[1])
            own, visible = steps[None], (steps <= steps[:, None])[None]
            if self.tree is not None:
                own = self.tree.position
                visible = self.tree.visible(range(len(own)), 0, len(steps))
            past, num_rows = torch.arange(int(before.max())), max(len(before), len(own))
            # In a shorter row, the places after its own tokens are hidden: this pass may write
            # there.
            exists = (past < before[:, None])[:, None].expand(num_rows, len(steps), -1)
            visible = torch.cat([exists, visible.expand(num_rows, -1, -1)], 2)
            if window is not None:
                places = before[:, None] + own
                keys = torch.cat([past.expand(len(places), -1), places], 1)
                visible &= places[:, :, None] - keys[:, None] < window
            # Padding sees its row's first token: a softmax over nothing would be NaN.
            visible[:, :, len(past)] |= ~visible.any(2)
            self.masks[window] = on_device(visible[:, None], device)
        return self.masks[window]

    def rows(self, x: Tensor) -> Tensor:
        """Lay tokens out by row: (1, heads, N, D) -> (R, heads, T, D)."""
        num_rows, width = self.shape
        flat = x.squeeze(0).transpose(0, 1)
        if not self.is_rectangular:
            flat = flat.index_select(0, self.to_rows)
        return flat.reshape(num_rows, width, *flat.shape[1:]).transpose(1, 2)

    def tokens(self, x: Tensor) -> Tensor:
        """Concatenate the tokens of all rows: (R, T, heads, D) -> (1, N, heads, D)."""
        flat = x.reshape(-1, *x.shape[2:])
        if not self.is_rectangular:
            flat = flat.index_select(0, self.to_tokens)
        return flat[None]


def _varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend: ``query`` (1, H, N, D), ``key``/``value`` (1, K, N, D) to (1, N, H, D)."""
    plan = attention_plan
    if plan is None:
        found = "layers that pass no keyword arguments on to their attention"
        expected = "an architecture such as Llama, Qwen, Mistral or Gemma"
        raise UserError(type(module).__name__, found, expected, "choose another model")
    for feature in ("softcap", "s_aux"):
        if kwargs.get(feature) is not None:
            found = f"the attention feature {feature!r}"
            expected = "an architecture without it"
            raise UserError(type(module).__name__, found, expected, "choose another model")
    width = value.shape[-1]
    if width < query.shape[-1]:  # latent attention; zeros stay zeros in every sum over keys
        padded = F.pad(value, (0, query.shape[-1] - width))
        out, _ = _varlen_attention(
            module, query, key, padded, None, scaling, dropout, plan, **kwargs
        )
        return out[..., :width], None
    # Under autocast rotary positions leave queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    window = kwargs.get("sliding_window")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    cache, qkv = plan.cache, (query, key, value)
    if plan.probe is not None:
        plan.probe(layer, query[0], key[0], scale, window)
    if plan.step is not None and plan.tree is None and cache is not None:
        return plan.step.attend(qkv, (cache.keys[layer], cache.values[layer]), scale, window), None
    if cache is not None and plan.store:
        cache.append(layer, plan.rows(key), plan.rows(value), plan.lengths)
    is_whole = window is None or window >= plan.num_shared + plan.shape[1]
    layout = plan.layout if is_whole else None
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in qkv)
    if plan.tree is not None:
        if layout is not None:
            past = plan.prefix_of(layer)
            return tree_attention((q, k, v), layout, scale, plan.tree, past)[None], None
        return _padded_attention(layer, qkv, plan, (scale, window, 0.0)), None
    if not dropout:
        if plan.kernel is not None and kernel_takes(query.shape[-1], query.dtype):
            return plan.kernel.attend(q, k, v, scale, window)[None], None
        if layout is not None:
            with _no_autocast(query.device.type):  # the products keep their own precision
                return causal_products(q, k, v, layout, scale)[None], None
    return _padded_attention(layer, qkv, plan, (scaling, window, dropout)), None


def _padded_attention(
    layer: int,
    qkv: tuple[Tensor, Tensor, Tensor],
    plan: AttentionPlan,
    settings: tuple[float | None, int | None, float],
) -> Tensor:
    """Attend by torch's fused attention over padded rows; settings are (scale, window, dropout)."""
    scale, window, dropout = settings
    q, k, v = (plan.rows(x) for x in qkv)
    cache, mask, past = plan.cache, None, plan.prefix_of(layer)
    num_cached = int(cache.lengths.max()) if cache is not None and plan.tree is None else 0
    if num_cached and cache is not None:
        past = cache.keys[layer][:, :, :num_cached], cache.values[layer][:, :, :num_cached]
    if num_cached or plan.tree or (window is not None and window < plan.shape[1]):
        mask = plan.mask(window, q.device)
    if past is not None:
        k, v = (
            torch.cat([before.expand(len(own), -1, -1, -1), own], dim=2)
            for before, own in zip(past, (k, v), strict=True)
        )
    if plan.repeats_keys and q.shape[1] != k.shape[1]:
        # Without FlashAttention, which takes no mask, some fused kernels share no key heads: scores
        # would be whole, in float32.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if q.is_meta:  # shapes alone: devices keep what the fused kernel keeps, meta would keep scores
        out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout, mask is None)[0]
        return plan.tokens(out.transpose(1, 2))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return plan.tokens(out.transpose(1, 2))


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def register_attention() -> None:
    AttentionInterface.register(NAME, _varlen_attention)


class OnShapes(TorchDispatchMode):
    """Lets whole models run on the meta device, whose tensors have shapes but no values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # models ask whether positions follow one another, or how many there are
        if func is torch.ops.aten._grouped_mm.default:  # it refuses all but bfloat16
            x, weights, ends = (*args, *(kwargs or {}).values())[:3]
            groups = ends.shape if weights.dim() == x.dim() else ()
            return x.new_empty(*groups, x.shape[0], weights.shape[-1])
        return func(*args, **(kwargs or {}))


def attention_of(config: PretrainedConfig) -> str | None:
    """Choose the attention for models of a configuration, by a pass on shapes.

    Returns:
        Rankscope's if rows can share a pass: every layer attends through it, and none convolves.
        Otherwise None, and transformers chooses.
    """
    register_attention()
    attending, meta = set[int](), torch.device("meta")
    plan = AttentionPlan.of([2, 2], meta)

    def note(layer: int, *_: object) -> None:
        attending.add(layer)

    try:
        with meta, torch.no_grad(), OnShapes():  # type: ignore[no-untyped-call]
            model: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation=NAME
            )
            ids = torch.zeros(1, 4, dtype=torch.int64)
            model(input_ids=ids, use_cache=False, attention_plan=replace(plan, probe=note))
    except Exception:  # ours is refused, or misses what it needs, each time in other words
        return None
    convolves = any(isinstance(module, nn.Conv1d) for module in model.modules())
    in_all = len(attending) == config.get_text_config().num_hidden_layers
    return NAME if in_all and not convolves else None
