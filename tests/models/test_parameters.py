"""Parameter counts: published numbers, PEFT's own count, and memory that can be measured."""

from pathlib import Path

import peft
import pytest
import torch
from architectures import LLAMA_8B, QWEN_7B
from pocket_study import small_study
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config

from rankscope.errors import UserError
from rankscope.models.model_folder import pocket_folder
from rankscope.models.multi_lora import target_linears
from rankscope.models.parameters import (
    Architecture,
    architecture,
    largest_useful_rank,
    lora_parameters,
    rank_notes,
    read_model_config,
    target_shapes,
    with_matched_ranks,
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

TINY = LlamaConfig(
    hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=128, tie_word_embeddings=True,
)  # fmt: skip


# By hand: Llama-3.1-8B has 32 layers of q, o 4096 x 4096 and k, v 1024 x 4096, so q,k,v,o give
# 32 * (2 * 8192 + 2 * 5120) = 851,968 per unit of rank; the three MLP layers 14336 x 4096 add
# 32 * 3 * 18432 = 1,769,472. Qwen2.5-7B alike with 28 layers, 3584, 512 and 18944.
@pytest.mark.parametrize(
    ("config", "targets", "per_rank"),
    [
        (LLAMA_8B, ATTENTION, 851_968), (LLAMA_8B, ALL_LINEAR, 2_621_440),
        (QWEN_7B, ATTENTION, 630_784), (QWEN_7B, ALL_LINEAR, 2_523_136),
    ],
)  # fmt: skip
def test_large_models_have_the_known_counts(
    config: LlamaConfig | Qwen2Config, targets: tuple[str, ...], per_rank: int
) -> None:
    assert lora_parameters(architecture(config), 8, targets) == per_rank * 8


def test_a_folder_with_nothing_but_a_configuration_is_enough(tmp_path: Path) -> None:
    LLAMA_8B.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    config = read_model_config(tmp_path / "config.json")
    # Meta's model card says 8.03 billion; by hand 8,030,261,248.
    assert architecture(config).num_parameters == 8_030_261_248


def test_the_count_is_what_peft_makes_trainable() -> None:
    model = LlamaForCausalLM(TINY)
    expected_total = sum(parameter.numel() for parameter in model.parameters())
    shapes = architecture(TINY)
    assert shapes.num_parameters == expected_total
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=5, target_modules=["q_proj", "v_proj", "down_proj"])
    )
    trainable, _ = wrapped.get_nb_trainable_parameters()
    assert lora_parameters(architecture(TINY), 5, ["q_proj", "v_proj", "down_proj"]) == trainable


def test_targets_that_match_nothing_are_named_with_candidates() -> None:
    with pytest.raises(UserError, match=r"'q_porj': found no linear layer.*q_proj.*up_proj") as e:
        lora_parameters(architecture(TINY), 8, ["v_proj", "q_porj"])
    assert "lm_head" not in str(e.value)
    with pytest.raises(UserError, match=r"'1\.q_proj': found no linear layer"):
        lora_parameters(architecture(TINY), 8, ["1.q_proj"])
    with pytest.raises(UserError, match="rank 0: expected"):
        lora_parameters(architecture(TINY), 0, ATTENTION)


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    found = "'vit': found a fault .*, expected a causal language model"
    with pytest.raises(UserError, match=found):
        architecture(read_model_config(tmp_path))


def test_targets_are_matched_by_any_whole_end_of_the_path() -> None:
    """As in PEFT, and as ``models.lora.target_linears`` does when it trains."""
    shapes = architecture(TINY)
    assert largest_useful_rank(shapes, ATTENTION) == 32
    assert largest_useful_rank(shapes, ["q_proj"]) == 64
    for target in ("q_proj", "self_attn.q_proj", "model.layers.1.self_attn.q_proj"):
        found = target_shapes(shapes, [target])
        with torch.device("meta"):
            assert list(found) == list(target_linears(LlamaForCausalLM(TINY), [target]))
    assert set(target_shapes(shapes, ["layers.1.self_attn.q_proj", "lm_head"])) == {
        "model.layers.1.self_attn.q_proj",
        "lm_head",
    }


def test_ranks_that_train_as_many_parameters_by_hand(tmp_path: Path) -> None:
    """Per rank the pocket model's attention has 4,096 parameters, its MLP 3,840 and both 7,936."""
    shapes = architecture(read_model_config(pocket_folder()))
    arm = {"method": "lora", "rank": [32, 96], "lr": 1e-3, "match": "parameters"}
    arms = [arm | {"targets": ["attention", "mlp", "all-linear"]}]
    matched = with_matched_ranks(small_study(tmp_path, arms=arms).config.arms, shapes)
    ranks = [own.rank for own in matched]
    assert ranks == [[32, 96], [34, 102], [17, 50]]
    few = small_study(tmp_path, arms=[arms[0] | {"rank": [2]}]).config
    with pytest.raises(UserError, match=r"7,680 parameters at the closest rank 2 of .*8,192"):
        with_matched_ranks(few.arms, shapes)


def test_a_prompt_needs_no_target_in_the_model(tmp_path: Path) -> None:
    shapes = Architecture(16, {"fc": (4, 4)}, None)
    prompt, lora = {"method": "prompt", "system": "x"}, {"method": "lora", "rank": 8, "lr": 1e-3}
    assert rank_notes(small_study(tmp_path, arms=[prompt]).config.arms, shapes) == []
    with pytest.raises(UserError, match="no linear layer of this model"):
        rank_notes(small_study(tmp_path, arms=[prompt, lora]).config.arms, shapes)
