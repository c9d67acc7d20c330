"""What scoring takes: counted on shapes against real scoring, and the room for answers."""

import dataclasses

import pytest
import torch
from architectures import config_of
from evaluation_worlds import tokenizer
from tiny_models import base_of, tiny_llama
from toy_training import full_trial, trial
from transformers import AutoModelForCausalLM, LlamaConfig

from rankscope.config.study import EvaluateConfig
from rankscope.evaluate import continuous_batching
from rankscope.evaluate.continuous_batching import (
    GenerationLimits,
    _most_cached_tokens as most_cached_tokens,
    generate,
)
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import ItemTokens, Question
from rankscope.models.attention.varlen import KVCache
from rankscope.models.base import Base
from rankscope.models.parameters import model_on_meta, nbytes
from rankscope.run.prepared import _scoring_memory as scoring_memory
from rankscope.train.memory import MemoryModel
from rankscope.train.pass_memory import AllocationCounter, shaped_adapter

ARCHITECTURES = ("OLMo 2", "Gemma 3", "Qwen3")
NEW_TOKENS = 24


def world(architecture: str) -> tuple[Base, MemoryModel]:
    """A base with one adapter of rank 8, and the same as shapes."""
    torch.manual_seed(0)
    config = config_of(architecture)
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
def test_a_pass_takes_what_is_planned(architecture: str, batch_tokens: int) -> None:
    base, memory = world(architecture)
    questions = [Question(tokens(32, i), [tokens(8, i)]) for i in range(12)]
    with AllocationCounter() as counter, torch.inference_mode():
        continuation_logprobs(base, questions, ["a"], batch_tokens)
    items = [ItemTokens(read=39, predicted=8)] * 12
    needed = scoring_memory(memory, items, EvaluateConfig(batch_tokens=batch_tokens))
    planned = needed([trial("a", rank=8)])
    assert 0.75 < planned / counter.peak_bytes < 1.3


def written(
    architecture: str, lengths: list[int], most_cached: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int, MemoryModel]:
    """Bytes that answers took, and that were planned; none of them ends by itself."""
    base, memory = world(architecture)
    monkeypatch.setattr(continuous_batching, "CACHED_PER_BATCH_TOKEN", most_cached / 512)
    prompts = [tokens(length, i) for i, length in enumerate(lengths)]
    limits = GenerationLimits(NEW_TOKENS, 256, 512, frozenset())
    with AllocationCounter() as counter, torch.inference_mode():
        generate(base, prompts, ["a"], limits)
    items = [ItemTokens(len(p), 1, NEW_TOKENS, len(p)) for p in prompts]
    settings = EvaluateConfig(batch_tokens=512, max_new_tokens=NEW_TOKENS)
    planned = scoring_memory(memory, items, settings)([trial("a", rank=8)])
    return counter.peak_bytes, planned, memory


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_take_no_more_than_is_planned(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, planned, _ = written(architecture, [20, 30, 40] * 8, 16 * 512, monkeypatch)
    assert 0.5 < taken / planned < 1


def test_a_long_prompt_among_short_ones_has_no_room_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room for 2,048 tokens. Each row is as long as the longest: beside a prompt of 200 tokens, 8
    rows, where the sum of what the sequences need would let 40 in."""
    rows: list[int] = []
    build = KVCache.of_rows

    def watched(parts: object, capacity: int, **settings: bool) -> KVCache:
        made = build(parts, capacity, **settings)  # type: ignore[arg-type]
        rows.append(len(made.lengths) * capacity)
        return made

    monkeypatch.setattr(KVCache, "of_rows", watched)
    lengths = [200] + [20] * 60
    taken, planned, _ = written("OLMo 2", lengths, 2048, monkeypatch)
    assert 1024 < max(rows) <= 2048
    assert taken < 1.3 * planned


def test_windows_of_a_long_text_are_rows_of_their_own() -> None:
    """A text of 5,000 tokens in ten windows: passes of 512 tokens, not one of 5,000."""
    _, memory = world("OLMo 2")
    settings = EvaluateConfig(batch_tokens=512)
    whole = scoring_memory(memory, [ItemTokens(5000, 4990, rows=10)], settings)
    one = scoring_memory(memory, [ItemTokens(5000, 4990)], settings)
    assert one([]) > 3 * whole([])


def test_a_full_trial_is_scored_as_a_copy() -> None:
    """In bfloat16; in float32 it is scored as it is."""
    config = config_of("OLMo 2")
    wide, narrow = (
        MemoryModel(config, dtype, torch.device("cpu")) for dtype in (torch.float32, torch.bfloat16)
    )
    items = [ItemTokens(39, 8)]
    for memory, copied in ((wide, 0), (narrow, nbytes(narrow.base))):
        needed = scoring_memory(memory, items, EvaluateConfig())
        assert needed([full_trial()]) == needed([]) + copied


def test_a_large_model_keeps_as_many_bytes_of_keys_and_values_as_it_has_weights() -> None:
    """Llama 2 7B: 6,738,415,616 weights, and 2 x 32 layers x 32 heads x 128 values of a token, all
    of two bytes."""
    model = model_on_meta(LlamaConfig()).bfloat16()
    assert most_cached_tokens(model, 4096) == 6_738_415_616 * 2 // (2 * 32 * 32 * 128 * 2)
    assert most_cached_tokens(model, 1024) == 16 * 1024


def test_a_small_model_keeps_a_gibibyte() -> None:
    """2 layers, 2 key/value heads of 16 wide: 128 values of four bytes each token."""
    model = tiny_llama()
    assert most_cached_tokens(model, 10**9) == 2**30 // (128 * 4)
