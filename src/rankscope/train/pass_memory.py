"""What one training pass through a model allocates, from counts on its first layers alone.

A count on shapes of a model of 32 layers takes seconds, and a plan asks for many. Two laws save
them, exact while the peak comes when the backward pass has just begun and every layer still holds
what it keeps: each repetition of the layers' pattern adds the same bytes, and so does each rank,
whose only part is A x, (tokens, r).
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rankscope.models.gradient_checkpointing import (
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)
from rankscope.models.init_context import empty_adapter
from rankscope.models.lora import Adapter
from rankscope.models.methods import get_lora_method
from rankscope.models.multi_lora import MultiLora, target_linears, unwrap
from rankscope.models.parameters import FLOAT32_BYTES
from rankscope.records import TrialSpec
from rankscope.train.allocations import PassPeaks, PassShape, counted_pass, counted_scoring

RANKS = (8, 16)  # Ranks that are counted; the bytes of others lie on the line through them

FEWEST_LAYERS = 2  # A model of one layer has its peak elsewhere if layers are computed again

_COUNTED: dict[tuple[object, ...], list[int]] = {}
"""Of this process. Shapes alone decide a count, so further studies of a model need none."""


class PassMemory:
    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        parts = [(name, p.shape, p.dtype) for name, p in model.named_parameters()]
        attention = model.config._attn_implementation
        self._model_key = (model.config.to_json_string(), attention, *parts, str(device))

    def pass_bytes(self, group: Sequence[TrialSpec], shape: PassShape, recomputes: bool) -> int:
        """Bytes of a pass without copies of A and B; without trials the whole model trains.

        Adapters of one kind get equal shares of the tokens, so one of their mean rank represents
        them.
        """
        kinds: dict[tuple[object, ...], list[TrialSpec]] = {}
        for trial in group:
            kinds.setdefault((trial.method, trial.targets), []).append(trial)
        shares = [len(trials) for trials in kinds.values()]
        shares = [count // math.gcd(*shares) for count in shares]
        key = (*self._model_key, *kinds, *shares, shape, recomputes)
        if key not in _COUNTED:
            firsts = [trials[0] for trials in kinds.values()]
            points = [
                [RANKS[i == raised] for i in range(len(kinds))] for raised in range(-1, len(kinds))
            ]
            _COUNTED[key] = [
                self.counted(
                    [t.model_copy(update={"rank": r}) for t, r in zip(firsts, ranks, strict=True)],
                    shares,
                    shape,
                    recomputes,
                )
                for ranks in points
            ]
        lowest, *raised = _COUNTED[key]
        total = float(lowest)
        for trials, higher in zip(kinds.values(), raised, strict=True):
            mean_rank = statistics.fmean(trial.rank or 1 for trial in trials)
            total += (mean_rank - RANKS[0]) / (RANKS[1] - RANKS[0]) * (higher - lowest)
        return round(total)

    def counted(
        self, trials: Sequence[TrialSpec], shares: Sequence[int], shape: PassShape, recomputes: bool
    ) -> int:
        """Bytes of a pass through all layers; each trial has its share of the rows."""
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
        fewer, more = counts
        in_layers = fewer.layers + (depth - few) // period * (more.layers - fewer.layers)
        return max(in_layers, more.embedding)

    def counted_whole(
        self, trials: Sequence[TrialSpec], shares: Sequence[int], shape: PassShape, recomputes: bool
    ) -> PassPeaks:
        """As :meth:`counted`, of the model as it is now, without any law."""
        packed = MultiLora(self.model)
        self.model.requires_grad_(not trials)
        adapters = [shaped_adapter(self.model, trial) for trial in trials]
        for adapter in adapters:
            packed.attach(adapter)
        if recomputes:
            enable_gradient_checkpointing(self.model, packed)
        try:
            counted = counted_pass(packed, shape, shares, self.device)
        finally:
            disable_gradient_checkpointing(self.model)
            unwrap(self.model)
        if not trials:
            return self.with_float32_gradients(counted)
        casts = sum(cast_bytes(adapter, self.model.dtype) for adapter in adapters)
        return counted._replace(layers=counted.layers - casts)

    def with_float32_gradients(self, counted: PassPeaks) -> PassPeaks:
        """A trained model's gradients are float32 whatever the dtype of its products. Of those that
        wait to be added up, only the embedding's are large: at the end of the backward pass, and,
        if the output layer shares its weights, from the beginning on."""
        model: Any = self.model
        itemsize, embedding = model.dtype.itemsize, model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        is_tied = head is not None and head.weight is embedding
        waiting = embedding.numel() * (FLOAT32_BYTES - itemsize) if is_tied else 0
        return PassPeaks(counted.layers + waiting, counted.embedding * FLOAT32_BYTES // itemsize)

    def scoring_bytes(self, trial: TrialSpec | None, shape: PassShape) -> int:
        """Bytes of one forward pass of scoring, of an adapter or of the bare model. It keeps
        nothing of a layer, so as many layers as repeat are enough."""
        trials = [] if trial is None else [trial]
        kind = [(t.method, t.targets, t.rank) for t in trials]
        key = (*self._model_key, "scoring", *kind, shape)
        if key not in _COUNTED:
            layers = decoder_layers(self.model)
            few = max(FEWEST_LAYERS, self.period(trials, layers))
            packed = MultiLora(self.model)
            with _first_layers(self.model, few) if few < len(layers) else nullcontext():
                for t in trials:
                    packed.attach(shaped_adapter(self.model, t))
                try:
                    _COUNTED[key] = [counted_scoring(packed, shape, self.device)]
                finally:
                    unwrap(self.model)
        return _COUNTED[key][0]

    def period(self, trials: Sequence[TrialSpec], layers: nn.ModuleList) -> int:
        """After how many layers their shapes, windows and targets repeat."""
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


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers; empty if a model has no single one."""
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
    """Leave out all but the first ``count`` decoder layers while inside."""
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
    """A trial's adapter as shapes, without dropout, whose generators need numbers."""
    adapter = empty_adapter(trial.model_copy(update={"dropout": 0.0}))
    for name, linear in target_linears(model, trial.targets).items():
        get_lora_method(trial.method).allocate_module(adapter, name, linear)
    return adapter


def cast_bytes(adapter: Adapter, dtype: torch.dtype) -> int:
    """Copies of A and B in the base's dtype during a pass, if it is not float32."""
    if dtype == torch.float32:
        return 0
    return sum(parameter.numel() for parameter in adapter.parameters()) * dtype.itemsize
