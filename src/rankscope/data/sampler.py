"""The order in which a trial sees its rows: a pure function of (rows, protocol, seed).

Trials with equal seed and protocol see the same rows in the same steps whatever their method, so
arms are compared on the same data in the same order; and resuming at step k needs no stored state.
"""

import math
import random


class RowSampler:
    """Row indices of every optimizer step of one trial.

    Each epoch is a fresh permutation in which every row stands once. As in Hugging Face's Trainer,
    the last step of an epoch may be short: steps do not reach across epochs.

    Example, 5 rows, batch 2, accumulation 2: step 0 is ``[[3, 0], [4, 1]]``, step 1 is ``[[2]]``,
    step 2 opens the second epoch.
    """

    def __init__(
        self, num_rows: int, batch_size: int, gradient_accumulation: int, seed: int
    ) -> None:
        if min(num_rows, batch_size, gradient_accumulation) < 1:
            raise ValueError(
                f"num_rows {num_rows}, batch_size {batch_size} and gradient_accumulation "
                f"{gradient_accumulation} must be at least 1"
            )
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.rows_per_step = batch_size * gradient_accumulation
        self.seed = seed
        self.steps_per_epoch = math.ceil(num_rows / self.rows_per_step)
        # Only the last permutation asked for is kept: training walks through epochs in order.
        self._epoch = -1
        self._permutation: list[int] = []

    def num_steps(self, epochs: float, max_steps: int | None = None) -> int:
        """Optimizer steps of the whole training; ``max_steps`` wins where both are given."""
        return max_steps if max_steps is not None else math.ceil(epochs * self.steps_per_epoch)

    def epoch(self, index: int) -> list[int]:
        """The permutation of the rows in epoch ``index``, from 0."""
        if index != self._epoch:
            order = list(range(self.num_rows))
            random.Random(f"{self.seed}/{index}").shuffle(order)
            self._epoch, self._permutation = index, order
        return self._permutation

    def step(self, index: int) -> list[list[int]]:
        """Micro-batches (row indices) of optimizer step ``index``, from 0."""
        epoch, position = divmod(index, self.steps_per_epoch)
        start = position * self.rows_per_step
        rows = self.epoch(epoch)[start : start + self.rows_per_step]
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]


class ReplaySampler:
    """Which general rows stand beside a trial's own in every optimizer step.

    After any number of steps the general rows are the ``share`` of all rows seen, up to the
    rounding of one row; they come in a fresh permutation each time they are through. A pure
    function of (own order, number of general rows, share), so resuming needs no state either.
    """

    def __init__(self, own: RowSampler, num_rows: int, share: float) -> None:
        if num_rows < 1 or not 0 < share < 1:
            raise ValueError(
                f"num_rows {num_rows} and share {share}: expected rows, and 0 < share < 1"
            )
        self.own = own
        self.num_rows = num_rows
        self.share = share
        self._pass = -1
        self._permutation: list[int] = []

    def through(self, index: int) -> int:
        """General rows of the steps before step ``index``."""
        epoch, position = divmod(index, self.own.steps_per_epoch)
        in_epoch = min(position * self.own.rows_per_step, self.own.num_rows)
        seen = epoch * self.own.num_rows + in_epoch
        return math.floor(seen * self.share / (1 - self.share) + 0.5)

    def step(self, index: int) -> list[int]:
        """Indices of the general rows of optimizer step ``index``, from 0."""
        return [self.row(place) for place in range(self.through(index), self.through(index + 1))]

    def row(self, place: int) -> int:
        """The row at ``place`` of the endless sequence of general rows."""
        number, position = divmod(place, self.num_rows)
        if number != self._pass:
            order = list(range(self.num_rows))
            random.Random(f"replay/{self.own.seed}/{number}").shuffle(order)
            self._pass, self._permutation = number, order
        return self._permutation[position]
