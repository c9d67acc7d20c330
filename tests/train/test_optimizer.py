"""Schedules, AdamW and clipping against transformers, PyTorch and hand numbers."""

import math

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from rankscope.train.step import clip_gradients, new_optimizer, rate_groups, set_rate
from rankscope.train.step_schedule import learning_rate

STEPS = 40


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.26, 0.99])
def test_rates_are_those_of_transformers_schedules(schedule: str, fraction: float) -> None:
    warmup = math.ceil(fraction * STEPS)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    makers = {
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, STEPS),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, STEPS),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
    }
    scheduler = makers[schedule]()
    assert learning_rate(1.0, 0, 1, schedule, 0.0) == 1.0  # type: ignore[arg-type]
    for step in range(STEPS):
        found = learning_rate(2e-3, step, STEPS, schedule, fraction)  # type: ignore[arg-type]
        assert found == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_many_steps_are_plain_unfused_adamw() -> None:
    ours, plain = (nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    fused = new_optimizer([ours], weight_decay=0.1)
    reference = torch.optim.AdamW([plain], lr=3e-3, weight_decay=0.1, fused=False, foreach=False)
    for step in range(20):
        fused.param_groups[0]["lr"] = 3e-3
        for p in (ours, plain):
            p.grad = torch.cos(torch.arange(6) * (step + 1.0))
        fused.step()
        reference.step()
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


def test_clipping_acts_on_the_norm_over_all_parameters() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 10.0) == 5.0
    assert (a.grad.item(), b.grad.item()) == (3.0, 4.0)
    assert clip_gradients([a, b], 1.0) == 5.0
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-5)
    for wrong in (math.nan, math.inf):
        a.grad.fill_(wrong)
        assert not math.isfinite(clip_gradients([a, b], 1.0))


def test_groups_have_rates_of_their_own() -> None:
    """LoRA+: B at four times the rate of A. After one step of Adam each has gone its own rate."""
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = new_optimizer(rate_groups([a, b], {b}, 4.0), weight_decay=0.0)
    set_rate(optimizer, 0.01)
    a.grad, b.grad = torch.full((3,), 2.0), torch.full((3,), -5.0)
    optimizer.step()
    assert a.tolist() == pytest.approx([0.99] * 3, rel=1e-6)
    assert b.tolist() == pytest.approx([1.04] * 3, rel=1e-6)
