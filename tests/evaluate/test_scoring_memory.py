"""What scoring takes: counted on shapes against real scoring, and the room for answers."""

import dataclasses

import pytest
import torch
from architectures import CONFIGS
from evaluation_worlds import tokenizer
from tiny_models import base_of
from toy_training import trial
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from rankscope.config.study import EvaluateConfig
from rankscope.evaluate.continuous_batching import GenerationLimits, generate, most_cached_tokens
from rankscope.evaluate.likelihood import Question, continuation_logprobs
from rankscope.evaluate.scorers.scorer import ItemTokens
from rankscope.evaluate.scoring_memory import scoring_bytes
from rankscope.models.base import Base
from rankscope.models.parameters import model_on_meta
from rankscope.train.allocations import AllocationCounter
from rankscope.train.memory import MemoryModel
from rankscope.train.pass_memory import shaped_adapter

ARCHITECTURES = ("OLMo 2", "Gemma 3", "Qwen3")
NEW_TOKENS = 24


def world(architecture: str) -> tuple[Base, MemoryModel]:
    """A base with one adapter of rank 8, and the same as shapes."""
    torch.manual_seed(0)
    config = CONFIGS[architecture]
    model = AutoModelForCausalLM.from_config(config).eval()
    base = dataclasses.replace(base_of(model), tokenizer=tokenizer())
    adapter = shaped_adapter(model, trial("a", rank=8))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter.data, std=0.02)
    base.multi_lora.attach(adapter)
    return base, MemoryModel(config, torch.float32, torch.device("cpu"))


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (count,), generator=generator).tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_tokens", [64, 512])
def test_a_pass_takes_what_it_is_said_to_take(architecture: str, batch_tokens: int) -> None:
    base, memory = world(architecture)
    questions = [Question(tokens(32, i), [tokens(8, i)]) for i in range(12)]
    with AllocationCounter() as counter, torch.inference_mode():
        continuation_logprobs(base, questions, ["a"], batch_tokens)
    items = [ItemTokens(read=39, predicted=8)] * 12
    settings = EvaluateConfig(batch_tokens=batch_tokens)
    planned = scoring_bytes(memory, [trial("a", rank=8)], items, settings)
    assert 0.75 < planned / counter.peak_bytes < 1.3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_take_no_more_than_they_are_said_to_take(architecture: str) -> None:
    """No answer ends by itself, so all of the room is needed."""
    base, memory = world(architecture)
    prompts = [tokens(length, i) for i, length in enumerate((20, 30, 40) * 8)]
    limits = GenerationLimits(NEW_TOKENS, 256, 512, frozenset())
    with AllocationCounter() as counter, torch.inference_mode():
        generate(base, prompts, ["a"], limits)
    items = [ItemTokens(len(p), 1, NEW_TOKENS, len(p)) for p in prompts]
    settings = EvaluateConfig(batch_tokens=512, max_new_tokens=NEW_TOKENS)
    planned = scoring_bytes(memory, [trial("a", rank=8)], items, settings)
    assert 0.65 < counter.peak_bytes / planned < 1.05


def test_a_large_model_keeps_as_many_bytes_of_keys_and_values_as_it_has_weights() -> None:
    """Llama 2 7B: 6,738,415,616 weights, and 2 x 32 layers x 32 heads x 128 values of a token, all
    of two bytes."""
    model = model_on_meta(LlamaConfig()).bfloat16()
    assert most_cached_tokens(model, 4096) == 6_738_415_616 * 2 // (2 * 32 * 32 * 128 * 2)
    assert most_cached_tokens(model, 1024) == 16 * 1024


def test_a_small_model_keeps_a_gibibyte() -> None:
    """2 layers, 2 key/value heads of 16 wide: 128 values of four bytes each token."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: PreTrainedModel = model_on_meta(config)
    assert most_cached_tokens(model, 10**9) == 2**30 // (128 * 4)


def test_nothing_to_score_takes_nothing() -> None:
    _, memory = world("OLMo 2")
    assert scoring_bytes(memory, [], [], EvaluateConfig()) == 0
