"""Laws of one adapter, alone and beside others in a multi_lora."""

import math
from typing import Any

import pytest
import torch
from tiny_models import assert_close, base_of, delta, tiny_llama
from torch import Tensor, nn
from toy_training import ATTENTION, trial as toy_trial

from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import (
    AdapterSpan,
    MultiLora,
    MultiLoraLinear,
    linear_layers,
    target_linears,
)
from rankscope.records import TrialSpec

ROWS = [[5, 9, 31, 7], [250, 3], [77, 78, 79, 80, 81, 82, 83]]


def trial(adapter_name: str = "a", **changes: Any) -> TrialSpec:
    return toy_trial(adapter_name, **{"alpha": 6.0} | changes)


def filled(base: Base, spec: TrialSpec, size: float = 0.2) -> Adapter:
    """An attached adapter whose B is random."""
    adapter = new_adapter(base.model, spec)
    generator = torch.Generator().manual_seed(spec.seed)
    for b in adapter.b.values():
        b.data.copy_(size * torch.randn(b.shape, generator=generator))
    base.multi_lora.attach(adapter)
    return adapter


def logits(base: Base, *adapter_names: str | None) -> list[Tensor]:
    """All rows under each adapter, in one pass; by adapter (tokens, vocabulary)."""
    rows = [Row(ids, range(len(ids)), name) for name in adapter_names for ids in ROWS]
    with torch.inference_mode():
        return list(base.logits(RowBatch.of(rows, base.device)).chunk(len(adapter_names)))


def relative_gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# --- what an adapter is ---


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("targets", [ATTENTION, ("up_proj", "down_proj", "lm_head")])
def test_weights_with_s_b_a_added_give_the_adapters_logits(
    method: str, targets: tuple[str, ...]
) -> None:
    base = base_of(tiny_llama())
    adapter = filled(base, trial(targets=targets, method=method))
    found, bare = logits(base, "a", None)
    merged = tiny_llama()
    for name, layer in linear_layers(merged).items():
        if name in adapter.a:
            layer.weight.data += delta(adapter, name, layer.weight)
    (expected,) = logits(base_of(merged), None)
    assert_close(found, expected, 1e-5)
    assert relative_gap(bare, expected) > 0.05


def test_targets_are_found_behind_attached_adapters_too() -> None:
    base = base_of(tiny_llama())
    before = target_linears(base.model, ATTENTION)
    filled(base, trial())
    after = target_linears(base.model, ATTENTION)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_a_starts_uniform_within_one_over_root_in_and_b_at_zero() -> None:
    """Kaiming-uniform with a = sqrt(5), PEFT's default: bound sqrt(6 / (6 in)) = 1 / sqrt(in)."""
    adapter = new_adapter(tiny_llama(), trial(rank=64))
    for name, parameter in adapter.a.items():
        a = parameter.detach()
        bound = 1 / math.sqrt(a.shape[1])
        assert float(a.abs().max()) <= bound
        # Variance of the uniform distribution; 4,096 draws: standard error of it 1.4 %.
        assert float(a.var()) == pytest.approx(bound**2 / 3, rel=0.07)
        assert not adapter.b[name].any()


# --- beside others ---


def test_in_a_group_each_adapter_gives_what_it_gives_alone() -> None:
    specs = {
        "a": trial("a", rank=1),
        "b": trial("b", rank=7, targets=("q_proj", "down_proj"), seed=1),
        "c": trial("c", rank=16, targets=("up_proj",), method="rslora", seed=2),
    }
    base = base_of(tiny_llama())
    for spec in specs.values():
        filled(base, spec)
    names = ["b", None, "a", "c", "b"]
    for name, found in zip(names, logits(base, *names), strict=True):
        single = base_of(tiny_llama())
        if name is not None:
            filled(single, specs[name])
        assert_close(found, logits(single, name)[0], 1e-5)


def test_an_unknown_slot_is_an_error_and_not_the_base() -> None:
    base = base_of(tiny_llama())
    filled(base, trial("a"))
    with pytest.raises(KeyError, match="no adapter is attached under the name 'b'"):
        logits(base, "a", "b")
    base.multi_lora.detach("a")
    with pytest.raises(KeyError, match="'a'"):
        logits(base, "a")


def test_after_detaching_the_base_is_as_it_was() -> None:
    base = base_of(tiny_llama())
    (before,) = logits(base, None)
    filled(base, trial("a"))
    base.multi_lora.detach("a")
    assert torch.equal(logits(base, None)[0], before)
    base.multi_lora.clear()
    assert not any(isinstance(m, MultiLoraLinear) for m in base.model.modules())
    assert [name for name, _ in base.model.named_parameters()] == [
        name for name, _ in tiny_llama().named_parameters()
    ]
    assert torch.equal(logits(base, None)[0], before)


# --- dropout ---


def test_a_mask_keeps_the_share_it_should_and_depends_on_seed_module_and_step() -> None:
    adapter = new_adapter(tiny_llama(), trial(dropout=0.25))
    first, second = list(adapter.a)[:2]
    shape, cpu = torch.Size((400, 64)), torch.device("cpu")
    mask = adapter.mask(first, shape, cpu)
    # 25,600 draws: standard error sqrt(.25 x .75 / 25,600) = .0027; five of them.
    assert float(mask.float().mean()) == pytest.approx(0.75, abs=0.0135)
    assert not torch.equal(adapter.mask(second, shape, cpu), mask)
    assert not torch.equal(adapter.mask(first, shape, cpu), mask)  # the step's next tokens
    adapter.begin_step(0)
    assert torch.equal(adapter.mask(first, shape, cpu), mask)
    adapter.begin_step(1)
    assert not torch.equal(adapter.mask(first, shape, cpu), mask)
    other = new_adapter(tiny_llama(), trial(dropout=0.25, seed=1))
    assert not torch.equal(other.mask(first, shape, cpu), mask)


def test_dropout_acts_only_in_training() -> None:
    base = base_of(tiny_llama())
    filled(base, trial(dropout=0.25))
    (first,), (second,) = logits(base, "a"), logits(base, "a")
    assert torch.equal(first, second)
    base.multi_lora.training = True
    assert not torch.equal(logits(base, "a")[0], first)


# --- the written backward pass ---


def slow_delta(layer: nn.Linear, adapter: Adapter, name: str, x: Tensor) -> Tensor:
    """g * (W + s (B A - B0 A0)) x + bias as the formula says it, for autograd."""
    weight = layer.weight.detach()
    tuned = weight + adapter.scaling * (adapter.b[name] @ adapter.a[name])
    if name in adapter.initial_factors:
        a0, b0 = adapter.initial_factors[name]
        tuned = tuned - adapter.scaling * (b0 @ a0)
    y = x @ tuned.T
    if name in adapter.magnitude:
        y = y * (adapter.magnitude[name] / tuned.detach().norm(dim=1))
    return y if layer.bias is None else y + layer.bias


@pytest.mark.parametrize("with_gain", [False, True])
@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_autograds(with_gain: bool, with_start: bool, with_bias: bool) -> None:
    """Float64, so that only a wrong formula can differ; two adapters and a bare stretch."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    linear = nn.Linear(6, 5, bias=with_bias, dtype=torch.float64).requires_grad_(False)
    linear.weight.copy_(draw(5, 6))
    model = nn.Sequential(linear)
    multi_lora = MultiLora(model)
    for adapter_name, rank in (("a", 2), ("b", 3)):
        adapter = Adapter(
            name=adapter_name, rank=rank, alpha=3.0, scaling=1.5, targets=("0",),
            method="dora" if with_gain else "lora", a={"0": nn.Parameter(draw(rank, 6))},
            b={"0": nn.Parameter(draw(5, rank))},
            magnitude={"0": nn.Parameter(draw(5).abs() + 1)} if with_gain else {},
            initial_factors={"0": (draw(rank, 6), draw(5, rank))} if with_start else {},
        )  # fmt: skip
        multi_lora.attach(adapter)
    spans = AdapterSpan("a", 0, 4), AdapterSpan(None, 4, 6), AdapterSpan("b", 6, 9)
    x, target = draw(1, 9, 6).requires_grad_(), draw(1, 9, 5)
    adapters = list(multi_lora.adapters.values())
    parameters = [p for adapter in adapters for p in adapter.parameters()]
    with multi_lora.routing(spans, ()):
        y = model(x)
    found = torch.autograd.grad((y * target).sum(), [x, *parameters])
    slow = torch.cat(
        [
            slow_delta(linear, adapters[0], "0", x[:, :4]),
            x[:, 4:6] @ linear.weight.T + (linear.bias if with_bias else 0),
            slow_delta(linear, adapters[1], "0", x[:, 6:]),
        ],
        dim=1,
    )
    expected = torch.autograd.grad((slow * target).sum(), [x, *parameters])
    assert_close(y, slow, 1e-6)  # the gain's norm is float32
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-6)
