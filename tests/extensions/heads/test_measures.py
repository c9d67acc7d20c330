"""Heads of a trial: their roles and change by hand, importance by differences, entropy."""

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from evaluation_worlds import adapter, base, choice_items, encoder, loaded
from tiny_models import delta, tiny_llama
from torch import Tensor

from rankscope.config.study import EvaluateConfig
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.token_trees import Floats, TokenTree
from rankscope.extensions.heads.ablation import ablate
from rankscope.extensions.heads.layout import PROJECTIONS, AttentionLayer, HeadLayout, HeadModel
from rankscope.extensions.heads.measures import (
    added_cost,
    attention_entropy,
    head_changes,
    head_importance,
    lost_elsewhere,
    raw_importance,
    row_entropy,
    unit_length,
    update_to,
)
from rankscope.extensions.heads.tasks import token_trees
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.multi_lora import linear_layers
from rankscope.records import TrialSpec

from .records import ablation_of


def test_skill_is_what_training_made_a_head_worth_and_lost_what_it_took() -> None:
    own = ablation_of("med", ((-0.1, 0.0),), ((-0.5, 0.1),))
    cloze = ablation_of("cloze", ((-0.4, -0.2),), ((-0.1, -0.2),))
    law = ablation_of("law", ((-0.2, 0.0),), ((-0.1, -0.2),))
    # Removing head 0 cost the base 0.1 nats on its task and costs the tuned model 0.5.
    assert added_cost(own) == (pytest.approx((0.4, -0.1)),)
    # On cloze it cost 0.4 and costs 0.1; on law 0.2 and 0.1.
    lost = ((0.3 + 0.1) / 2, (0.0 - 0.2) / 2)
    assert lost_elsewhere([cloze, law]) == (pytest.approx(lost),)
    assert lost_elsewhere([]) == ()


MODEL = tiny_llama()
LAYOUT = HeadLayout.of(MODEL)
LINEARS = linear_layers(MODEL)


def weight(name: str) -> torch.Tensor:
    return LINEARS[name].weight.detach()


def trained(method: str) -> Adapter:
    trial = TrialSpec(
        trial_id="a",
        task="toy",
        method=method,
        rank=3,
        alpha=6.0,
        lr=1e-3,
        targets=PROJECTIONS,
        dropout=0.0,
        seed=0,
    )
    adapter = new_adapter(MODEL, trial)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter


@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "dora"])
def test_squares_over_heads_add_up_to_the_whole_matrix(method: str) -> None:
    adapter = trained(method)
    found = head_changes(LAYOUT, adapter.a, weight, partial(LoraMethod.of(method).update, adapter))
    assert len(found) == len(LAYOUT) * len(PROJECTIONS)
    for change in found:
        layer = LAYOUT[change.layer]
        name = layer.projection(change.module)
        moves = delta(adapter, name, weight(name).double())
        assert np.square(change.frobenius).sum() == pytest.approx(float(moves.square().sum()))
        assert len(change.frobenius) == (4 if change.module in ("q_proj", "o_proj") else 2)
        size = layer.head_dim
        for head, (moved, relative) in enumerate(
            zip(change.frobenius, change.relative, strict=True)
        ):
            own = slice(head * size, (head + 1) * size)
            part = moves[:, own] if change.module == "o_proj" else moves[own]
            whole = weight(name)[:, own] if change.module == "o_proj" else weight(name)[own]
            assert moved == pytest.approx(float(part.norm()), rel=1e-5)
            assert relative == pytest.approx(float(part.norm() / whole.norm()), rel=1e-5)


def test_a_whole_model_is_compared_slice_by_slice() -> None:
    tuned = {name: layer.weight.detach().clone() for name, layer in LINEARS.items()}
    name = LAYOUT[1].projection("o_proj")
    tuned[name][:, 16:32] *= 1.5  # the columns of head 1
    names = [layer.projection(module) for layer in LAYOUT for module in PROJECTIONS]
    for change in head_changes(LAYOUT, names, weight, update_to(tuned.__getitem__)):
        expected = [0.0] * len(change.relative)
        if (change.layer, change.module) == (1, "o_proj"):
            expected[1] = 0.5
        assert list(change.relative) == pytest.approx(expected)


STEP = 1e-2


@pytest.fixture(scope="module")
def world() -> HeadModel:
    made = base()
    made.model.double()  # finite differences need the digits
    tuned = adapter(made, 4, seed=0)
    made.multi_lora.attach(tuned)
    return HeadModel(made, HeadLayout.of(made.model), tuned.name)


def scaled(
    model: HeadModel, layer: AttentionLayer, heads: list[int], factor: float
) -> AbstractContextManager[None]:
    def scale(z: Tensor) -> Tensor:
        z = z.clone()
        z.view(*z.shape[:-1], layer.num_heads, layer.head_dim)[..., heads, :] *= factor
        return z

    return model.changed_inputs({layer.index: scale})


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


@pytest.mark.parametrize("window", [None, 3])
def test_rows_of_equal_keys_are_looked_at_alike(window: int | None) -> None:
    """Equal keys give uniform weights at every position, whatever it may see."""
    q, k = torch.randn(4, 300, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 300, 8)
    found = row_entropy(q, k, 1.0, window)
    assert (found / 299).tolist() == pytest.approx([1.0] * 4)


def test_a_query_far_along_one_key_looks_at_it_alone() -> None:
    k = torch.eye(6)[None]
    q = torch.zeros(1, 6, 6)
    q[:, :, 0] = 1000  # every position looks at the first
    assert float(row_entropy(q, k, 1.0, None)) == 0


def test_against_the_weights_that_transformers_gives() -> None:
    made = base()
    trees = items()
    model = HeadModel(made, HeadLayout.of(made.model), batch_tokens=100)
    by_layer = attention_entropy(model, trees)
    stock = tiny_llama()
    stock.load_state_dict(made.model.state_dict())
    stock.set_attn_implementation("eager")
    totals, positions = torch.zeros(2, 4, dtype=torch.float64), 0
    for row in (tree.gold_row() for tree in trees):
        with torch.inference_mode():
            weights = stock(torch.tensor([row.ids]), output_attentions=True).attentions
        steps = torch.arange(1, len(row.ids))
        for layer, a in enumerate(weights):
            entropy = -(a[0].double() * a[0].double().clamp(min=1e-300).log()).sum(-1)[:, 1:]
            totals[layer] += (entropy / (steps + 1).double().log()).sum(1)
        positions += len(steps)
    for layer, values in enumerate(by_layer):
        assert values == pytest.approx((totals[layer] / positions).tolist(), abs=1e-5)
        assert all(value is not None and 0 < value < 1 for value in values)
