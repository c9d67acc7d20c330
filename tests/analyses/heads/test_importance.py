"""First-order importance against finite differences, and its signs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_worlds import adapter, base, choice_items, encoder, loaded
from torch import Tensor, nn

from rankscope.analyses.heads.ablation import ablate
from rankscope.analyses.heads.layout import AttentionLayer, HeadLayout, HeadModel
from rankscope.analyses.heads.measures import head_importance, raw_importance, unit_length
from rankscope.analyses.heads.tasks import token_trees
from rankscope.config.study import EvaluateConfig
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.token_trees import Floats, TokenTree

STEP = 1e-2


@pytest.fixture(scope="module")
def world() -> HeadModel:
    made = base()
    made.model.double()  # finite differences need the digits
    tuned = adapter(made, 4, seed=0)
    made.multi_lora.attach(tuned)
    return HeadModel(made, HeadLayout.of(made.model), tuned.name)


@contextmanager
def scaled(
    model: HeadModel, layer: AttentionLayer, heads: list[int], factor: float
) -> Iterator[None]:
    def scale(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()
        z.view(*z.shape[:-1], layer.num_heads, layer.head_dim)[..., heads, :] *= factor
        return (z,)

    handle = model.o_proj(layer).register_forward_pre_hook(scale)
    try:
        yield
    finally:
        handle.remove()


def items() -> list[TokenTree]:
    task = loaded(choice_items(), "option_text")
    return token_trees(encode_split(encoder(), task, "test", 256, EvaluateConfig()))


def losses(model: HeadModel) -> Floats:
    trees = items()
    scores = ablate(model, trees, [])[0]
    return np.array([-v[tree.gold] for v, tree in zip(scores, trees, strict=True)])


@pytest.mark.parametrize("is_tuned", [False, True])
def test_importance_is_the_slope_of_the_loss_in_the_scale_of_z(
    world: HeadModel, is_tuned: bool
) -> None:
    model = world if is_tuned else replace(world, adapter_name=None)
    importance = head_importance(model, items())
    for layer in model.layout:
        heads = [[h] for h in range(layer.num_heads)] + [[0, 1]]  # and a key/value group
        for chosen in heads:
            ends = []
            for factor in (1 + STEP, 1 - STEP):
                with scaled(model, layer, chosen, factor):
                    ends.append(losses(model))
            slope = (ends[0] - ends[1]) / (2 * STEP)
            first_order = importance[layer.index][:, chosen].sum(1).numpy()
            assert first_order == pytest.approx(slope, rel=0.02, abs=0.02)


def test_one_backward_or_many_the_same_numbers(world: HeadModel) -> None:
    whole = head_importance(world, items())
    parts = head_importance(replace(world, batch_tokens=60), items())
    for one, other in zip(whole, parts, strict=True):
        assert one.numpy() == pytest.approx(other.numpy(), rel=1e-3, abs=1e-4)


def test_nothing_is_left_behind(world: HeadModel) -> None:
    before = losses(world)
    head_importance(world, items())
    assert (losses(world) == before).all()
    tuned = world.base.multi_lora.adapters[world.adapter_name or ""]
    assert all(parameter.grad is None for parameter in tuned.parameters())
    assert all(parameter.grad is None for parameter in world.base.model.parameters())


def test_signs_count_within_an_example_and_a_group_and_not_between_examples() -> None:
    """Two examples, one layer of four query heads on two key/value heads; by hand."""
    signed = torch.tensor([[1.0, -1.0, 2.0, 1.0], [-3.0, 3.0, 0.0, -1.0]])
    assert raw_importance(signed, 4).tolist() == [2.0, 2.0, 1.0, 1.0]
    # 1 - 1 and -3 + 3 cancel; |2 + 1| and |0 - 1| do not.
    assert raw_importance(signed, 2).tolist() == [0.0, 2.0]
    assert unit_length(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([0.6, 0.8])
    assert unit_length(torch.zeros(2)).tolist() == [0.0, 0.0]
