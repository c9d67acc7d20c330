"""Which heads carry what: by hand."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

from rankscope.analyses.heads.layout import PROJECTIONS, HeadLayout
from rankscope.analyses.heads.record import HeadAblation
from rankscope.analyses.heads.trial_heads import (
    adapter_changes,
    dense_changes,
    dense_head_norms,
    head_roles,
    low_rank_head_norms,
)
from rankscope.errors import UserError
from rankscope.models.init_context import new_adapter
from rankscope.models.lora import Adapter
from rankscope.models.multi_lora import linear_layers
from rankscope.records import TrialSpec

Table = tuple[tuple[float, ...], ...]


def ablation(task: str, base: Table, tuned: Table) -> HeadAblation:
    return HeadAblation(
        task=task,
        items=10,
        metric="acc",
        base_score=0.5,
        tuned_score=0.6,
        base_change=base,
        tuned_change=tuned,
        base_gold_change=base,
        tuned_gold_change=tuned,
        gold_difference_error=tuple((None,) * len(heads) for heads in base),
        base_layer_gold_change=tuple(map(sum, base)),
        tuned_layer_gold_change=tuple(map(sum, tuned)),
    )


def test_skill_is_what_training_made_a_head_worth_and_lost_what_it_took() -> None:
    own = ablation("med", ((-0.1, 0.0),), ((-0.5, 0.1),))
    cloze = ablation("cloze", ((-0.4, -0.2),), ((-0.1, -0.2),))
    law = ablation("law", ((-0.2, 0.0),), ((-0.1, -0.2),))
    first, second = head_roles(own, [cloze, law])
    assert (first.layer, first.head, second.head) == (0, 0, 1)
    # Removing head 0 cost the base 0.1 nats on its task and costs the tuned model 0.5.
    assert first.skill == pytest.approx(0.4)
    assert second.skill == pytest.approx(-0.1)
    # On cloze it cost 0.4 and costs 0.1; on law 0.2 and 0.1.
    assert first.lost == pytest.approx((0.3 + 0.1) / 2)
    assert second.lost == pytest.approx((0.0 - 0.2) / 2)


def test_without_another_task_nothing_is_said_of_what_was_lost() -> None:
    assert [role.lost for role in head_roles(ablation("med", ((0.0,),), ((0.0,),)), [])] == [None]


def test_ablations_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="law: other heads"):
        head_roles(ablation("med", ((0.0,),), ((0.0,),)), [ablation("law", ((0, 0),), ((0, 0),))])


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


def test_fused_matrices_are_refused_by_name() -> None:
    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    phi = Phi3Config(**small, intermediate_size=32, pad_token_id=0)
    with pytest.raises(UserError, match=r"qkv_proj.*one matrix"):
        HeadLayout.of(Phi3ForCausalLM(phi))
    gpt = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(UserError, match=r"c_attn.*one matrix"):
        HeadLayout.of(GPT2LMHeadModel(gpt))
