"""Laws of the order of rows: the rows of a seed in every step."""

import math
from itertools import chain

import pytest

from rankscope.data.sampler import RowSampler

SIZES = [(1, 1, 1), (5, 2, 2), (8, 2, 4), (17, 2, 4), (100, 3, 2)]


@pytest.mark.parametrize(("rows", "batch", "accumulation"), SIZES)
def test_every_row_once_per_epoch_and_only_the_last_step_is_short(
    rows: int, batch: int, accumulation: int
) -> None:
    order = RowSampler(rows, batch, accumulation, seed=3)
    assert order.steps_per_epoch == math.ceil(rows / (batch * accumulation))
    for epoch in range(3):
        first = epoch * order.steps_per_epoch
        steps = [order.step(first + k) for k in range(order.steps_per_epoch)]
        flat = [row for step in steps for micro in step for row in micro]
        assert sorted(flat) == list(range(rows))
        micro_sizes = [len(micro) for step in steps for micro in step]
        assert all(size == batch for size in micro_sizes[:-1])
        assert 1 <= micro_sizes[-1] <= batch
        assert all(len(step) == accumulation for step in steps[:-1])


def test_micro_batches_do_not_move_the_order() -> None:
    """Rows of a step do not depend on how it is cut: a batch of 8 or 4 times 2."""
    whole, cut = RowSampler(50, 8, 1, seed=1), RowSampler(50, 2, 4, seed=1)
    for step in range(20):
        assert list(chain(*whole.step(step))) == list(chain(*cut.step(step)))


def test_a_step_is_a_function_of_seed_and_index_alone() -> None:
    straight = RowSampler(37, 2, 4, seed=7)
    walked = [straight.step(k) for k in range(15)]
    jumping = RowSampler(37, 2, 4, seed=7)
    assert [jumping.step(k) for k in reversed(range(15))] == walked[::-1]
    assert RowSampler(37, 2, 4, seed=8).step(0) != walked[0]


def test_the_order_of_a_seed_never_changes() -> None:
    # Origin: random.Random("0/0").shuffle of range(6), CPython 3.11; a change would silently
    # change every stored study.
    assert RowSampler(6, 2, 1, seed=0).epoch(0) == [0, 5, 1, 4, 3, 2]
