"""Counts on a few layers and two ranks against counts of the whole model."""

import pytest
import torch
from toy_training import ATTENTION, trial
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PretrainedConfig

from rankscope.models.attention import varlen
from rankscope.records import TrialSpec
from rankscope.train.pass_memory import PassMemory, PassShape

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
LLAMA = LlamaConfig(vocab_size=300, num_hidden_layers=7, num_key_value_heads=2, **SIZES)
# Every third layer sees all tokens, the others a window of 32; a vocabulary that outweighs a layer.
GEMMA = Gemma3TextConfig(
    vocab_size=3000,
    num_hidden_layers=11,
    layer_types=[["sliding_attention", "full_attention"][i % 3 == 2] for i in range(11)],
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=32,
    **SIZES,
)
SHAPES = (PassShape((50, 20, 20), 9), PassShape((90,) * 4, 200), PassShape((150, 40, 3), 50))
GROUPS = (
    [],  # the model itself trains
    [trial("a", rank=2)],
    [trial("a", rank=8, method="dora"), trial("b", rank=32), trial("c", rank=16)],
    [trial("a", rank=24, method="pissa", targets=(*ATTENTION, "down_proj"))],
)


def passes(
    config: PretrainedConfig, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> PassMemory:
    varlen.register_attention()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=varlen.NAME, dtype=dtype
        )
    return PassMemory(model, torch.device(device))


def whole(counts: PassMemory, group: list[TrialSpec], shape: PassShape, recomputes: bool) -> int:
    """Counted on all layers; trials of one method are one adapter of their mean rank."""
    if len(group) == 3:
        group, shares = [group[0], group[1].model_copy(update={"rank": 24})], [1, 2]
    else:
        shares = [1] * len(group)
    return max(counts.counted_whole(group, shares, shape, recomputes))


@pytest.mark.parametrize(
    ("group", "shape"),
    [(GROUPS[0], SHAPES[1]), *zip(GROUPS[1:], SHAPES, strict=True)],
    ids=["full", "lora", "dora and lora", "pissa"],
)
def test_layers_and_ranks_add_the_same_bytes_each(group: list[TrialSpec], shape: PassShape) -> None:
    """To the byte, except that a layer computed again has its peak among its own gradients if the
    ranks are as large as the layer."""
    counts = passes(LLAMA)
    for recomputes in (False, True):
        found = counts.pass_bytes(group, shape, recomputes)
        expected = whole(counts, group, shape, recomputes)
        large_rank = recomputes and max((t.rank or 0 for t in group), default=0) > 16
        assert found == pytest.approx(expected, rel=0.03 if large_rank else 1e-9)


def test_a_pattern_of_layers_is_repeated_as_a_whole() -> None:
    counts = passes(GEMMA)
    assert counts.period([], counts.model.model.layers) == 3
    adapters = [trial("a", rank=2)]
    found = counts.pass_bytes(adapters, SHAPES[1], False)
    assert found == whole(counts, adapters, SHAPES[1], False)
    assert counts.pass_bytes([], SHAPES[0], False) == whole(counts, [], SHAPES[0], False)


def test_a_layer_unlike_the_others_is_counted_with_all_of_them() -> None:
    only_last = trial("a", rank=4, targets=("model.layers.6.mlp.down_proj",))
    counts = passes(LLAMA)
    found = counts.pass_bytes([only_last], SHAPES[0], False)
    assert found == whole(counts, [only_last], SHAPES[0], False)
    assert len(counts.model.model.layers) == 7  # the model is what it was


def test_on_cuda_in_bfloat16_attention_holds_no_padding() -> None:
    """Ten rows of 20 tokens beside one of 200 cost what two of 200 cost, to the layers' rounding:
    padded they would be eleven of 200."""
    counts = passes(LLAMA, torch.bfloat16, "cuda")
    uneven, even = PassShape((200, *[20] * 10), 20), PassShape((200, 200), 20)
    found, expected = (counts.pass_bytes(GROUPS[1], shape, False) for shape in (uneven, even))
    assert found == pytest.approx(expected, rel=0.01)
