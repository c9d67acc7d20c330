"""Changes by head: parts of the whole, whatever the method."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

from rankscope.analyses.heads.layout import PROJECTIONS, HeadLayout
from rankscope.analyses.heads.trial_heads import (
    adapter_changes,
    dense_changes,
    dense_head_norms,
    low_rank_head_norms,
)
from rankscope.errors import UserError
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import linear_layers
from rankscope.records import TrialSpec

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
    found = adapter_changes(LAYOUT, weight, adapter)
    assert len(found) == len(LAYOUT) * len(PROJECTIONS)
    for change in found:
        layer = LAYOUT[change.layer]
        name = layer.projection(change.module)
        delta = adapter.delta(name, weight(name).double())
        assert np.square(change.frobenius).sum() == pytest.approx(float(delta.square().sum()))
        assert len(change.frobenius) == (4 if change.module in ("q_proj", "o_proj") else 2)
        size = layer.head_dim
        for head, (moved, relative) in enumerate(
            zip(change.frobenius, change.relative, strict=True)
        ):
            own = slice(head * size, (head + 1) * size)
            part = delta[:, own] if change.module == "o_proj" else delta[own]
            whole = weight(name)[:, own] if change.module == "o_proj" else weight(name)[own]
            assert moved == pytest.approx(float(part.norm()), rel=1e-5)
            assert relative == pytest.approx(float(part.norm() / whole.norm()), rel=1e-5)


def test_heads_by_hand() -> None:
    """B A = [[3, 4], [0, 0], [0, 5]]... as rows in heads of one, as columns in heads of one."""
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0], [-2.0]])
    assert low_rank_head_norms(a, b, 3, by_columns=False).tolist() == [5.0, 0.0, 10.0]
    assert low_rank_head_norms(a, b, 2, by_columns=True).tolist() == pytest.approx(
        [3 * 5**0.5, 4 * 5**0.5]
    )
    assert dense_head_norms(b @ a, 3, by_columns=False).tolist() == [5.0, 0.0, 10.0]


def test_an_untrained_adapter_moved_no_head() -> None:
    trial = TrialSpec(
        trial_id="a",
        task="toy",
        method="lora",
        rank=3,
        alpha=6.0,
        lr=1e-3,
        targets=("q_proj",),
        dropout=0.0,
        seed=0,
    )
    found = adapter_changes(LAYOUT, weight, new_adapter(MODEL, trial))
    assert [change.module for change in found] == ["q_proj", "q_proj"]
    assert all(value == 0 for change in found for value in change.frobenius)


def test_a_whole_model_is_compared_slice_by_slice() -> None:
    tuned = {name: layer.weight.detach().clone() for name, layer in LINEARS.items()}
    name = LAYOUT[1].projection("o_proj")
    tuned[name][:, 16:32] *= 1.5  # the columns of head 1
    names = [layer.projection(module) for layer in LAYOUT for module in PROJECTIONS]
    for change in dense_changes(LAYOUT, weight, tuned.__getitem__, names):
        expected = [0.0] * len(change.relative)
        if (change.layer, change.module) == (1, "o_proj"):
            expected[1] = 0.5
        assert list(change.relative) == pytest.approx(expected)


def test_grouped_queries_are_found() -> None:
    assert len(LAYOUT) == 2
    layer = LAYOUT[1]
    assert (layer.num_heads, layer.num_kv_heads, layer.head_dim) == (4, 2, 16)
    assert layer.projection("o_proj") == "model.layers.1.self_attn.o_proj"
    assert LAYOUT.num_heads == 8


def test_fused_matrices_are_refused_by_name() -> None:
    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    phi = Phi3Config(**small, intermediate_size=32, pad_token_id=0)
    with pytest.raises(UserError, match=r"qkv_proj.*one matrix"):
        HeadLayout.of(Phi3ForCausalLM(phi))
    gpt = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(UserError, match=r"c_attn.*one matrix"):
        HeadLayout.of(GPT2LMHeadModel(gpt))
