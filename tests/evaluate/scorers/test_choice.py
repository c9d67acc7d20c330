"""Multiple choice equals a plain model that reads one whole option at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from evaluation_worlds import (
    adapter,
    base,
    choice_items,
    encoder,
    lettered,
    loaded,
    one_at_a_time,
    plain_model,
)

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import LETTERS, Item
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.evaluate.scorers import get_scorer
from rankscope.models.base import Base
from rankscope.records import BASE, ItemResult

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def reference(model: torch.nn.Module, item: Item, answers: tuple[str, ...]) -> list[float]:
    coder = encoder()
    prompt = coder.prompt_ids(item)
    return [one_at_a_time(model, prompt, coder.answer_ids(answer, item)) for answer in answers]


def score(
    engine: Base, task_items: tuple[Item, ...], scorer: str, prompt: str, batch_tokens: int = 64
) -> dict[str | None, list[ItemResult]]:
    adapter_names = {
        None: BASE,
        **{adapter_name: adapter_name for adapter_name in engine.multi_lora.adapters},
    }
    settings = EvaluateConfig(batch_tokens=batch_tokens)
    task = loaded(task_items, scorer, prompt)
    found = evaluate_task(engine, encoder(), task, "test", adapter_names, settings)
    return {adapter_name: items for adapter_name, (_, items) in found.items()}


@pytest.mark.parametrize("batch_tokens", [64, 150, 4096])
def test_option_texts_equal_one_option_at_a_time(batch_tokens: int) -> None:
    engine = base()
    results = score(engine, choice_items(), "option_text", "{question}", batch_tokens)[None]
    model = plain_model(engine)
    for item, result in zip(choice_items(), results, strict=True):
        expected = reference(model, item, item.choices)
        assert result.option_logprobs == pytest.approx(expected, rel=1e-5)
        assert result.letter_logprobs is None
        assert item.answer is not None
        assert result.gold_logprob == result.option_logprobs[item.answer]
        assert result.prediction == item.choices[int(np.argmax(expected))]
        assert result.score == float(np.argmax(expected) == item.answer)
        lengths = tuple(len(encoder().answer_ids(choice, item)) for choice in item.choices)
        assert result.option_tokens == lengths


def test_letters_equal_one_letter_at_a_time() -> None:
    engine = base()
    items = lettered(choice_items())
    prompt = "{question}\n{options}\nAnswer:"
    by_letter = score(engine, items, "option_letter", prompt)[None]
    by_text = score(engine, items, "option_text", prompt)[None]
    model = plain_model(engine)
    for item, letter, text in zip(items, by_letter, by_text, strict=True):
        expected = reference(model, item, tuple(LETTERS[: len(item.choices)]))
        assert letter.letter_logprobs == pytest.approx(expected, rel=1e-5)
        assert letter.option_logprobs is None
        assert letter.prediction == item.choices[int(np.argmax(expected))]
        # A prompt that lists its options serves the letters too, whatever the primary_metric.
        assert text.letter_logprobs == pytest.approx(expected, rel=1e-5)
        assert text.option_logprobs == pytest.approx(reference(model, item, item.choices), rel=1e-5)


def test_an_option_without_tokens_is_refused() -> None:
    # The prompt ends in a space, so that the empty option is not even a space of its own.
    item = Item("toy/test/7", "a ", "a", choices=("a", ""), answer=0)
    spec = loaded((item,), "option_text").spec
    with pytest.raises(UserError, match=r"toy/test/7: .*no tokens in option ''"):
        get_scorer("option_text").encode(encoder(), [item], spec, None)


def test_what_follows_is_scored_after_either_option() -> None:
    item = Item(
        "toy/test/1",
        "the cat sat on 1",
        "and the other cat sat there.",
        ("18", "1"),
        1,
        contexts=("the cat sat on 18", "the cat sat on 1"),
    )
    engine, coder = base(), encoder()
    other = adapter(engine, 4, seed=1)
    engine.multi_lora.attach(other)
    items = (item, dataclasses.replace(item, item_id="toy/test/2", answer=0))
    task = loaded(items, "option_text")
    models = {None: BASE, other.name: "other"}
    results = evaluate_task(engine, coder, task, "test", models, SETTINGS)
    record, found = results[None]
    model = plain_model(engine)
    wanted = [
        one_at_a_time(
            model,
            coder.prompt_ids(dataclasses.replace(item, prompt=context)),
            coder.answer_ids(item.completion, item),
        )
        for context in item.contexts
    ]
    assert found[0].option_logprobs == pytest.approx(wanted, abs=1e-3)
    assert [result.score for result in found] in ([1.0, 0.0], [0.0, 1.0])
    assert set(record.metrics) == {"acc"}
    assert results[other.name][1][0].option_logprobs != found[0].option_logprobs


@pytest.mark.parametrize("metric", ["acc_norm", "acc_bytes", "acc_token", "letter"])
def test_the_primary_metric_is_the_metric_of_the_same_name(metric: str) -> None:
    task = loaded(lettered(choice_items()), "option_text", "{question}\n{options}")
    task = dataclasses.replace(task, spec=dataclasses.replace(task.spec, primary_metric=metric))
    record, found = evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)[None]
    assert record.metric == metric
    assert record.score == record.metrics[metric]
    assert record.score == pytest.approx(sum(item.score for item in found) / len(found))
