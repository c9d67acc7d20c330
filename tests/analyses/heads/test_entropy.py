"""Entropy of attention: its ends, its bound, and transformers' own weights."""

import math

import pytest
import torch
from evaluation_worlds import base, choice_items, encoder, loaded
from tiny_models import tiny_llama

from rankscope.analyses.heads.layout import HeadLayout, HeadModel
from rankscope.analyses.heads.measures import attention_entropy, normalized_entropy, row_entropy
from rankscope.analyses.heads.tasks import token_trees
from rankscope.config.study import EvaluateConfig
from rankscope.evaluate.evaluator import encode_split


def test_uniform_is_one_and_a_point_is_zero() -> None:
    visible = torch.tensor([4])
    assert float(normalized_entropy(torch.full((1, 4), 0.25), visible)) == pytest.approx(1)
    assert float(normalized_entropy(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), visible)) == 0
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert float(normalized_entropy(half, visible)) == pytest.approx(math.log(2) / math.log(4))


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
    task = loaded(choice_items(), "option_text")
    trees = token_trees(encode_split(encoder(), task, "test", 256, EvaluateConfig()))
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
