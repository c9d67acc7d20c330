"""Time of a study's parts on a machine, from counted operations and bytes.

Products of matrices are counted: 2 operations per weight and token forward, as many backward for
activations, and as many again for trained weights. Embeddings are looked up and cost none; the
output layer sees only the positions with a label. Attention adds 4 per head dimension, token and
key. All of them run at the pace of a machine (``machines.py``). Weights and checkpoints are written
to a disk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rankscope.device import dtype_name
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.models.kernels import all_kernels
from rankscope.models.methods import get_method
from rankscope.models.methods.method import Method
from rankscope.models.parameters import (
    FLOAT32_BYTES,
    Architecture,
    compared_matrices,
    target_shapes,
)
from rankscope.records import TrialSpec
from rankscope.run.groups import Group
from rankscope.run.prepared import PreparedStudy
from rankscope.train.checkpoint import LEAST_PAUSE
from rankscope.train.memory import RowCounts, saved_values
from rankscope.train.objectives.objective import objective_of
from rankscope.train.step_schedule import rows_per_step, trial_protocol

if TYPE_CHECKING:
    from rankscope.run.machines import Machine

START_SECONDS = 5.5  # Imports and tokenizer, until a process trains: measured on two cores
DISK_RATE = 0.5e9  # Bytes that are hashed and written, or read, per second; assumed


@dataclass(frozen=True)
class CostModel:
    """Estimates the seconds of a study's parts on a machine."""

    inputs: PreparedStudy
    machine: "Machine"
    part: Architecture | None = None  # The part that is counted in place of the whole base

    @property
    def shapes(self) -> Architecture:
        return self.part or self.inputs.base.shapes

    @cached_property
    def body(self) -> int:
        """Number of weights in all linear layers but the output layer; all weights of GPT-2, which
        has no linear layers."""
        linear = sum(math.prod(s) for s in self.shapes.linear_shapes.values()) - self.head
        return linear or self.shapes.num_parameters

    @cached_property
    def head(self) -> int:
        return math.prod(self.shapes.linear_shapes[self.shapes.output_layer or ""])

    @cached_property
    def attention(self) -> int:
        """Head dimensions of all layers together: inputs of the output projections."""
        shapes = self.shapes.linear_shapes.items()
        return sum(shape[1] for name, shape in shapes if name.endswith(".o_proj"))

    @cached_property
    def compared(self) -> dict[str, tuple[int, int]]:
        """The matrices of a fully fine-tuned model that are compared with the base's."""
        return compared_matrices(self.shapes, self.inputs.trials)

    def forward(self, tokens: float, predicted: float, keys: float) -> float:
        """Count the operations of a forward pass; each token attends to ``keys`` keys on
        average."""
        return tokens * (2 * self.body + 4 * self.attention * keys) + predicted * 2 * self.head

    def computing(self, operations: float) -> float:
        rate = self.machine.rates[dtype_name(self.inputs.dtype)] * 1e12
        return operations / (rate * self.machine.share)

    def start(self) -> float:
        """Estimate the seconds until a new process trains.

        The process imports its libraries, hashes and loads the base, and makes its kernels as if no
        cache had them.
        """
        making = all_kernels()[self.inputs.config.train.kernels].start_seconds
        base_bytes = self.shapes.num_parameters * self.inputs.dtype.itemsize
        return START_SECONDS + base_bytes / DISK_RATE + making

    # --- training -------------------------------------------------------------------------------

    def training(self, trial: TrialSpec) -> float:
        """Estimate the seconds of training a trial, whose devices share the work evenly."""
        if not trial.trains:
            return 0.0
        operations = self.training_operations(trial, self.inputs.training_tokens(trial))
        seconds = self.computing(operations) + self._writing(trial)
        return seconds / self.inputs.config.train.devices

    def _writing(self, trial: TrialSpec) -> float:
        """Estimate the seconds of the answers that it writes to learn from, each at its full
        length."""
        protocol = trial_protocol(trial, self.inputs.config.train)
        objective, rows = objective_of(protocol.objective), self.inputs.data.rows_of(trial).rows
        if not objective.max_new_tokens:
            return 0.0
        num = rows_per_step(len(rows), protocol)
        read = round(sum(len(row.prompt_ids) for row in rows) / len(rows))
        answer = ItemTokens(read, 1, objective.max_new_tokens)
        return self.inputs.num_steps(trial) * self.scoring([answer] * num * objective.rows_each)

    def training_operations(self, trial: TrialSpec, tokens: int) -> float:
        """Count the operations of a trial that trains on ``tokens`` tokens, replayed ones
        included."""
        config, rows = self.inputs.config.train, self.inputs.data.rows_of(trial)
        own, keys = self.inputs.own_tokens(trial), self.mean_keys(trial.task)
        labels = tokens * rows.num_label_tokens / rows.num_tokens
        passes = (3 if trial.is_full else 2) + config.gradient_checkpointing
        operations = passes * self.forward(tokens, labels, keys)
        if not trial.is_full:
            operations += tokens * 6 * self.parameters(trial)
            operations += tokens * 4 * self.attention * keys  # both products' gradients
        if get_method(trial.method).has_magnitude:  # W0 once more, both ways
            changed = target_shapes(self.shapes, trial.targets).values()
            operations += tokens * 4 * sum(map(math.prod, changed))
        if trial.kl_to_base:  # the base's own forward pass
            replayed = tokens - own if trial.replay else own
            operations += self.forward(replayed, labels * replayed / tokens, keys)
        return operations

    def operations_per_token(self) -> float:
        """Count the operations per token in training the first adapter; without one, the first
        model."""
        trained = sorted((t for t in self.inputs.trials if t.trains), key=lambda t: t.is_full)
        if not trained:  # the study scores alone
            return self.forward(1, 0, 0)
        tokens = self.inputs.training_tokens(trained[0])
        return self.training_operations(trained[0], tokens) / tokens

    def mean_keys(self, task: str) -> float:
        counts: RowCounts = self.inputs.grouping.counts[task]
        squares = counts.mean_tokens**2 + counts.tokens_deviation**2
        return squares / (2 * counts.mean_tokens)

    def parameters(self, trial: TrialSpec) -> int:
        """Count the parameters that a trial trains and stores."""
        if not trial.trains:
            return 0
        base = self.inputs.base
        return Method.of(trial.method).trainable_parameters(trial, base)

    # --- the disk -------------------------------------------------------------------------------

    def checkpoint_bytes(self, group: Group) -> int:
        return FLOAT32_BYTES * sum(saved_values(t) * self.parameters(t) for t in group)

    def num_checkpoints(self, group: Group) -> int:
        """Count how often a group is stored while it trains.

        It is stored after each ``checkpoint_seconds`` of training, or after ten times the time of
        one save if that is longer.
        """
        seconds = sum(map(self.training, group))
        steps = max(map(self.inputs.num_steps, group))
        pause = LEAST_PAUSE * self.checkpoint_bytes(group) / DISK_RATE
        due = int(seconds / max(self.inputs.config.train.checkpoint_seconds, pause))
        return min(due, steps)

    def storing(self, group: Group) -> float:
        """Estimate the seconds of writing a group's files, hashed, and of reading its weights
        twice.

        The files are checkpoints, weights and snapshots. Weights are read for scores, and again for
        an analysis or for the test items of a finalist.
        """
        checkpoints = self.num_checkpoints(group) * self.checkpoint_bytes(group)
        read = sum(2 * FLOAT32_BYTES * self.parameters(trial) for trial in group)
        return (checkpoints + sum(map(self.stored_bytes, group)) + read) / DISK_RATE

    def stored_bytes(self, trial: TrialSpec) -> int:
        """Count the bytes of a trial's weights and snapshots."""
        return FLOAT32_BYTES * self.parameters(trial) * (1 + len(self.inputs.snapshot_steps(trial)))

    # --- scoring --------------------------------------------------------------------------------

    def scoring(self, items: Sequence[ItemTokens]) -> float:
        """Estimate the seconds of scoring one model on items, if prompts share no beginning."""
        if not items:
            return 0.0
        sums = (sum(column) for column in zip(*items, strict=True))
        read, predicted, written, gold, _, again = sums
        squares = sum((item.read + item.written) ** 2 + item.gold**2 for item in items)
        keys = squares / (2 * (read + written + gold))
        num_read = read + gold + (0 if self.inputs.grouping.model.packs else again)
        return self.computing(self.forward(num_read + written, predicted + written, keys))
