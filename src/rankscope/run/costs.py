"""How long the parts of a study take on a machine.

Products of matrices are counted: 2 operations per weight and token forward, as many backward for
activations, and as many again for trained weights. Embeddings are looked up and cost none; the
output layer sees the positions with a label alone. Attention adds 4 per head dimension, token and
key. Between the products, activations are read and written; that takes as long as the products of a
large model and far longer than those of a small one. Each layer of a pass, and each adapter in it,
takes some time to start, and the optimizer reads and writes its states.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rankscope.device import dtype_name
from rankscope.evaluate.continuous_batching import GROWTH, most_cached_tokens
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.models.methods import get_method
from rankscope.models.parameters import (
    FLOAT32_BYTES,
    Architecture,
    compared_matrices,
    target_shapes,
)
from rankscope.records import Record, TrialSpec
from rankscope.run.groups import Group
from rankscope.run.machines import Machine
from rankscope.run.prepared import PreparedStudy
from rankscope.train.memory import RowCounts

TOUCHES = 30
"""How often a pass forward and backward reads or writes each input and output of a linear layer,
and on a processor each attention weight. Fitted to training SmolLM2-135M and the pocket model on
two cores; not measured on a GPU."""
LINEAR_SECONDS = 3e-4  # To start one linear layer with what surrounds it, forward and backward
SLICE_SECONDS = 2e-4  # To start one adapter in one linear layer
OPTIMIZER_BYTES = 32
"""Read and written per trained parameter and step: clipping, weight, gradient and two moments."""
IMPORT_SECONDS = 4.5  # To import torch, transformers and the rest; measured on two cores
READY_SECONDS = 1.0  # From there until a process of a small study trains: 0.8 s, pocket study
ENDING_SECONDS = 3.0  # Preparing outputs, advice and report: measured for 42 trials
VOCABULARY_RATE = 1e5  # Entries of a tokenizer loaded per second: 0.9e5 to 1.8e5 for three models
ENCODED_TOKENS = 4e5  # Tokens of rows and items that a process prepares per second; assumed
LOADED_BYTES = 0.5e9
"""Of weights that are read, hashed and loaded per second, or written; assumed."""


class StageSeconds(Record):
    starting: float
    """Starting the process, encoding rows, loading the base, and the report in the end; each
    group's page faults, and storing and reading its weights."""
    training: float
    scoring: float
    analyses: dict[str, float] = {}  # By name

    @property
    def total(self) -> float:
        return sum(self.by_stage.values())

    @property
    def by_stage(self) -> dict[str, float]:
        names = ("starting", "training", "scoring")
        return {name: getattr(self, name) for name in names} | self.analyses


@dataclass(frozen=True)
class CostModel:
    """Seconds of parts of a study on a machine."""

    inputs: PreparedStudy
    machine: Machine

    @property
    def shapes(self) -> Architecture:
        return self.inputs.base.shapes

    @cached_property
    def body(self) -> int:
        """Weights of all linear layers but the output layer."""
        return sum(math.prod(s) for s in self.shapes.linear_shapes.values()) - self.head

    @cached_property
    def head(self) -> int:
        return math.prod(self.shapes.linear_shapes[self.shapes.output_layer or ""])

    @cached_property
    def attention(self) -> int:
        """Head dimensions of all layers together: inputs of the output projections."""
        shapes = self.shapes.linear_shapes.items()
        return sum(shape[1] for name, shape in shapes if name.endswith(".o_proj"))

    def forward(self, tokens: float, predicted: float, keys: float) -> float:
        """Operations of a forward pass; each token attends to ``keys`` keys on average."""
        return tokens * (2 * self.body + 4 * self.attention * keys) + predicted * 2 * self.head

    @cached_property
    def num_heads(self) -> int:
        """Of all layers together."""
        config = self.inputs.grouping.model.base.config.get_text_config()
        layers = sum(name.endswith(".o_proj") for name in self.shapes.linear_shapes)
        return layers * int(config.num_attention_heads)

    def products(self, operations: float) -> float:
        return operations / (self.machine.rates[dtype_name(self.inputs.dtype)] * 1e12)

    def passes(
        self, operations: float, tokens: float, keys: float, touches: float = TOUCHES
    ) -> float:
        """Seconds of passes: products and the traffic between them, or as long as the machine's
        utilization lets the products take."""
        products = self.products(operations)
        return max(
            products + self.traffic(tokens, keys, touches), products / self.machine.utilization
        )

    def traffic(self, tokens: float, keys: float, touches: float = TOUCHES) -> float:
        """Seconds of reading and writing activations."""
        values = float(self.shapes.activation_values_per_token)
        if self.machine.device.type == "cpu":
            values += self.num_heads * 2 * keys  # half of them masked
        moved = touches * tokens * values * self.inputs.dtype.itemsize
        return moved / (self.machine.bandwidth * 1e9)

    def with_host(self, computing: float, host: float) -> float:
        """On a processor starting layers comes on top; beside a GPU it runs at the same time."""
        return computing + host if self.machine.device.type == "cpu" else max(computing, host)

    def stored_weights(self, trial: TrialSpec) -> float:
        """Seconds to write a trial's weights and its snapshots, hashed, and to read the weights
        twice: for scores, and for an analysis or for the test items of a finalist."""
        copies = 3 + len(self.inputs.snapshot_steps(trial))
        return copies * FLOAT32_BYTES * self.parameters(trial) / LOADED_BYTES

    def checkpoint(self, trial: TrialSpec) -> float:
        """Seconds to write a trial's weights with two moments each, hashed, or to read them."""
        return 3 * FLOAT32_BYTES * self.parameters(trial) / LOADED_BYTES

    def start(self, item_tokens: int, *, forked: bool = False) -> float:
        """Seconds until a new process trains: its imports, the tokenizer, rows and items as
        tokens, and the base hashed and loaded. ``forked``: from one that has imported all."""
        tokens = item_tokens + sum(rows.num_tokens for rows in self.inputs.rows.values())
        weights = self.shapes.num_parameters * self.inputs.dtype.itemsize
        ready = READY_SECONDS + (0 if forked else IMPORT_SECONDS)
        ready += self.inputs.grouping.model.vocab_size / VOCABULARY_RATE
        return ready + tokens / ENCODED_TOKENS + weights / LOADED_BYTES

    # --- training -------------------------------------------------------------------------------

    def training(self, group: Group) -> dict[str, float]:
        """Seconds of training each trial of a group, by trial id, if ``train.devices`` share the
        work evenly; what they send each other is not counted. Slices of a nested run share its."""
        if group[0].given is not None:
            return {trial.trial_id: 0.0 for trial in group}
        config = self.inputs.config.train
        tokens = {t: self.inputs.training_tokens(t) for t in self.inputs.runs(group)}
        steps = max(map(self.inputs.num_steps, group))
        num_passes = max(steps, sum(tokens.values()) / config.batch_tokens)
        linears = num_passes * len(self.shapes.linear_shapes) / sum(tokens.values())
        by_run = {
            t.run: self.trial_training(t, count, linears * count) for t, count in tokens.items()
        }
        sizes, pace = Counter(trial.run for trial in group), self.machine.pace / config.devices
        return {t.trial_id: pace * by_run[t.run] / sizes[t.run] for t in group}

    def page_faults(self, group: Group) -> float:
        """Seconds in which a group's memory becomes the process's, each time that it begins."""
        memory = self.inputs.grouping.memory(self.inputs.runs(group), self.inputs.config.train)
        return (memory.total_bytes - memory.base_bytes) / (self.machine.first_touch * 1e9)

    def trial_training(self, trial: TrialSpec, tokens: int, linears: float) -> float:
        """Seconds of one trial; ``linears`` is its share of the group's linear layers, each
        counted in each pass."""
        config, steps = self.inputs.config.train, self.inputs.num_steps(trial)
        slices = 0.0
        if trial.targets and trial.peft is None:
            num_passes = max(steps, tokens / config.batch_tokens)
            slices = num_passes * len(target_shapes(self.shapes, trial.targets))
        operations = self.training_operations(trial, tokens)
        computing = self.passes(operations, tokens, self.mean_keys(trial.task))
        host = linears * LINEAR_SECONDS + slices * SLICE_SECONDS
        moved = steps * self.parameters(trial) * OPTIMIZER_BYTES
        return self.with_host(computing, host) + moved / (self.machine.bandwidth * 1e9)

    def training_operations(self, trial: TrialSpec, tokens: int) -> float:
        """Operations of a trial that trains on ``tokens`` tokens, replayed ones included."""
        config, rows = self.inputs.config.train, self.inputs.rows[trial.task]
        own, keys = self.inputs.own_tokens(trial), self.mean_keys(trial.task)
        labels = tokens * rows.num_label_tokens / rows.num_tokens
        passes = (3 if trial.is_full else 2) + config.gradient_checkpointing
        operations = passes * self.forward(tokens, labels, keys)
        if not trial.is_full:
            operations += tokens * 6 * self.parameters(trial)
            operations += tokens * 4 * self.attention * keys  # both products' gradients
        if trial.kl_to_base:  # the base's own forward pass
            replayed = tokens - own if trial.replay else own
            operations += self.forward(replayed, labels * replayed / tokens, keys)
        return operations

    def mean_keys(self, task: str) -> float:
        counts: RowCounts = self.inputs.grouping.counts[task]
        squares = counts.mean_tokens**2 + counts.tokens_deviation**2
        return squares / (2 * counts.mean_tokens)

    def parameters(self, trial: TrialSpec) -> int:
        """That it trains and stores."""
        if trial.given is not None:
            return 0
        base = self.inputs.base
        return get_method(trial.method).trainable_parameters(trial, base.shapes, base.folder)

    # --- scoring --------------------------------------------------------------------------------

    def scoring(self, items: Sequence[ItemTokens]) -> float:
        """Seconds in which one model is scored on items, if prompts share no beginning."""
        return self.machine.pace * self.scoring_passes(items) if items else 0.0

    def scoring_passes(self, items: Sequence[ItemTokens]) -> float:
        read, predicted, written, gold, _ = (sum(column) for column in zip(*items, strict=True))
        settings = self.inputs.config.evaluate
        tokens, budget = read + written + gold, settings.batch_tokens
        squares = sum((item.read + item.written) ** 2 + item.gold**2 for item in items)
        keys = squares / (2 * tokens)
        read += gold
        linears = len(self.shapes.linear_shapes) * LINEAR_SECONDS / 3
        touches = TOUCHES / 3  # forward alone
        reading = self.with_host(
            self.passes(self.forward(read, predicted, keys), read, keys, touches),
            linears * read / budget,
        )
        if not written:
            return reading
        # A step of decoding reads all weights, for as many sequences as the cache holds.
        longest = max(item.read for item in items if item.written) + settings.max_new_tokens
        most_cached = most_cached_tokens(self.inputs.grouping.model.base, budget)
        together = min(len(items), most_cached / (longest + GROWTH))
        steps = written / max(1.0, together)
        weights = self.shapes.num_parameters * self.inputs.dtype.itemsize
        reads = steps * weights / (self.machine.bandwidth * 1e9)
        writing = self.products(self.forward(written, written, keys)) + reads
        return reading + self.with_host(writing, steps * linears)

    @cached_property
    def compared(self) -> dict[str, tuple[int, int]]:
        """The matrices of a fully fine-tuned model that are compared with the base's."""
        return compared_matrices(self.shapes, self.inputs.trials)
