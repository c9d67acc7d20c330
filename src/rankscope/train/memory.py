"""Peak memory of training a group, estimated before any weight is loaded.

It is the sum of the base, each adapter's weights, gradients and optimizer state, and the
allocations of one forward and backward pass, which ``pass_memory.py`` counts on shapes alone.
"""

import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rankscope.config.study import TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.evaluate.continuous_batching import writing_bytes
from rankscope.models.attention import varlen
from rankscope.models.attention.kernel import has_varlen_kernel
from rankscope.models.grouped_lora import padded_rank
from rankscope.models.lora import Adapter
from rankscope.models.methods import LORA
from rankscope.models.multi_lora import linear_layers, output_layer, target_linears
from rankscope.models.output_layer import LOGITS_BLOCK
from rankscope.models.parameters import ADAMW_STATES, FLOAT32_BYTES, nbytes
from rankscope.models.quantize import NF4_BYTES
from rankscope.records import TrialSpec
from rankscope.train.loss import CUDA_BLOCK_BYTES
from rankscope.train.objectives.objective import objective_of
from rankscope.train.pass_memory import (
    META,
    PassMemory,
    PassShape,
    cast_bytes,
    decoder_layers,
    shaped_adapter,
    spread,
)
from rankscope.train.step_schedule import rows_per_step, trial_protocol

HELD_SHARE = 0.5
"""Freed memory that a CPU heap keeps between blocks in use, as a share of all states' bytes.

Optimizer moments take the place of the first passes' tensors, and later passes no longer fit there.
The share is fitted to 16 adapters on SmolLM2-135M, see LOG.md. A GPU's allocator is not known to do
this.
"""

HELD_PASS_SHARE = 0.2
"""Freed memory that the heap keeps in full fine-tuning, as a share of a pass, whose tensors change
sizes every time. Studies that trained Gemma 3 270M held 4 to 18 % of a pass (LOG.md, "what a plan
left out")."""

KERNEL_BYTES = 400_000_000
"""Bytes of the kernels for bfloat16 products that oneDNN keeps
(:data:`rankscope.device.KEPT_KERNELS`). HELD_SHARE was fitted with 32 kernels; these are for more.
With AMX and SmolLM2-135M they took 310 MB for four adapters, 490 MB for five."""

LIBRARY_BYTES = 620_000_000
"""Bytes of Python, torch and transformers in a process, about."""

CUDA_LIBRARY_BYTES = 3_000_000_000
"""Bytes of the machine's own memory beside a GPU, for CUDA's libraries and their maps. Not
measured."""

VOCABULARY_BYTES = 1_100
"""Further bytes for each entry of a tokenizer's vocabulary. Both were measured with four tokenizers
of 4,096 to 262,144 entries."""

DEVIATIONS = 3.0  # Standard deviations of the fullest of some thousand steps above the mean

STAND_IN_RANK = 8  # For a method of the PEFT library without a rank


@dataclass(frozen=True, slots=True)
class RowCounts:
    num_rows: int
    mean_tokens: float
    tokens_deviation: float
    longest: int
    mean_labels: float
    labels_deviation: float
    most_labels: int

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> "RowCounts":
        sizes = list[tuple[int, int]]()
        for row in rows:
            most = row.asked.max_new_tokens if row.asked else 0  # as long as answers can become
            least = len(row.prompt_ids) + most if most else 0
            sizes += [(max(len(p.input_ids), least), max(sum(p.is_label), most)) for p in row.parts]
        tokens, labels = zip(*sizes, strict=True)
        figures = [(statistics.fmean(n), statistics.pstdev(n), max(n)) for n in (tokens, labels)]
        return cls(len(rows), *figures[0], *figures[1])

    @classmethod
    def longer(cls, counts: Sequence["RowCounts"]) -> "RowCounts":
        """Return the largest of each figure, for mixed rows, so that none is underestimated."""
        return cls(*(max(values) for values in zip(*map(astuple, counts), strict=True)))

    def fullest_pass(self, num_rows: int, batch_tokens: int, at_once: int = 1) -> PassShape:
        """Estimate the largest pass of steps of ``num_rows`` rows, with ``at_once`` passes at a
        time.

        It has the longest row, whose attention costs most, and rows of mean length.
        """
        beyond = DEVIATIONS * self.tokens_deviation * math.sqrt(num_rows)
        most = min(num_rows * self.mean_tokens + beyond, num_rows * self.longest)
        fewest = num_rows * self.mean_tokens - beyond
        # Passes of a step are of similar size: just below a multiple of the budget they are full.
        round_tokens = batch_tokens * at_once
        full_rounds = int(most // round_tokens)
        is_full = full_rounds > 0 and full_rounds * round_tokens >= fewest
        num_passes = at_once * math.ceil(most / round_tokens)
        # A pass of few rows exceeds its share: rows are not cut.
        share = max(most / num_passes, math.ceil(num_rows / num_passes) * self.mean_tokens)
        tokens = batch_tokens if is_full else min(batch_tokens, share)
        others = max(0, round(tokens) - self.longest)
        lengths = (self.longest, *spread(others, math.ceil(others / self.mean_tokens)))
        count = len(lengths)
        labels = count * self.mean_labels + DEVIATIONS * self.labels_deviation * math.sqrt(count)
        most_labels = min(round(labels), count * self.most_labels, sum(lengths) - count)
        return PassShape(lengths, max(1, most_labels))


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Peak memory of training one group, bytes, without the process's own libraries."""

    base_bytes: int  # The frozen base
    read_bytes: int  # All of it, in the machine's own memory while it is loaded
    state_bytes: int
    """Trained weights and copies of them, gradients and optimizer state of all trials."""
    pass_bytes: int = 0  # Allocated by one forward and backward pass
    pass_tokens: int = 0  # Tokens of that pass
    held_bytes: int = 0  # Held by the heap beyond that
    saved_bytes: int = 0  # In a checkpoint: trained weights and optimizer state of all trials
    devices: int = 1  # Each of so many needs as much
    library_bytes: int = LIBRARY_BYTES  # The process's own

    @property
    def total_bytes(self) -> int:
        return self.with_pass(self.pass_bytes)

    def with_pass(self, pass_bytes: int) -> int:
        """Return the peak if each pass takes so many bytes."""
        return self.base_bytes + self.state_bytes + pass_bytes + self.held_bytes

    def host_bytes(self, device: torch.device, scoring_bytes: int) -> int:
        """Return the machine's own memory that processes need to train and score the group.

        Beside a GPU they hold the base while they load it, and later each checkpoint.
        """
        if device.type == "cuda":
            held = max(self.read_bytes, self.saved_bytes * self.devices)
            return held + (CUDA_LIBRARY_BYTES + self.library_bytes) * self.devices
        most = self.with_pass(max(self.pass_bytes, scoring_bytes))
        return (most + self.library_bytes) * self.devices


class MemoryModel:
    """Memory of training groups on one base, from its configuration alone."""

    def __init__(
        self,
        config: PretrainedConfig,
        dtype: torch.dtype,
        device: torch.device,
        quantize: Literal["none", "4bit"] = "none",
        has_kernel: bool | None = None,
    ) -> None:
        """``has_kernel`` says whether ``device`` has the kernel of ``attention/kernel.py``; by
        default this machine decides."""
        self.dtype = dtype
        self.device = device
        attention = varlen.attention_of(config)
        self.packs = attention is not None  # Whether rows share a pass
        with META:
            self.base: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation=attention, dtype=dtype
            )
        head = self.base.get_output_embeddings()
        linears = {n: layer for n, layer in linear_layers(self.base).items() if layer is not head}
        self._layers = [*linears]
        self._frozen_bytes = nbytes(self.base)
        if quantize == "4bit":
            sizes = [layer.weight.numel() for layer in linears.values()]
            self._frozen_bytes -= round(sum(sizes) * (dtype.itemsize - NF4_BYTES))
            self._frozen_bytes += max(sizes, default=0) * dtype.itemsize  # One at a time as numbers
        has_kernel = has_varlen_kernel(device) if has_kernel is None else has_kernel
        self.passes = PassMemory(self.base, device, has_kernel)
        self.replicates = False  # Each of several devices holds the frozen base whole
        self._adapters: dict[tuple[object, ...], Adapter] = {}

    def of_group(
        self, group: Sequence[TrialSpec], counts: RowCounts, train: TrainConfig
    ) -> GroupMemory:
        """Estimate the peak memory of training a group: LoRA trials of one task, or a single other
        trial.

        With ``train.devices`` the figures are those of each device.
        """
        rows_each = [_step_rows(trial, counts, train) for trial in group]
        batch_tokens = train.batch_tokens if self.packs else 1
        shape = counts.fullest_pass(sum(rows_each), batch_tokens, train.devices)
        if is_full := group[0].is_full:
            values = sum(parameter.numel() for parameter in self.base.parameters())
            values_each = math.ceil(values / train.devices)
            saved = values_each * saved_values(group[0]) * FLOAT32_BYTES
            state = saved + values_each * FLOAT32_BYTES
            is_cast = self.dtype != torch.float32 and train.devices == 1
            casts = values * self.dtype.itemsize if is_cast else 0
            adapters: list[TrialSpec] = []
        else:
            adapters = [self.stand_in(trial) for trial in group]
            shaped = [self._adapter(trial) for trial in adapters]
            saved = sum(map(self._saved_bytes, adapters))
            state = sum(map(self.state_bytes, adapters))
            if self.device.type == "cuda":
                casts = sum(_grouped_bytes(adapter, self.dtype) for adapter in shaped)
            else:
                together = math.ceil(len(group) * len(shape.lengths) / sum(rows_each))
                copied = sorted(cast_bytes(adapter, self.dtype) for adapter in shaped)
                casts = sum(copied[-together:])
        tokens = sum(shape.lengths)
        is_sharded = train.devices > 1 and not self.replicates
        logits = self._logits_bytes(adapters, shape.num_labels, is_sharded)
        # Dropout's masks take a byte for each token and input of each target.
        linears = [target_linears(self.base, t.targets).values() for t in adapters if t.dropout]
        masks = sum(x.in_features for own in linears for x in own) / max(1, len(adapters))
        counted = self.passes.pass_bytes(adapters, shape, train.gradient_checkpointing, is_sharded)
        # The count runs on no device, where the loss takes the small blocks of a processor.
        has_kl = any(trial.kl_to_base for trial in group)
        blocks = (5 if has_kl else 2) * CUDA_BLOCK_BYTES if self.device.type == "cuda" else 0
        in_pass = round(counted + masks * tokens) + blocks
        writing = self._writing_bytes(group, shape, rows_each, train)
        # KL to the base adds at most its logits, as computed and by trial, and a second gradient of
        # the tuned ones.
        kl = 3 * logits if has_kl else 0
        # A processor's heap has holes that later tensors do not fit into. One more hole has the
        # size of a block of logits, or of all logits, whose size changes with every pass.
        held = HELD_PASS_SHARE * in_pass if is_full else HELD_SHARE * state
        held += logits + (KERNEL_BYTES if self.dtype == torch.bfloat16 else 0)
        return GroupMemory(
            base_bytes=self._base_bytes(train.devices, trains=is_full),
            read_bytes=nbytes(self.base),
            state_bytes=state,
            pass_bytes=max(in_pass + casts + kl, writing),
            pass_tokens=tokens,
            held_bytes=round(held) if self.device.type == "cpu" else 0,
            saved_bytes=saved,
            devices=train.devices,
            library_bytes=self.library_bytes,
        )

    def _logits_bytes(
        self, adapters: Sequence[TrialSpec], num_labels: int, is_sharded: bool
    ) -> int:
        """Estimate the bytes of the logits that exist at once.

        They are a block, unless the output layer trains or is sharded, or a cap or a scale follows
        it.
        """
        head = output_layer(self.base)
        targets = [target_linears(self.base, trial.targets).values() for trial in adapters]
        is_whole = not adapters or is_sharded or any(head in of for of in targets)
        if not is_whole and getattr(head, "gives_logits", False):
            num_labels = min(num_labels, LOGITS_BLOCK)
        return num_labels * self.vocab_size * self.dtype.itemsize

    def _writing_bytes(
        self, group: Sequence[TrialSpec], shape: PassShape, rows: Sequence[int], train: TrainConfig
    ) -> int:
        """Estimate the memory for writing the answers that a group learns from, bytes.

        ``rows`` are the rows of a step by trial; ``shape`` is that of the training passes that
        follow.
        """
        objectives = [objective_of(trial_protocol(trial, train).objective) for trial in group]
        written = [n for n, of in zip(rows, objectives, strict=True) if of.max_new_tokens]
        if not written:
            return 0
        adapters = [] if group[0].is_full else map(self.stand_in, group)
        largest = max(adapters, key=lambda trial: trial.rank or 0, default=None)
        first = self.passes.scoring_bytes(largest, PassShape(shape.lengths, len(shape.lengths)))
        sizes = sum(written), shape.lengths[0], train.batch_tokens
        return writing_bytes(self.base, *sizes, first) + self.fixed_bytes(group)

    def fixed_bytes(self, group: Sequence[TrialSpec]) -> int:
        """Count the bytes of the adapters' copies that are kept while a group writes answers."""
        trials = [] if group and group[0].is_full else map(self.stand_in, group)
        total = 0
        for adapter in map(self._adapter, trials):
            numbers = sum(parameter.numel() for parameter in adapter.parameters())
            if adapter.initial_factors:  # of twice the rank
                total += 2 * numbers * self.dtype.itemsize
            elif self.dtype != torch.float32:
                total += numbers * self.dtype.itemsize
        return total

    @property
    def library_bytes(self) -> int:
        """Bytes of a process with this model's tokenizer, without any weights."""
        return LIBRARY_BYTES + VOCABULARY_BYTES * self.vocab_size

    @property
    def vocab_size(self) -> int:
        return int(self.base.config.get_text_config().vocab_size)

    def of_scored(self, group: Sequence[TrialSpec], train: TrainConfig) -> GroupMemory:
        """Estimate the memory of models that do not train, and of the base beside them."""
        if group and group[0].is_full:
            held = nbytes(self.base)
        else:
            adapters = map(self._adapter, map(self.stand_in, group))
            held = sum(p.numel() * FLOAT32_BYTES for a in adapters for p in a.parameters())
        return GroupMemory(
            base_bytes=self._base_bytes(train.devices, trains=False),
            read_bytes=nbytes(self.base),
            state_bytes=held,
            devices=train.devices,
            library_bytes=self.library_bytes,
        )

    def _base_bytes(self, devices: int, *, trains: bool) -> int:
        """Count the bytes of the frozen base on one device.

        If several devices share it, each holds a shard, or all of it. A shard needs two gathered
        layers (one computes while the next one comes) and the weights outside the layers. If the
        model trains, it also needs their gradients, and the float32 copies that are added up over
        the devices.
        """
        total = self._frozen_bytes
        if devices == 1 or (self.replicates and not trains):
            return total
        layers = [nbytes(layer) for layer in decoder_layers(self.base)]
        gathered = 2 * max(layers, default=0) + total - sum(layers)
        if trains:
            gathered += gathered + gathered * FLOAT32_BYTES // self.dtype.itemsize
        return (total if self.replicates else math.ceil(total / devices)) + gathered

    def stand_in(self, trial: TrialSpec) -> TrialSpec:
        """Replace a method of the PEFT library by LoRA on every linear layer."""
        if trial.peft is None:
            return trial
        leaves = {name.rsplit(".", 1)[-1] for name in self._layers}
        rank = trial.rank or STAND_IN_RANK
        targets = tuple(sorted(leaves))
        settings = {"method": LORA, "rank": rank, "alpha": 1.0, "targets": targets}
        return trial.model_copy(update=settings)

    def state_bytes(self, trial: TrialSpec) -> int:
        """Count the bytes of one trial's float32 state: weights, gradients and AdamW's moments.

        An early stop adds the best weights.
        """
        adapter = self._adapter(trial)
        gradients = sum(parameter.numel() for parameter in adapter.parameters())
        fixed = sum(part.numel() for pair in adapter.initial_factors.values() for part in pair)
        return self._saved_bytes(trial) + (gradients + fixed) * FLOAT32_BYTES

    def _saved_bytes(self, trial: TrialSpec) -> int:
        values = sum(parameter.numel() for parameter in self._adapter(trial).parameters())
        return values * saved_values(trial) * FLOAT32_BYTES

    def _adapter(self, trial: TrialSpec) -> Adapter:
        """Make the trial's adapter as shapes; trials of one kind and rank share it."""
        key = (trial.method, trial.targets, trial.rank, trial.rank_pattern)
        if key not in self._adapters:
            self._adapters[key] = shaped_adapter(self.base, trial)
        return self._adapters[key]


def _step_rows(trial: TrialSpec, counts: RowCounts, train: TrainConfig) -> int:
    """Count the rows of a trial that run in a step, replayed rows included."""
    protocol, share = trial_protocol(trial, train), trial.replay_share or 0.0
    each = objective_of(protocol.objective).rows_each
    return math.ceil(rows_per_step(counts.num_rows, protocol) * (each + share / (1 - share)))


def saved_values(trial: TrialSpec) -> int:
    """Count the numbers in a checkpoint for each trained weight; an early stop adds the best
    one."""
    return 1 + ADAMW_STATES + (1 if trial.early_stop is not None else 0)


def _grouped_bytes(adapter: Adapter, dtype: torch.dtype) -> int:
    """Count the bytes that grouped products add to an adapter's weights and gradients.

    They are the padding, and copies in the base's dtype.
    """
    padding = sum(
        (padded_rank(adapter, module) - len(a)) * (a.shape[1] + len(adapter.b[module]))
        for module, a in adapter.a.items()
    )
    return cast_bytes(adapter, dtype) + padding * (2 * FLOAT32_BYTES + dtype.itemsize)
