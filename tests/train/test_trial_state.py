"""One trial in training: when finite numbers are divergence, its rates, AdamW and clipping."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tiny_models import base_of, tiny_llama
from torch import nn
from toy_training import full_trial, peft_trial, protocol, toy_rows, trial
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from rankscope.models.base import Base
from rankscope.models.methods import get_method
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.multi_lora import linear_layers
from rankscope.records import TrialSpec
from rankscope.train.loop import train_group
from rankscope.train.step import clip_gradients, new_optimizer, rate_groups, set_rate
from rankscope.train.step_schedule import learning_rate
from rankscope.train.trial_state import (
    TrialState,
    _excessive_loss as excessive_loss,
    _excessive_update as excessive_update,
    is_update_checked,
)

ROWS = toy_rows()
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")


def test_an_update_is_excessive_if_bfloat16_loses_the_base_beside_it() -> None:
    assert [float(torch.tensor(n).bfloat16()) for n in (256.99, 257.01)] == [256.0, 258.0]
    assert excessive_update(256.0) is None
    reason = "257 times as large as the weights of the base (limit 256)"
    assert reason in str(excessive_update(257.0))
    for broken in (math.inf, math.nan):
        assert excessive_update(broken) is not None
    assert [n for n in range(1, 21) if is_update_checked(n, 20)] == [1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize(
    ("losses", "num_steps", "is_excessive"),
    [
        ([2.0, *[5.1] * 10], 40, True),
        # Not 3 nats above the first step, a shorter stretch, one good step, a spike.
        ([2.0, *[5.0] * 10], 40, False),
        ([2.0, *[5.1] * 9], 40, False),
        ([2.0, *[5.1] * 9, 4.9], 40, False),
        ([2.0, *[9.0] * 20], 1000, False),  # a tenth of the steps are 100
        ([2.0, *[9.0] * 100], 1000, True),
        # A base that starts at 4 nats: twice that.
        ([4.0, *[8.0] * 10], 40, False),
        ([4.0, *[8.1] * 10], 40, True),
        # A small step of easy rows, and ordinary ones after it.
        ([0.1, *[3.0] * 30], 40, False),
        ([6.6, 6.2, 9.2, 5.4], 4, False),
    ],
)
def test_a_loss_is_excessive_if_it_stays_far_above_its_start(
    losses: list[float], num_steps: int, is_excessive: bool
) -> None:
    assert (excessive_loss(losses, num_steps) is not None) == is_excessive


# --- the norms


def trained(spec: TrialSpec, max_steps: int, base: Base | None = None) -> tuple[Base, TrialState]:
    base = base or base_of(tiny_llama())
    settings = protocol(warmup_fraction=0, max_steps=max_steps)
    return base, train_group(base, [spec], ROWS, settings).states[0]


def norm(parts: Iterable[torch.Tensor]) -> float:
    return float(torch.cat([part.detach().flatten() for part in parts]).norm())


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa"])
def test_a_relative_update_is_the_dense_ones(method: str) -> None:
    base, state = trained(trial(method=method), 3)
    adapter, linears = state.adapter, linear_layers(base.model)
    assert adapter is not None
    method_of = LoraMethod.of(method)
    weights = {name: linears[name].weight.detach() for name in adapter.a}
    deltas = (method_of.delta(adapter, name, weight) for name, weight in weights.items())
    changed = norm(deltas) / norm(weights.values())
    assert 0 < changed < 1
    assert state.relative_update() == pytest.approx(changed, rel=1e-4)


def test_a_relative_update_of_full_fine_tuning_is_over_all_parameters() -> None:
    """Also on a base that carried adapters before."""
    base, _ = trained(trial(), 1)
    base.multi_lora.clear()
    _, state = trained(full_trial(), 3, base)
    before = list(base.model.parameters())
    moved = [after - old for after, old in zip(state.parameters, before, strict=True)]
    assert state.relative_update() == pytest.approx(norm(moved) / norm(before), rel=1e-5)


def test_a_relative_update_of_pefts_lora_is_that_of_ours() -> None:
    spec = peft_trial(peft_type="LORA", r=4, lora_alpha=8)
    base, state = trained(spec, 3)
    tuner, linears = state.tuner, base.linears()
    assert tuner is not None
    a, b = (
        {n: p.detach() for n, p in tuner.tuned.model.named_parameters() if f".lora_{part}." in n}
        for part in "AB"
    )
    names = [name.partition(".lora_A")[0] for name in a]
    moved = [
        2 * factor_b @ factor_a for factor_a, factor_b in zip(a.values(), b.values(), strict=True)
    ]
    expected = norm(moved) / norm(linears[name].weight for name in names)
    assert state.relative_update() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "LN_TUNING"}, {"peft_type": "LORA", "r": 4, "init_lora_weights": "olora"},
        {"peft_type": "IA3", "feedforward_modules": ["o_proj"]}, {"peft_type": "VERA", "r": 16},
    ],
)  # fmt: skip
def test_a_method_that_did_nothing_yet_has_no_update(settings: dict[str, Any]) -> None:
    base = base_of(tiny_llama())
    spec = peft_trial(**settings)
    method = get_method(spec.method)
    _, tuner = method.prepare(base, spec, None, 8)  # type: ignore[arg-type]  # PEFT reads no rows
    assert method.relative_update(tuner, base) == pytest.approx(0, abs=1e-6)


# --- in the loop

WILD = [
    trial(), trial(method="dora"), trial(method="pissa"), full_trial(),
    peft_trial(peft_type="LORA", r=4), peft_trial(peft_type="LN_TUNING"),
]  # fmt: skip


@pytest.mark.parametrize("spec", WILD, ids=lambda spec: spec.arm_label)
def test_a_finite_run_at_an_absurd_rate_diverges(spec: TrialSpec) -> None:
    """Every loss is finite. It leaves at the first check, and a small rate is fine."""
    _, wild = trained(spec.model_copy(update={"lr": 1e6}), 4)
    assert wild.failure_status == "diverged"
    assert "after step 1 of 4 the update of the weights is" in str(wild.failure)
    assert all(math.isfinite(point.loss) for point in wild.losses)
    _, sound = trained(spec.model_copy(update={"lr": 1e-3}), 4)
    assert sound.failure is None


def test_a_trial_that_failed_comes_back_as_failed() -> None:
    """Not as diverged, which is what most that leave a group did."""
    (_, left), (_, again) = trained(trial(), 1), trained(trial(), 1)
    left.failure, left.failure_status = "nothing to learn from", "failed"
    again.restore(left.tensors(), left.counters())
    assert (again.failure, again.failure_status) == (left.failure, "failed")


# --- schedules, AdamW and clipping against transformers, PyTorch and hand numbers

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
