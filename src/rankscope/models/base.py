"""The frozen base model, and its batches: concatenated rows, grouped by adapter."""

import copy
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.device import distinct_places, on_device
from rankscope.errors import UserError
from rankscope.models.attention import varlen
from rankscope.models.attention.varlen import AttentionPlan, KVCache
from rankscope.models.kernels import PLAIN, use_kernels
from rankscope.models.multi_lora import AdapterSpan, MultiLora, linear_layers, unwrap
from rankscope.models.quantize import dense_weight
from rankscope.models.sharding import ONE_SHARD, Shards, is_sharded
from rankscope.records import ModelRecord

OWN_CACHES = ("cache", "past_key_values", "cache_params", "state")
"""Names that models give to their own cache, among their outputs and arguments."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of token ids and the adapter it belongs to."""

    ids: Sequence[int]
    keep: Sequence[int]  # Positions whose logits are computed; those at t predict token t + 1
    adapter_name: str | None = None  # None for the bare base
    start: int = 0  # Position of the first id: the number of tokens in the row's cache
    branches: Sequence[int] = ()
    """Lengths of continuations at the end of ``ids``. Each follows the token before the first
    branch, and sees none of the other branches."""

    @property
    def positions(self) -> Iterator[int]:
        trunk = self.start + len(self.ids) - sum(self.branches)
        spans = [(self.start, trunk), *((trunk, trunk + length) for length in self.branches)]
        return itertools.chain.from_iterable(range(*span) for span in spans)


@dataclass(frozen=True, slots=True)
class RowBatch:
    input_ids: Tensor  # (1, N) int64
    position_ids: Tensor  # (1, N) int64
    lengths: tuple[int, ...]
    segments: tuple[AdapterSpan, ...]
    keep: Tensor  # (M,) indices into N at which logits are computed, rows in order; on the CPU
    branches: tuple[tuple[int, ...], ...] = ()  # By row; empty if no row has any

    def kept_segments(self) -> tuple[AdapterSpan, ...]:
        """Return the segments counted in kept positions, M in place of N, as the output layer sees
        them."""
        keep = self.keep.tolist()
        return tuple(
            AdapterSpan(name, bisect_left(keep, start), bisect_left(keep, stop))
            for name, start, stop in self.segments
        )

    def alone(self) -> Iterator[tuple[int, str | None, list[int], list[int]]]:
        """Yield the passes of rows that run alone: one for each row, or for each branch of a row.

        Each is (row index, adapter, which of the N tokens it reads, at which of those logits are
        kept). Together, in order, the kept logits are those of the batch.
        """
        keep, starts = self.keep.tolist(), [segment.start for segment in self.segments]
        stop = 0
        for row, length in enumerate(self.lengths):
            start, stop = stop, stop + length
            name = self.segments[bisect_right(starts, start) - 1].adapter_name
            branches = self.branches[row] if self.branches else ()
            first = at = stop - sum(branches)
            for branch in branches or (0,):
                places = [*range(start, first), *range(at, at + branch)]
                # The first branch's pass also gives the logits of the token that all branches
                # follow.
                wanted = keep[bisect_left(keep, start if at == first else at) :]
                wanted = wanted[: bisect_left(wanted, at + branch)]
                yield row, name, places, [bisect_left(places, place) for place in wanted]
                at += branch

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> "RowBatch":
        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        segments: list[AdapterSpan] = []
        for row in rows:
            offset = len(ids)
            ids.extend(row.ids)
            positions.extend(row.positions)
            keep.extend(offset + position for position in row.keep)
            if segments and segments[-1].adapter_name == row.adapter_name:
                offset = segments.pop().start
            segments.append(AdapterSpan(row.adapter_name, offset, len(ids)))
        branches = tuple(tuple(row.branches) for row in rows)
        input_ids, position_ids = on_device(torch.tensor([ids, positions]), device).split(1)
        return cls(
            input_ids=input_ids,
            position_ids=position_ids,
            lengths=tuple(len(row.ids) for row in rows),
            segments=tuple(segments),
            keep=torch.tensor(keep, dtype=torch.int64),
            branches=branches if any(branches) else (),
        )


@dataclass(slots=True)
class Base:
    """A causal language model with its tokenizer, ready for groups of adapters."""

    model: PreTrainedModel  # Uses the varlen attention; frozen unless :meth:`trainable_copy`'s
    tokenizer: PreTrainedTokenizerBase | Any  # None on shards other than 0
    record: ModelRecord
    folder: Path  # Holds its weights
    multi_lora: MultiLora
    shards: Shards = ONE_SHARD  # The shards that hold the model together
    name: str = "base"  # Among the models of the shards
    weight_norms: dict[str, float] = field(default_factory=dict)  # By linear layer, once needed
    product_dtype: torch.dtype | None = None
    """Dtype of matrix products if it differs from the weights': mixed precision (1710.03740).
    Norms, softmax and sums stay in float32."""
    packs: bool = True
    """Whether rows share a pass. Otherwise each row runs alone, with transformers' own attention:
    state spaces and convolutions would mix rows."""
    resumes: bool = True  # If they run alone: whether the model's own cache continues a row

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def is_sharded(self) -> bool:
        """Whether every pass needs all shards; valid between passes only."""
        return is_sharded(next(self.model.parameters()))

    def logits(
        self,
        batch: RowBatch,
        cache: KVCache | None = None,
        store: bool = False,
        prefix: KVCache | None = None,
        plan: AttentionPlan | None = None,
    ) -> Tensor:
        """Compute logits at the kept positions, (M, vocabulary), in the base's dtype.

        Inside ``output_layer_apart`` the result is the output layer's input there, (M, width).

        Args:
            cache: each row continues its own prefix in it.
            store: append the pass's keys and values to ``cache``.
            prefix: a cache of one row, which all rows continue; ``cache`` is then only written.
            plan: the batch's attention plan, if it exists already.
        """
        # The choice lives in the config object, which another model may share and change.
        attention = self.model.config.get_text_config()._attn_implementation
        if self.packs and attention != varlen.NAME:
            found = f"{self.record.label}: attention {attention!r}, expected {varlen.NAME!r}"
            raise RuntimeError(f"{found}: give each model whose attention is set its own config")
        for segment in batch.segments:
            name = segment.adapter_name
            # Scoring the bare base instead would hide a misspelled name.
            if name is not None and name not in self.multi_lora.adapters:
                raise KeyError(f"no adapter is attached under the name {name!r}")
        if not self.packs:
            if prefix is not None or plan is not None:
                raise ValueError(f"{self.record.label}: rows of this model share nothing")
            return self._logits_alone(batch, cache, store)
        if plan is None:
            plan = AttentionPlan.of(batch.lengths, self.device, cache, store)
            if batch.branches or prefix is not None:
                plan = plan.with_branches(batch.branches, prefix, self.device)
        if self.is_sharded:
            self.shards.announce("forward", self.name)
        routing = self.multi_lora.routing(batch.segments, batch.kept_segments())
        # A pass that stores keys writes each to its own place, and indexes nothing else.
        writes = distinct_places(self.device) if store else nullcontext()
        with routing, self._precision(), writes:
            out: Tensor = self.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=on_device(batch.keep, self.device),
                attention_plan=plan,
            ).logits.squeeze(0)
        if cache is not None and store:
            cache.advance(plan.lengths)
        return out

    def _precision(self) -> AbstractContextManager[object]:
        if self.product_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.product_dtype)

    def _logits_alone(self, batch: RowBatch, cache: KVCache | None, store: bool) -> Tensor:
        """Compute :meth:`logits` by one pass for each row, and for each branch of a row."""
        out: list[Tensor] = []
        for row, name, places, keep in batch.alone():
            ids = batch.input_ids[:, on_device(torch.tensor(places), self.device)]
            before, past = None, None
            if cache is not None:
                before, past = cache.rows[row]
            if len(places) > 1 or not store:
                past = None  # some models continue their own cache by single tokens only
            whole = ids if before is None else torch.cat([before, ids], 1)
            num_read = whole.shape[1] if past is None else len(places)
            kept = torch.tensor(keep, dtype=torch.int64) + (num_read - len(places))
            kept = on_device(kept, self.device)
            routing = self.multi_lora.routing(
                (AdapterSpan(name, 0, num_read),), (AdapterSpan(name, 0, len(keep)),)
            )
            with routing, self._precision():
                result = self.model(
                    input_ids=whole[:, -num_read:],
                    use_cache=store and self.resumes,
                    logits_to_keep=kept,
                    **(past or {}),
                )
            logits = result.logits[0]
            out.append(logits if len(logits) == len(keep) else logits[kept])  # some ignore the wish
            if cache is not None and store:
                key = next((key for key in OWN_CACHES if result.get(key) is not None), None)
                cache.rows[row] = whole, {key: result[key]} if key else None
        if cache is not None and store:
            cache.advance(torch.tensor(batch.lengths))
        return torch.cat(out)

    @contextmanager
    def optimizer_step(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Surround all passes of an optimizer step; at its end the parameters have their
        gradients."""
        with self.multi_lora.optimizer_step():
            yield
        self.shards.add_up_gradients(parameters)

    def linears(self) -> dict[str, nn.Linear]:
        return linear_layers(self.model)

    def weight_norm(self, name: str, linear: nn.Linear) -> float:
        """Return |W0|_F of a linear layer of this base, computed once."""
        if name not in self.weight_norms:
            weight = dense_weight(linear)
            self.weight_norms[name] = float(torch.linalg.vector_norm(weight, dtype=torch.float32))
        return self.weight_norms[name]

    def trainable_copy(self) -> "Base":
        """Make a float32 copy whose every parameter trains, with products in the base's dtype."""
        if self.shards.size > 1:
            return self.shards.trainable_copy(self)
        copied = self.copied()
        model = copied.model.float()
        use_kernels(model, PLAIN)  # others take frozen weights, and no mixed precision
        model.requires_grad_(True)
        if self.model.dtype != model.dtype:
            copied.product_dtype = self.model.dtype
        return copied

    def copied(self, *, in_place: bool = False) -> "Base":
        """Make a separate model with the same weights, without adapters.

        With ``in_place``, its parameters share the memory of this model's values.
        """
        kept = {id(p): copy.copy(p) for p in self.model.parameters()} if in_place else {}
        model = copy.deepcopy(self.model, kept)
        unwrap(model)
        own = (self.tokenizer, self.record, self.folder, MultiLora(model))
        return Base(model, *own, packs=self.packs, resumes=self.resumes)


def batches_of(rows: Iterable[Row], batch_tokens: int) -> Iterable[list[Row]]:
    """Cut rows, in order, into lists of at most ``batch_tokens`` tokens (at least one row)."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        if batch and size + len(row.ids) > batch_tokens:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row.ids)
    if batch:
        yield batch


# --- gradient checkpointing (Chen et al., 1604.06174) computes activations again in the backward
# pass. It wraps the layers that transformers marks for it in torch's non-reentrant checkpoint, from
# outside: transformers' own switch works in training mode only, which would turn on the base's
# dropout.


def enable_gradient_checkpointing(model: nn.Module, multi_lora: MultiLora) -> None:
    """Keep only the input of every decoder layer; dropout masks are repeated."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        found = f"{type(model).__name__}, which marks no layer for it"
        raise UserError("gradient_checkpointing", found, do="remove it")

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), multi_lora.same_routing()

    for layer in layers:
        again: Any = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)
        layer.forward = again


def disable_gradient_checkpointing(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            vars(layer).pop("forward", None)
