"""The output layer in blocks is the output layer."""

import copy

import pytest
import torch
from tiny_models import base_of, tiny_llama
from torch import nn

from rankscope.models.load import LOGITS_BLOCK, BlockedLinear, block_output_layer, blocks


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, LOGITS_BLOCK, LOGITS_BLOCK + 1, 3 * LOGITS_BLOCK - 1])
def test_values_and_gradients_are_the_layers(num_rows: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 11, bias=with_bias, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(1, num_rows, 6, dtype=torch.float64, requires_grad=True)
    above = torch.randn(1, num_rows, 11, dtype=torch.float64)
    found, expected = BlockedLinear(linear)(x), linear(x)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
    (one,), (other,) = (torch.autograd.grad(y, x, above) for y in (found, expected))
    assert torch.allclose(one, other, rtol=1e-13, atol=1e-13)


def test_blocks_cover_every_row_once_and_are_alike() -> None:
    for num_rows in (1, LOGITS_BLOCK, LOGITS_BLOCK + 1, 5 * LOGITS_BLOCK + 7):
        spans = list(blocks(num_rows))
        assert [i for span in spans for i in range(num_rows)[span]] == list(range(num_rows))
        sizes = [span.stop - span.start for span in spans]
        assert max(sizes) <= LOGITS_BLOCK
        assert max(sizes) - min(sizes) <= 1


def test_a_weight_that_trains_gets_its_gradient() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(4, 5)
    x = torch.randn(2 * LOGITS_BLOCK, 4)
    BlockedLinear(linear)(x).sum().backward()
    assert linear.weight.grad is not None
    assert torch.allclose(linear.weight.grad, x.sum(0).expand(5, 4), rtol=1e-4, atol=1e-3)


def test_the_model_keeps_its_names_its_tie_and_its_copies() -> None:
    model = tiny_llama()
    names = list(model.state_dict())
    before = model.get_output_embeddings().weight
    block_output_layer(model)
    head = model.get_output_embeddings()
    assert isinstance(head, BlockedLinear)
    assert head.weight is before
    assert list(model.state_dict()) == names
    copied = copy.deepcopy(model).get_output_embeddings()
    assert isinstance(copied, BlockedLinear)
    assert copied.weight is not before
    assert base_of(model).trainable_copy().model.get_output_embeddings().weight.requires_grad
