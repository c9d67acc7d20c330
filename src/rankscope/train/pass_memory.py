"""Memory that one pass through a model allocates, counted on shapes alone.

The pass runs on torch's meta device, whose tensors have shapes and no storage. Each tensor that it
would allocate counts as long as it lives, so the count follows the code on any architecture.

A count of a model of 32 layers takes seconds, and a plan asks for many. So only the first layers
are counted, because each repetition of the layers' pattern adds the same bytes. That is exact if
the peak comes as the backward pass begins, while every layer still holds what it keeps.
"""

import math
import statistics
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.models.attention.kernel import KernelRows
from rankscope.models.attention.products import RowLayout
from rankscope.models.attention.varlen import NAME, AttentionPlan, OnShapes
from rankscope.models.base import (
    Row,
    RowBatch,
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)
from rankscope.models.init_context import InitContext, empty_adapter
from rankscope.models.lora import Adapter
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.multi_lora import MultiLora, target_linears, unwrap
from rankscope.models.output_layer import (
    OutputLayer,
    block_output_layer,
    note_plain_logits,
    output_layer_apart,
)
from rankscope.models.parameters import FLOAT32_BYTES
from rankscope.records import TrialSpec
from rankscope.train.loss import mean_losses

META = torch.device("meta")
CPU = torch.device("cpu")

FEWEST_LAYERS = 2  # A model of one layer has its peak elsewhere if layers are computed again

_COUNTED: dict[tuple[object, ...], int] = {}
"""Counts of this process, and whether a model gives plain logits. Only shapes decide them, so later
studies of a model reuse them."""


@dataclass(frozen=True, slots=True)
class PassShape:
    """The size of a forward pass: tokens of each row, and positions with a label."""

    lengths: tuple[int, ...]
    num_labels: int


class PassMemory:
    def __init__(self, model: PreTrainedModel, device: torch.device, has_kernel: bool) -> None:
        """``model`` is on the meta device. ``device`` will run the passes, and decides the layout
        of rows; ``has_kernel`` says whether it has the kernel of ``attention/kernel.py``."""
        self.model = model
        self.device = device
        self.has_kernel = has_kernel
        parts = [(name, p.shape, p.dtype) for name, p in model.named_parameters()]
        config = model.config.to_json_string(), model.config._attn_implementation
        self._model_key = (*config, *parts, str(device), has_kernel)
        block_output_layer(model)
        if isinstance(head := model.get_output_embeddings(), OutputLayer):
            if self._model_key not in _COUNTED:
                shortest = _batch_of_shape(PassShape((2,), 1), [None])
                with AllocationCounter():
                    note_plain_logits(model, lambda: self._logits(shortest))
                _COUNTED[self._model_key] = head.gives_logits
            head.gives_logits = bool(_COUNTED[self._model_key])

    def pass_bytes(
        self,
        group: Sequence[TrialSpec],
        shape: PassShape,
        recomputes: bool,
        is_sharded: bool = False,
    ) -> int:
        """Count the bytes of a pass without copies of A and B.

        Without trials the whole model trains. A sharded model has its logits whole. Adapters of one
        kind get equal shares of the tokens, so one adapter of their mean rank represents them.
        """
        kinds: dict[tuple[object, ...], list[TrialSpec]] = {}
        for trial in group:
            kinds.setdefault((trial.method, trial.targets), []).append(trial)
        shares = [len(trials) for trials in kinds.values()]
        shares = [count // math.gcd(*shares) for count in shares]
        ranks = [round(statistics.fmean(t.rank or 1 for t in of)) for of in kinds.values()]
        of_kind = [
            trials[0].model_copy(update={"rank": rank, "rank_pattern": None})
            for rank, trials in zip(ranks, kinds.values(), strict=True)
        ]
        key = (*self._model_key, *kinds, *ranks, *shares, shape, recomputes, is_sharded)
        if key not in _COUNTED:
            head = self.model.get_output_embeddings()
            is_whole = is_sharded and isinstance(head, OutputLayer) and head.gives_logits
            if is_whole:
                head.gives_logits = False
            _COUNTED[key] = self._counted(of_kind, shares, shape, recomputes)
            if is_whole:
                head.gives_logits = True
        return _COUNTED[key]

    def _counted(
        self, trials: Sequence[TrialSpec], shares: Sequence[int], shape: PassShape, recomputes: bool
    ) -> int:
        """Count the bytes of a pass through all layers; each trial has its share of the rows."""
        layers = decoder_layers(self.model)
        depth, period = len(layers), self.period(trials, layers)
        least = max(FEWEST_LAYERS, period)  # at least one layer of every kind
        few = least + (depth - least) % period
        if few + period >= depth:
            return max(self.counted_whole(trials, shares, shape, recomputes))
        counts = []
        for kept in (few, few + period):
            with _first_layers(self.model, kept):
                counts.append(self.counted_whole(trials, shares, shape, recomputes))
        (fewer, _), (more, at_embedding) = counts
        return max(fewer + (depth - few) // period * (more - fewer), at_embedding)

    def counted_whole(
        self, trials: Sequence[TrialSpec], shares: Sequence[int], shape: PassShape, recomputes: bool
    ) -> tuple[int, int]:
        """Count the most bytes that a forward and backward pass holds at once, in the current
        model.

        Returns:
            Two peaks. The first lasts until the backward pass has gone through the layers, and
            grows with their number. The second comes after that, during the gradient of a trained
            embedding.

        No law of layers is used. Gradients exist from an earlier pass of the step and do not count.
        """
        self.model.requires_grad_(not trials)
        with self._with_adapters(trials) as group:
            adapters = list(group.adapters.values())
            if recomputes:
                enable_gradient_checkpointing(self.model, group)
            trained = [p for p in self.model.parameters() if p.requires_grad]
            for parameter in (*trained, *(p for a in adapters for p in a.parameters())):
                parameter.grad = torch.empty_like(parameter)
            names = [name for name, n in zip(group.adapters, shares, strict=True) for _ in range(n)]
            batch, peaks = _batch_of_shape(shape, names or [None]), list[int]()
            group.training = True

            def watch(module: nn.Module, args: object, out: Tensor) -> None:
                if out.requires_grad:  # a trained embedding: the backward pass reaches its output
                    out.register_hook(lambda grad: peaks.append(counter.restart()))

            handle = self.model.get_input_embeddings().register_forward_hook(watch)
            try:
                routing = group.routing(batch.segments, batch.kept_segments())
                with routing, AllocationCounter() as counter:
                    with output_layer_apart(self.model) as head:
                        states, count = self._logits(batch), len(batch.keep)
                    targets = torch.zeros(count, dtype=torch.int64, device=META)
                    losses = mean_losses(states, targets, [count], [count], head)
                    del states
                    losses.sum().backward()
            finally:
                handle.remove()
                disable_gradient_checkpointing(self.model)
        peak = int(counter.peak_bytes)
        layers, embedding = (peaks[0], peak) if peaks else (peak, 0)
        if trials:
            casts = sum(cast_bytes(adapter, self.model.dtype) for adapter in adapters)
            return layers - casts, embedding
        # A trained model's gradients are float32 whatever the dtype of its products. Of those that
        # wait to be added up, only the embedding's are large. They exist at the end of the backward
        # pass, and from its beginning if the output layer shares the embedding's weights.
        model: Any = self.model
        itemsize, weight = model.dtype.itemsize, model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        is_tied = head is not None and head.weight is weight
        waiting = weight.numel() * (FLOAT32_BYTES - itemsize) if is_tied else 0
        return layers + waiting, embedding * FLOAT32_BYTES // itemsize

    def scoring_bytes(self, trial: TrialSpec | None, shape: PassShape) -> int:
        """Count the bytes of one forward pass of scoring an adapter or the bare model.

        Log-probabilities are included. No layer keeps anything, so one period of the layers is
        enough.
        """
        trials = [] if trial is None else [trial]
        kind = [(t.method, t.targets, t.rank) for t in trials]
        key = (*self._model_key, "scoring", *kind, shape)
        if key not in _COUNTED:
            layers = decoder_layers(self.model)
            few = max(FEWEST_LAYERS, self.period(trials, layers))
            with (
                _first_layers(self.model, few) if few < len(layers) else nullcontext(),
                self._with_adapters(trials) as group,
            ):
                batch = _batch_of_shape(shape, [*group.adapters] or [None])
                routing = group.routing(batch.segments, batch.kept_segments())
                with routing, AllocationCounter() as counter, torch.no_grad():
                    logits = self._logits(batch)
                    torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            _COUNTED[key] = counter.peak_bytes
        return _COUNTED[key]

    @contextmanager
    def _with_adapters(self, trials: Sequence[TrialSpec]) -> Iterator[MultiLora]:
        """Attach the trials' adapters to the model inside."""
        group = MultiLora(self.model)
        try:
            for trial in trials:
                group.attach(shaped_adapter(self.model, trial))
            yield group
        finally:
            unwrap(self.model)

    def _logits(self, batch: RowBatch) -> Tensor:
        """Compute (M, vocabulary) by the plan that the rows have on the device, or row by row.

        The result is (M, width) if the output layer is apart.
        """
        model: Any = self.model
        if model.config._attn_implementation != NAME:
            parts = []
            for _, _, places, kept in batch.alone():
                ids, keep = batch.input_ids[:, places].to(META), torch.tensor(kept, device=META)
                parts.append(model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0])
            return torch.cat(parts)
        plan = AttentionPlan.of(batch.lengths, CPU)  # this machine may lack the device
        by_products = self.device.type == "cpu" and plan.layout is not None
        plan = replace(
            plan,
            to_rows=plan.to_rows.to(META),
            to_tokens=plan.to_tokens.to(META),
            layout=RowLayout(batch.lengths, META) if by_products else None,
            kernel=KernelRows(plan.lengths, META) if self.has_kernel else None,
            repeats_keys=self.device.type == "cuda",
        )
        logits: Tensor = model(
            input_ids=batch.input_ids.to(META),
            position_ids=batch.position_ids.to(META),
            use_cache=False,
            logits_to_keep=batch.keep.to(META),
            attention_plan=plan,
        ).logits[0]
        return logits

    def period(self, trials: Sequence[TrialSpec], layers: nn.ModuleList) -> int:
        """Return the number of layers after which shapes, windows and targets repeat."""
        targets = {
            linear
            for trial in trials
            for linear in target_linears(self.model, trial.targets).values()
        }
        kinds = [
            (
                [(name, tuple(p.shape)) for name, p in layer.named_parameters()],
                [name for name, module in layer.named_modules() if module in targets],
                [getattr(module, "sliding_window", None) for module in layer.modules()],
            )
            for layer in layers
        ]
        return next(
            (n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n]), max(1, len(kinds))
        )


class AllocationCounter(OnShapes):
    """Counts the bytes of the tensors made inside it, as long as they live.

    Storage that existed before does not count, and views share the storage of their tensor.

    >>> with AllocationCounter() as counter:
    ...     x = torch.zeros(1000, device="meta")
    >>> counter.peak_bytes
    4000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes: int = 0
        self._living: dict[int, weakref.ref[Any]] = {}
        self._foreign: dict[int, Any] = {}  # kept, so that no new storage gets their address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._living:
                self._foreign[storage._cdata] = storage
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for storage in _storages(out):
            if storage._cdata not in self._living and storage._cdata not in self._foreign:
                self._born(storage)
        return out

    def restart(self) -> int:
        """Return the peak until now, and count a new one from here on."""
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def _born(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            self.live_bytes -= size
            del self._living[key]

        self._living[key] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _storages(values: object) -> list[Any]:
    return [t.untyped_storage() for t in tree_leaves(values) if isinstance(t, Tensor)]


def _batch_of_shape(shape: PassShape, adapter_names: Sequence[str | None]) -> RowBatch:
    """Make rows of the given lengths, with labels spread over them, shared among the adapters."""
    labels = spread(shape.num_labels, len(shape.lengths))
    rows = []
    for index, (length, own) in enumerate(zip(shape.lengths, labels, strict=True)):
        name = adapter_names[index * len(adapter_names) // len(shape.lengths)]
        rows.append(Row([0] * length, range(max(0, length - 1 - own), length - 1), name))
    return RowBatch.of(rows, CPU)


def spread(total: int, count: int) -> tuple[int, ...]:
    """Divide ``total`` into ``count`` whole parts that differ by at most one."""
    return tuple(total * (i + 1) // count - total * i // count for i in range(count))


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the stack of decoder layers; empty if a model has no single one."""
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    return stacks[0] if len(stacks) == 1 else nn.ModuleList()


@contextmanager
def _first_layers(model: nn.Module, count: int) -> Iterator[None]:
    """Remove all but the first ``count`` decoder layers inside."""
    layers = decoder_layers(model)
    parent, name = next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if child is layers
    )
    setattr(parent, name, layers[:count])
    try:
        yield
    finally:
        setattr(parent, name, layers)


def shaped_adapter(model: nn.Module, trial: TrialSpec) -> Adapter:
    """Make a trial's adapter as shapes, without dropout, whose generators need numbers."""
    adapter = empty_adapter(trial.model_copy(update={"dropout": 0.0}))
    method, context = LoraMethod.of(trial.method), InitContext(None, {}, [trial])
    with next(model.parameters()).device:  # without storage, as a rule
        for name, linear in target_linears(model, trial.targets).items():
            method.init_module(adapter, name, linear, context)
    return adapter


def cast_bytes(adapter: Adapter, dtype: torch.dtype) -> int:
    """Count the bytes of a pass's copies of A and B in the base's dtype; 0 in float32."""
    if dtype == torch.float32:
        return 0
    return sum(parameter.numel() for parameter in adapter.parameters()) * dtype.itemsize
