"""Peak memory of training a group, estimated before any weight is loaded.

The sum of the base, each adapter's weights, gradients and optimizer state, and what one forward and
backward pass allocates, which ``allocations.py`` counts on shapes alone. Memory that a device's
kernels allocate inside one operation is not visible there; ``KERNEL_SHARE`` accounts for it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.models.attention import varlen
from rankscope.models.gradient_checkpointing import (
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)
from rankscope.models.lora import Adapter
from rankscope.models.methods import get_lora_method
from rankscope.models.methods.init_context import empty_adapter
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.multi_lora import MultiLora, linear_layers, target_linears, unwrap
from rankscope.models.parameters import ADAMW_STATES, FLOAT32_BYTES
from rankscope.records import TrialSpec
from rankscope.train.allocations import META, PassShape, counted_pass, spread
from rankscope.train.step_schedule import trial_protocol

KERNEL_SHARE = 1.0
"""Measured bytes of a pass over counted ones."""

HELD_SHARE = 0.5
"""Freed memory that a CPU heap keeps between blocks in use, as a share of all states' bytes.

Optimizer moments take the place of the first passes' tensors, and later passes no longer fit there.
Fitted to 16 adapters on SmolLM2-135M, see LOG.md; a GPU's allocator is not known to do this.
"""

DEVIATIONS = 3.0
"""Standard deviations of the fullest of some thousand steps above the mean."""

STAND_IN_RANK = 8
"""For a method of the PEFT library without a rank."""


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Tokens and labels of a task's training rows."""

    num_rows: int
    mean_tokens: float
    tokens_deviation: float
    longest: int
    mean_labels: float
    labels_deviation: float
    most_labels: int

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> "RowCounts":
        """Count rows; at least one."""
        tokens = [len(row.input_ids) for row in rows]
        labels = [sum(row.is_label) for row in rows]
        return cls(
            len(rows),
            statistics.fmean(tokens),
            statistics.pstdev(tokens),
            max(tokens),
            statistics.fmean(labels),
            statistics.pstdev(labels),
            max(labels),
        )

    @classmethod
    def longer(cls, counts: Sequence["RowCounts"]) -> "RowCounts":
        """Of rows mixed together: the largest of each figure, so that none is underestimated."""
        return cls(*(max(values) for values in zip(*map(astuple, counts), strict=True)))

    def fullest_pass(self, num_rows: int, batch_tokens: int) -> PassShape:
        """About the largest pass that steps of ``num_rows`` rows are cut into.

        It has the longest row, whose attention costs most, and rows of mean length.
        """
        beyond = DEVIATIONS * self.tokens_deviation * math.sqrt(num_rows)
        most = min(num_rows * self.mean_tokens + beyond, num_rows * self.longest)
        fewest = num_rows * self.mean_tokens - beyond
        # Passes of a step are of similar size: just below a multiple of the budget they are full.
        full_passes = int(most // batch_tokens)
        is_full = full_passes > 0 and full_passes * batch_tokens >= fewest
        tokens = batch_tokens if is_full else most / max(1, math.ceil(most / batch_tokens))
        others = max(0, round(tokens) - self.longest)
        lengths = (self.longest, *spread(others, math.ceil(others / self.mean_tokens)))
        count = len(lengths)
        labels = count * self.mean_labels + DEVIATIONS * self.labels_deviation * math.sqrt(count)
        most_labels = min(round(labels), count * self.most_labels, sum(lengths) - count)
        return PassShape(lengths, max(1, most_labels))


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Peak memory of training one group, bytes, without the process's own libraries."""

    base_bytes: int
    """The frozen base."""
    state_bytes: int
    """Trained weights and copies of them, gradients and optimizer state of all trials."""
    pass_bytes: int
    """What one forward and backward pass allocates."""
    pass_tokens: int
    """Tokens of that pass."""
    held_bytes: int = 0
    """What the heap holds beyond that."""

    @property
    def total_bytes(self) -> int:
        return self.base_bytes + self.state_bytes + self.pass_bytes + self.held_bytes


class MemoryModel:
    """Memory of training groups on one base, from its configuration alone."""

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        varlen.register_attention()
        with META:
            self.base: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, attn_implementation=varlen.NAME, dtype=dtype
            )
        head = self.base.get_output_embeddings()
        self._layers = [n for n, layer in linear_layers(self.base).items() if layer is not head]
        self._counted: dict[tuple[object, ...], int] = {}

    def of_group(
        self, group: Sequence[TrialSpec], counts: RowCounts, train: TrainConfig
    ) -> GroupMemory:
        """Peak memory of training a group: LoRA trials of one task, or a single other trial."""
        own = [trial_protocol(trial, train) for trial in group]
        rows_each = [
            math.ceil(
                min(counts.num_rows, p.batch_size * p.gradient_accumulation)
                / (1 - (trial.replay_share or 0.0))
            )
            for trial, p in zip(group, own, strict=True)
        ]
        shape = counts.fullest_pass(sum(rows_each), train.batch_tokens)
        recomputes = train.gradient_checkpointing
        if group[0].is_full:
            values = sum(parameter.numel() for parameter in self.base.parameters())
            state = values * (2 + ADAMW_STATES + copies(group[0])) * FLOAT32_BYTES
            casts = values * self.dtype.itemsize if self.dtype != torch.float32 else 0
            return GroupMemory(
                nbytes(self.base),
                state,
                self._counted_pass((), shape, recomputes) + casts + self._kl_bytes(group, shape),
                sum(shape.lengths),
            )
        group = [self.stand_in(trial) for trial in group]
        together = math.ceil(len(group) * len(shape.lengths) / sum(rows_each))
        casts = sum(sorted(map(self._cast_bytes, group))[-together:])
        state = sum(map(self.state_bytes, group))
        return GroupMemory(
            nbytes(self.base),
            state,
            self._counted_pass(group, shape, recomputes) + casts + self._kl_bytes(group, shape),
            sum(shape.lengths),
            round(HELD_SHARE * state) if self.device.type == "cpu" else 0,
        )

    def _kl_bytes(self, group: Sequence[TrialSpec], shape: PassShape) -> int:
        """What KL to the base adds to a pass: the base's logits, as computed and by trial, and a
        second gradient of the tuned ones."""
        if not any(trial.kl_to_base for trial in group):
            return 0
        vocabulary = self.base.config.get_text_config().vocab_size
        return 3 * shape.num_labels * int(vocabulary) * self.dtype.itemsize

    def stand_in(self, trial: TrialSpec) -> TrialSpec:
        """LoRA on every linear layer in place of a method of the PEFT library."""
        if trial.peft is None:
            return trial
        leaves = {name.rsplit(".", 1)[-1] for name in self._layers}
        rank = trial.rank or STAND_IN_RANK
        targets = tuple(sorted(leaves))
        settings = {"method": LoraMethod.name, "rank": rank, "alpha": 1.0, "targets": targets}
        return trial.model_copy(update=settings)

    def state_bytes(self, trial: TrialSpec) -> int:
        """Bytes of one trial's float32 state: weights, gradients, AdamW's moments, and the best
        weights if it has an early stop."""
        adapter = self._adapter(trial)
        values = sum(parameter.numel() for parameter in adapter.parameters())
        fixed = sum(part.numel() for pair in adapter.initial_factors.values() for part in pair)
        return (values * (2 + ADAMW_STATES + copies(trial)) + fixed) * FLOAT32_BYTES

    def _cast_bytes(self, trial: TrialSpec) -> int:
        """Copies of A and B in the base's dtype during a pass, if it is not float32."""
        if self.dtype == torch.float32:
            return 0
        values = sum(parameter.numel() for parameter in self._adapter(trial).parameters())
        return values * self.dtype.itemsize

    def _adapter(self, trial: TrialSpec) -> Adapter:
        """The trial's adapter as shapes, without dropout, whose generators need numbers."""
        adapter = empty_adapter(trial.model_copy(update={"dropout": 0.0}))
        for name, linear in target_linears(self.base, trial.targets).items():
            get_lora_method(trial.method).allocate_module(adapter, name, linear)
        return adapter

    def _counted_pass(self, group: Sequence[TrialSpec], shape: PassShape, recomputes: bool) -> int:
        """Bytes of a pass without the casts of A and B; without trials the base trains.

        Adapters of one kind get equal shares of the tokens, so one of their mean rank represents
        them.
        """
        kinds: dict[tuple[object, ...], list[TrialSpec]] = {}
        for trial in group:
            kinds.setdefault((trial.method, trial.targets, trial.dropout > 0), []).append(trial)
        merged = [mean_trial(trials) for trials in kinds.values()]
        weights = [len(trials) for trials in kinds.values()]
        ranks = tuple(trial.rank for trial in merged)
        key = (*kinds, ranks, *weights, shape, recomputes)
        if key not in self._counted:
            packed = MultiLora(self.base)
            self.base.requires_grad_(not merged)
            for trial in merged:
                packed.attach(self._adapter(trial))
            if recomputes:
                enable_gradient_checkpointing(self.base, packed)
            try:
                counted = counted_pass(packed, shape, weights, self.device)
            finally:
                disable_gradient_checkpointing(self.base)
                unwrap(self.base)
            self._counted[key] = counted - sum(map(self._cast_bytes, merged))
        masks = sum(self._mask_bytes(trial) for trial in group) / max(1, len(group))
        return round(KERNEL_SHARE * (self._counted[key] + masks * sum(shape.lengths)))

    def _mask_bytes(self, trial: TrialSpec) -> int:
        """Dropout's masks per token: a byte for each input of each target."""
        if trial.dropout == 0:
            return 0
        return sum(x.in_features for x in target_linears(self.base, trial.targets).values())


def copies(trial: TrialSpec) -> int:
    """Further copies of its weights that a trial keeps: those of its best point."""
    return 1 if trial.early_stop is not None else 0


def mean_trial(trials: Sequence[TrialSpec]) -> TrialSpec:
    """The first of some trials, with the mean of their ranks."""
    rank = round(statistics.fmean(trial.rank or 1 for trial in trials))
    return trials[0].model_copy(update={"rank": rank})


def nbytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, shared ones once."""
    parts = [*model.parameters(), *model.buffers()]
    return sum(part.numel() * part.itemsize for part in parts)
