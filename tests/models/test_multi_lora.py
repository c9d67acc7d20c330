"""Laws of one adapter, alone and beside others in a multi_lora."""

import math
from typing import Any

import pytest
import torch
from tiny_models import assert_close, base_of, tiny_llama
from torch import Tensor, nn
from toy_training import ATTENTION
from toy_training import trial as toy_trial

from rankscope.errors import UserError
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter, delta_weight
from rankscope.models.multi_lora import (
    AdapterSpan,
    MultiLora,
    MultiLoraLinear,
    linear_layers,
    target_linears,
    unwrap,
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
    """All rows under each adapter_name, in one pass; per adapter_name (tokens, vocabulary)."""
    rows = [
        Row(ids, range(len(ids)), adapter_name) for adapter_name in adapter_names for ids in ROWS
    ]
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
            layer.weight.data += delta_weight(adapter, name)
    (expected,) = logits(base_of(merged), None)
    assert_close(found, expected, 1e-5)
    assert relative_gap(bare, expected) > 0.05


def test_scaling_is_alpha_over_r_and_over_root_r_for_rslora() -> None:
    model = tiny_llama()
    assert new_adapter(model, trial(rank=4)).scaling == 6.0 / 4
    assert new_adapter(model, trial(rank=4, method="rslora")).scaling == 6.0 / 2
    adapter = new_adapter(model, trial(rank=1, targets=("model.layers.0.self_attn.q_proj",)))
    (name,) = adapter.a
    adapter.a[name].data.fill_(1.0)
    adapter.b[name].data.fill_(0.5)
    assert torch.equal(delta_weight(adapter, name), torch.full((64, 64), 3.0))


def test_parameters_are_a_and_b_of_every_module_in_float32() -> None:
    adapter = new_adapter(tiny_llama().bfloat16(), trial(rank=2))
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    # q, o: (64 + 64) r; k, v: (64 + 32) r; two layers.
    assert sum(p.numel() for p in adapter.parameters()) == 2 * 2 * 2 * (128 + 96)
    assert all(p.requires_grad for p in adapter.parameters())


# --- targets ---


def test_a_target_is_a_last_part_or_a_dotted_name() -> None:
    model = tiny_llama()
    assert list(target_linears(model, ["v_proj"])) == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    dotted = ["model.layers.1.mlp.up_proj", "layers.0.self_attn.q_proj"]
    assert list(target_linears(model, dotted)) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


@pytest.mark.parametrize("target", ["proj", "query", "v_pro", "embed_tokens", "mlp"])
def test_a_target_that_matches_nothing_is_refused_with_the_candidates(target: str) -> None:
    with pytest.raises(UserError, match=f"'{target}': found no linear layer.*q_proj.*up_proj"):
        target_linears(tiny_llama(), ["q_proj", target])


def test_the_head_gets_an_adapter_only_when_named() -> None:
    model = tiny_llama()
    linears = linear_layers(model)
    leaves = sorted({name.rsplit(".", 1)[-1] for name in linears} - {"lm_head"})
    assert "lm_head" in linears
    assert "lm_head" not in target_linears(model, leaves)
    assert list(target_linears(model, ["lm_head"])) == ["lm_head"]


def test_targets_are_found_behind_attached_adapters_too() -> None:
    base = base_of(tiny_llama())
    before = target_linears(base.model, ATTENTION)
    filled(base, trial())
    after = target_linears(base.model, ATTENTION)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


# --- starts ---


def test_a_start_depends_on_seed_and_module_alone() -> None:
    model = tiny_llama()
    narrow = new_adapter(model, trial("x", targets=("v_proj",)))
    wide = new_adapter(tiny_llama(seed=5), trial("y", targets=("v_proj", "up_proj", "q_proj")))
    other = new_adapter(model, trial("x", targets=("v_proj",), seed=1))
    names = list(narrow.a)
    for name in names:
        assert torch.equal(narrow.a[name], wide.a[name])
        assert not torch.equal(narrow.a[name], other.a[name])
    assert not torch.equal(narrow.a[names[0]], narrow.a[names[1]])


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
    specs = [
        trial("a", rank=1),
        trial("b", rank=7, targets=("q_proj", "down_proj"), seed=1),
        trial("c", rank=16, targets=("up_proj",), method="rslora", seed=2),
    ]
    multi_lora = base_of(tiny_llama())
    for spec in specs:
        filled(multi_lora, spec)
    together = logits(multi_lora, "b", None, "a", "c", "b")
    for adapter_name, found in zip(["b", None, "a", "c", "b"], together, strict=True):
        single = base_of(tiny_llama())
        for spec in specs:
            if spec.trial_id == adapter_name:
                filled(single, spec)
        (expected,) = logits(single, adapter_name)
        assert_close(found, expected, 1e-5)


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
    unwrap(base.model)
    assert not any(isinstance(m, MultiLoraLinear) for m in base.model.modules())
    assert [name for name, _ in base.model.named_parameters()] == [
        name for name, _ in tiny_llama().named_parameters()
    ]
    assert torch.equal(logits(base, None)[0], before)


def test_an_adapter_for_another_shape_or_module_is_refused() -> None:
    base = base_of(tiny_llama())
    adapter = new_adapter(base.model, trial())
    name = next(iter(adapter.a))
    adapter.a[name] = nn.Parameter(torch.zeros(4, 65))
    with pytest.raises(UserError, match=r"factors of a \(64, 65\) matrix, expected \(64, 64\)"):
        base.multi_lora.attach(adapter)
    adapter.a["model.layers.7.self_attn.q_proj"] = adapter.a.pop(name)
    with pytest.raises(UserError, match=r"layers\.7.*expected modules that this model has"):
        base.multi_lora.attach(adapter)
    # A refused adapter leaves nothing behind.
    assert base.multi_lora.adapters == {}
    assert not any(isinstance(m, MultiLoraLinear) for m in base.model.modules())


# --- dropout ---


def test_dropout_masks_are_the_same_alone_in_a_group_and_however_a_step_is_cut() -> None:
    spec = trial("a", dropout=0.4)
    neighbor = trial("b", rank=8, dropout=0.4, seed=1)
    found = []
    for others, cuts in (([], [[0, 1, 2]]), ([neighbor], [[0], [1, 2]])):
        base = base_of(tiny_llama())
        for other in others:
            filled(base, other)
        adapter = filled(base, spec)
        base.multi_lora.training = True
        parts = []
        for step in (0, 1):
            adapter.begin_step(step)
            for cut in cuts:
                adapter_names = [other.trial_id for other in others] + ["a"]
                rows = [
                    Row(ROWS[i], range(len(ROWS[i])), adapter_name)
                    for adapter_name in adapter_names
                    for i in cut
                ]
                with torch.inference_mode():
                    parts.append(
                        base.logits(RowBatch.of(rows, base.device)).chunk(len(adapter_names))[-1]
                    )
        found.append(torch.cat(parts))
    alone, packed = found
    assert_close(packed, alone, 1e-5)
    first, second = alone.chunk(2)
    assert relative_gap(second, first) > 1e-3  # another step, other masks


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


def test_dropout_keeps_the_expectation_and_acts_only_in_training() -> None:
    base = base_of(tiny_llama())
    adapter = filled(base, trial(dropout=0.25))
    layer = base.model.get_submodule(next(iter(adapter.a)))
    assert isinstance(layer, MultiLoraLinear)
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), base.multi_lora.routing((AdapterSpan("a", 0, 20_000),), ()):
        plain = layer(x.expand(1, 20_000, 64))[0, 0]
        base.multi_lora.training = True
        drawn = layer(x.expand(1, 20_000, 64))[0]
    error = drawn.std(dim=0) / math.sqrt(len(drawn))
    # 64 outputs: five standard errors are passed once in 30,000 correct runs.
    assert bool(((drawn.mean(dim=0) - plain).abs() < 5 * error).all())
    assert float(drawn.std(dim=0).min()) > 0
    base.multi_lora.training = False
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
            name=adapter_name,
            rank=rank,
            alpha=3.0,
            scaling=1.5,
            targets=("0",),
            method="dora" if with_gain else "lora",
            a={"0": nn.Parameter(draw(rank, 6))},
            b={"0": nn.Parameter(draw(5, rank))},
            magnitude={"0": nn.Parameter(draw(5).abs() + 1)} if with_gain else {},
            initial_factors={"0": (draw(rank, 6), draw(5, rank))} if with_start else {},
        )
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
