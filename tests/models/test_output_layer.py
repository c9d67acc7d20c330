"""The output layer in blocks, and losses of what it reads: those of a plain layer's logits."""

import copy

import pytest
import torch
import transformers
from architectures import SHAPE
from tiny_models import base_of, tiny_llama
from torch import nn
from transformers import AutoModelForCausalLM

from rankscope.models.load import pass_one_token
from rankscope.models.output_layer import (
    LOGITS_BLOCK,
    OutputLayer,
    block_output_layer,
    output_layer_apart,
)
from rankscope.train.loss import kl_divergences, mean_losses
from rounding import rounding


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, LOGITS_BLOCK, LOGITS_BLOCK + 1, 3 * LOGITS_BLOCK - 1])
def test_values_and_gradients_are_the_layers(num_rows: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 11, bias=with_bias, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(1, num_rows, 6, dtype=torch.float64, requires_grad=True)
    above = torch.randn(1, num_rows, 11, dtype=torch.float64)
    found, expected = OutputLayer(linear)(x), linear(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
    (one,), (other,) = (torch.autograd.grad(y, x, above) for y in (found, expected))
    assert torch.allclose(one, other, rtol=1e-13, atol=1e-13)


def test_a_weight_that_trains_gets_its_gradient() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 5)
    x = torch.randn(2 * LOGITS_BLOCK, 4)
    OutputLayer(linear)(x).sum().backward()
    assert linear.weight.grad is not None
    assert torch.allclose(linear.weight.grad, x.sum(0).expand(5, 4), rtol=1e-4, atol=1e-3)


def test_the_model_keeps_its_names_its_tie_and_its_copies() -> None:
    model = tiny_llama()
    names = list(model.state_dict())
    before = model.get_output_embeddings().weight
    block_output_layer(model)
    head = model.get_output_embeddings()
    assert isinstance(head, OutputLayer)
    assert head.weight is before
    assert list(model.state_dict()) == names
    copied = copy.deepcopy(model).get_output_embeddings()
    assert isinstance(copied, OutputLayer)
    assert copied.weight is not before
    assert base_of(model).trainable_copy().model.get_output_embeddings().weight.requires_grad


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Llama", None), ("Granite", {"logits_scaling": 8.0}), ("Cohere", {"logit_scale": 0.0625}),
        ("Gemma3Text", {"final_logit_softcapping": 2.0}),
    ],
)  # fmt: skip
def test_logits_with_a_cap_or_a_scale_are_noticed(
    architecture: str, settings: dict[str, float] | None
) -> None:
    kind = getattr(transformers, f"{architecture}Config")
    model = AutoModelForCausalLM.from_config(kind(**SHAPE, **(settings or {})))
    base = base_of(model)
    with torch.no_grad():
        logits = pass_one_token(base)
        with output_layer_apart(model) as head:
            states = pass_one_token(base)
    assert (head is not None) == (settings is None)
    assert torch.equal(logits, states if head is None else head(states))
    with output_layer_apart(base.trainable_copy().model) as trained:
        assert trained is None


@pytest.mark.parametrize("heat", [1.0, 0.5])
def test_losses_of_what_the_layer_reads_are_those_of_its_logits(heat: float) -> None:
    torch.manual_seed(0)
    head = OutputLayer(nn.Linear(6, 700).requires_grad_(False))
    states, reference = torch.randn(2, 2 * LOGITS_BLOCK + 5, 6)
    targets = torch.randint(0, 700, (len(states),))
    counts, divisors, heats = [len(states) - 9, 9], [30.0, 20.0], [heat, 1.0]

    def of(layer: OutputLayer | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = states.clone().requires_grad_()
        own, base = (x, reference) if layer else (head(x), head(reference))
        losses = mean_losses(own, targets, counts, divisors, layer, heats)
        divergences = kl_divergences(own, base, layer)
        ((losses * torch.tensor([1.0, 0.25])).sum() + divergences[::3].sum()).backward()
        assert x.grad is not None
        return losses.detach(), divergences.detach(), x.grad

    bound = rounding(700)
    for found, expected in zip(of(head), of(None), strict=True):
        assert float((found - expected).norm()) <= bound * float(expected.norm())
