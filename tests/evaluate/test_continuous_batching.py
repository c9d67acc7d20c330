"""Continuous batching writes, token for token, what transformers' own generation writes."""

import pytest
import torch
from architectures import WINDOW, WINDOWED, stock
from evaluation_worlds import adapter, base, merged, tokenizer
from tiny_models import base_of
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from rankscope.evaluate import prefix_sharing as prefixes
from rankscope.evaluate.continuous_batching import GenerationLimits, generate
from rankscope.models.base import Base
from rankscope.models.lora import Adapter

NEW_TOKENS = 24
HEADS = [[(7 * i) % 290 + 3 for i in range(50)], [(11 * i) % 290 + 3 for i in range(30)]]
"""Beginnings of 50 and 30 tokens."""


def prompts() -> list[list[int]]:
    """Twelve prompts of 1 to 45 tokens."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(3, 300, (length,), generator=generator).tolist()
        for length in (5, 1, 30, 12, 3, 45, 8, 8, 2, 21, 17, 9)
    ]


def limits(batch_tokens: int = 4096, **changes: object) -> GenerationLimits:
    settings = {"max_new_tokens": NEW_TOKENS, "context": 256, "stop_ids": frozenset({2})}
    return GenerationLimits(**{**settings, "batch_tokens": batch_tokens, **changes})  # type: ignore[arg-type]


def stock_generation(model: PreTrainedModel, prompt: list[int], stops: frozenset[int]) -> list[int]:
    """transformers, one prompt alone; the stop token is taken off."""
    ids = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=sorted(stops), pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return ids[:-1] if ids[-1] in stops else ids


@torch.inference_mode()
def run(
    engine: Base, adapter_names: list[str | None], bounds: GenerationLimits
) -> dict[str | None, list[list[int]]]:
    found = generate(engine, prompts(), adapter_names, bounds)
    return {
        adapter_name: [g.ids for g in generations] for adapter_name, generations in found.items()
    }


@pytest.fixture(scope="module")
def packed() -> tuple[Base, list[Adapter]]:
    engine = base()
    group = [adapter(engine, rank, seed=rank) for rank in (2, 8)]
    for member in group:
        engine.multi_lora.attach(member)
    return engine, group


@pytest.mark.parametrize("batch_tokens", [4096, 16])
def test_equals_transformers_token_for_token(
    packed: tuple[Base, list[Adapter]], batch_tokens: int
) -> None:
    """Three models mixed, prompts of all lengths; with 16, sequences wait, enter and leave."""
    engine, group = packed
    adapter_names = [None, *(member.name for member in group)]
    # Tokens that do come up, so that sequences end at different steps.
    free = run(engine, adapter_names, limits())
    stops = frozenset({2, *(ids[k] for k, ids in enumerate(free[None]))})
    found = run(engine, adapter_names, limits(batch_tokens, stop_ids=stops))
    for member in (None, *group):
        adapter_name = member.name if member else None
        model = merged(engine, member)
        expected = [stock_generation(model, prompt, stops) for prompt in prompts()]
        assert found[adapter_name] == expected
    lengths = {len(ids) for ids in found[None]}
    assert len(lengths) > 3
    assert found[None] != found[group[0].name]


@torch.inference_mode()
def test_prompts_that_begin_alike_write_the_same(
    packed: tuple[Base, list[Adapter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two beginnings of 50 and 30 tokens, of which one prompt is nothing more; others alone."""
    engine, group = packed
    rows = [[*HEADS[i % 2], *prompt] for i, prompt in enumerate(prompts())]
    rows += [HEADS[0], *prompts()[:3]]
    adapter_names = [None, group[1].name]
    alone = generate(engine, rows, adapter_names, limits())
    monkeypatch.setattr(prefixes, "PASS_TOKENS", 10)
    assert {length for length, _ in prefixes.find_shared_prefixes(rows)} == {0, 30, 49}
    for batch_tokens in (4096, 24):
        shared = generate(engine, rows, adapter_names, limits(batch_tokens))
        for adapter_name in adapter_names:
            assert [g.ids for g in shared[adapter_name]] == [g.ids for g in alone[adapter_name]]


@pytest.mark.parametrize("architecture", WINDOWED)
@torch.inference_mode()
def test_beginnings_prompts_and_answers_longer_than_the_window(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers writes each prompt alone; beginnings of 30 and 50 tokens are shared."""
    rows = [[*HEADS[i % 2], *prompt] for i, prompt in enumerate(prompts())] + prompts()[:4]
    assert min(NEW_TOKENS, *map(len, HEADS)) > WINDOW
    stops = frozenset({2})
    expected = [stock_generation(stock(architecture), row, stops) for row in rows]
    assert len({tuple(ids) for ids in expected}) > 10
    monkeypatch.setattr(prefixes, "PASS_TOKENS", 10)
    engine = base_of(stock(architecture), tokenizer())
    for batch_tokens in (4096, 24):
        found = generate(engine, rows, [None], limits(batch_tokens))[None]
        assert [g.ids for g in found] == expected


@torch.inference_mode()
def test_stop_strings_cut_the_text_and_end_the_sequence() -> None:
    engine = base()
    free = generate(engine, prompts(), [None], limits())[None]
    pairs = [g.text[k : k + 2] for g in free for k in range(3, len(g.text) - 1)]
    stop = next(pair for pair in pairs if "\ufffd" not in pair)
    found = generate(engine, prompts(), [None], limits(stop_strings=(stop,)))[None]
    assert [g.text for g in found] == [g.text.partition(stop)[0] for g in free]
    for before, after in zip(free, found, strict=True):
        if stop in before.text:
            assert after.stopped
            # It ended with the token that completed the string.
            written = tokenizer().decode(after.ids)
            assert stop in written
            assert stop not in tokenizer().decode(after.ids[:-1])
        else:
            assert after.ids == before.ids
    assert any(stop in g.text for g in free)


@torch.inference_mode()
def test_weights_are_cast_once_for_all_answers_and_read_anew_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = base_of(base().model.to(torch.bfloat16), tokenizer())
    member = adapter(engine, 4, seed=1)
    engine.multi_lora.attach(member)
    read, factors = list[str](), Adapter.factors
    monkeypatch.setattr(
        Adapter, "factors", lambda self, module: read.append(module) or factors(self, module)
    )
    first = run(engine, [member.name], limits())
    assert sorted(read) == sorted(member.a)  # of many passes
    for module in member.b:
        member.b[module].data.mul_(40)
    second = run(engine, [member.name], limits())
    assert second != first
    again = base_of(base().model.to(torch.bfloat16), tokenizer())
    again.multi_lora.attach(member)
    assert run(again, [member.name], limits()) == second


@torch.inference_mode()
def test_generation_ends_at_the_context() -> None:
    engine = base()
    long = [7] * 250
    (found,) = generate(engine, [long], [None], limits(stop_ids=frozenset()))[None]
    assert len(found.ids) == 6
    assert not found.stopped


@torch.inference_mode()
def test_finished_rows_stay_inside_learned_positions() -> None:
    """GPT-2 has a table of positions: a finished row that runs on must not read past its end."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    engine = base_of(GPT2LMHeadModel(config).eval(), tokenizer())
    rows = [[5] * 20, *([n + 3] for n in range(20))]
    bounds = limits(context=32, max_new_tokens=20, stop_ids=frozenset())
    found = generate(engine, rows, [None], bounds)[None]
    assert [len(g.ids) for g in found] == [12] + [20] * 20
