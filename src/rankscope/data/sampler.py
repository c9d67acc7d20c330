"""The order in which a trial sees its rows: a pure function of (rows, protocol, seed).

Trials with equal seed and protocol see the same rows in the same steps, whatever their method. Arms
are thereby compared on the same data in the same order, and resuming at step k needs no stored
state.
"""

import math
import random
from functools import lru_cache


@lru_cache(maxsize=256)  # training goes in order, and the trials of a seed share theirs
def _permutation(size: int, purpose: str) -> tuple[int, ...]:
    order = list(range(size))
    random.Random(purpose).shuffle(order)
    return tuple(order)


class RowSampler:
    """Row indices of every optimizer step of one trial.

    Each epoch is a new permutation that contains every row once. As in Hugging Face's Trainer, the
    last step of an epoch may be short: a step never spans two epochs.

    Example, 5 rows, batch 2, accumulation 2: step 0 is ``[[3, 0], [4, 1]]``, step 1 is ``[[2]]``,
    step 2 starts the second epoch.
    """

    def __init__(
        self, num_rows: int, batch_size: int, gradient_accumulation: int, seed: int
    ) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.rows_per_step = batch_size * gradient_accumulation
        self.seed = seed
        self.steps_per_epoch = math.ceil(num_rows / self.rows_per_step)

    def epoch(self, index: int) -> list[int]:
        """Return the permutation of the rows in epoch ``index``, from 0."""
        return list(_permutation(self.num_rows, f"{self.seed}/{index}"))

    def step(self, index: int) -> list[list[int]]:
        """Return the micro-batches (row indices) of optimizer step ``index``, from 0."""
        epoch, position = divmod(index, self.steps_per_epoch)
        start = position * self.rows_per_step
        rows = self.epoch(epoch)[start : start + self.rows_per_step]
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]


class ReplaySampler:
    """Indices of the general rows added to each optimizer step of a trial.

    After any number of steps, general rows are the ``share`` of all rows seen, up to the rounding
    of one row. They come in a new permutation each time all were used. The indices are a pure
    function of the trial's sampler, the number of general rows and the share, so resuming needs no
    state.
    """

    def __init__(self, trial_rows: RowSampler, num_rows: int, share: float) -> None:
        self.trial_rows = trial_rows
        self.num_rows = num_rows
        self.share = share

    def rows_before(self, index: int) -> int:
        """Count the general rows in the steps before step ``index``."""
        epoch, position = divmod(index, self.trial_rows.steps_per_epoch)
        in_epoch = min(position * self.trial_rows.rows_per_step, self.trial_rows.num_rows)
        trial_rows_seen = epoch * self.trial_rows.num_rows + in_epoch
        return math.floor(trial_rows_seen * self.share / (1 - self.share) + 0.5)

    def step(self, index: int) -> list[int]:
        """Return the indices of the general rows of optimizer step ``index``, from 0."""
        places = range(self.rows_before(index), self.rows_before(index + 1))
        purpose, indices = f"replay/{self.trial_rows.seed}", []
        for index, position in (divmod(place, self.num_rows) for place in places):
            indices.append(_permutation(self.num_rows, f"{purpose}/{index}")[position])
        return indices
