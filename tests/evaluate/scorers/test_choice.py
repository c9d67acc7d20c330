"""Multiple choice equals a plain model that reads one whole option at a time."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from evaluation_worlds import (
    adapter,
    base,
    choice_items,
    encoder,
    evaluations_of,
    lettered,
    loaded,
    one_at_a_time,
    plain_model,
    scored,
    text_items,
    tokenizer,
)

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import LETTERS, Item, Message
from rankscope.errors import UserError
from rankscope.evaluate.metrics import choice_predictions, first_best, standard_error
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.loss import LossScorer
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
    found = evaluations_of(engine, encoder(), task, "test", adapter_names, settings)
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
        "toy/test/1", "the cat sat on 1", "and the other cat sat there.", ("18", "1"), 1,
        contexts=("the cat sat on 18", "the cat sat on 1"),
    )  # fmt: skip
    engine, coder = base(), encoder()
    other = adapter(engine, 4, seed=1)
    engine.multi_lora.attach(other)
    items = (item, dataclasses.replace(item, item_id="toy/test/2", answer=0))
    task = loaded(items, "option_text")
    models = {None: BASE, other.name: "other"}
    results = evaluations_of(engine, coder, task, "test", models, SETTINGS)
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
    record, found = scored(task)
    assert record.metric == metric
    assert record.score == record.metrics[metric]
    assert record.score == pytest.approx(sum(item.score for item in found) / len(found))


SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def test_loss_equals_one_row_at_a_time() -> None:
    engine = base()
    record, items = scored(loaded(text_items(), "loss"), engine)
    engine.model.set_attn_implementation("sdpa")
    sums, counts = [], []
    for item, result in zip(text_items(), items, strict=True):
        row = encoder().training_row(item, "completion")
        assert row is not None
        ids = torch.tensor([row.input_ids])
        logprobs = engine.model(ids).logits[0].double().log_softmax(-1)
        chosen = [
            float(logprobs[t - 1, row.input_ids[t]]) for t, kept in enumerate(row.is_label) if kept
        ]
        sums.append(sum(chosen))
        counts.append(len(chosen))
        assert result.gold_logprob == pytest.approx(sums[-1], rel=1e-5)
        assert result.score == pytest.approx(sums[-1] / counts[-1], rel=1e-5)
    assert record.metrics["logprob_per_token_pooled"] == pytest.approx(
        sum(sums) / sum(counts), rel=1e-5
    )
    num_bytes = sum(len(item.completion.encode()) for item in text_items())
    assert record.metrics["bits_per_byte"] == pytest.approx(-sum(sums) / num_bytes / math.log(2))
    assert record.metrics["perplexity"] == pytest.approx(math.exp(-sum(sums) / sum(counts)))
    # The end token is part of what is scored: the model must know when to stop.
    assert row.input_ids[-1] == tokenizer().eos_token_id
    assert row.is_label[-1]


def test_bytes_are_those_of_the_text_that_was_scored() -> None:
    """Of a conversation both answers; of a row cut at ``max_length`` what is left of its answer."""
    turns = (Message("user", "the cat"), Message("assistant", "é"), Message("user", "on"))
    talk = Item("toy/test/1", "on", "mat", messages=(*turns, Message("assistant", "mat")))
    long = Item("toy/test/2", "a", "1 2 3 4 5 6 7 8 9")
    coder, scorer = encoder(max_length=8), LossScorer()
    whole = encoder().training_row(talk, "completion")
    cut = coder.training_row(long, "completion")
    assert whole is not None
    assert cut is not None
    assert cut.truncated
    assert scorer.num_bytes(coder, talk, [whole], is_cut=False) == len("émat".encode())
    kept = coder.tokenizer.decode(
        [t for t, k in zip(cut.input_ids, cut.is_label, strict=True) if k]
    )
    num_bytes = scorer.num_bytes(coder, long, [cut], is_cut=True)
    assert num_bytes == len(kept.encode()) < len(long.completion)


def test_bytes_of_an_answer_cut_at_its_beginning_are_those_of_its_rest() -> None:
    item = Item("toy/test/1", "a", "1 2 3 " * 100)
    coder = encoder(max_length=None)
    record, (result,) = scored(loaded((item,), "loss"), coder=coder, too_long="truncate_left")
    assert record.truncated == 1
    row = coder.training_row(item, "completion")
    assert row is not None
    assert result.gold_tokens is not None
    rest = coder.tokenizer.decode(row.input_ids[-result.gold_tokens :], skip_special_tokens=True)
    assert len(rest) < len(item.completion)
    assert result.gold_logprob is not None
    bits = -result.gold_logprob / math.log(2)
    assert record.metrics["bits_per_byte"] == pytest.approx(bits / len(rest.encode()))


def test_perplexity_scores_every_token_once_whatever_the_window() -> None:
    texts = ("the cat sat on the mat", "日本語", "1 2 3 " * 30)
    items = tuple(Item(f"toy/test/{n}", "", text) for n, text in enumerate(texts))
    engine, coder = base(), encoder(max_length=16)
    task, model = loaded(items, "perplexity"), plain_model(engine)
    record, found = scored(task, engine, coder)
    total, count = 0.0, 0
    for text, result in zip(texts, found, strict=True):
        ids = coder.text_ids(text)
        whole = [coder.start_id, *ids]
        # 15 new tokens a window, after one token of the window before.
        wanted = sum(
            one_at_a_time(model, whole[at : at + 1], whole[at + 1 : at + 16])
            for at in range(0, len(ids), 15)
        )
        assert result.gold_logprob == pytest.approx(wanted, abs=1e-3)
        total, count = total + wanted, count + len(ids)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert record.metrics["logprob_per_token_pooled"] == pytest.approx(total / count, abs=1e-5)
    assert record.metrics["bits_per_byte"] == pytest.approx(-total / num_bytes / math.log(2))
    assert record.metrics["perplexity"] == pytest.approx(math.exp(-total / count), rel=1e-4)
    asked = loaded((Item("toy/test/1", "q", "a"),), "perplexity")
    with pytest.raises(UserError, match="only a field 'text'"):
        scored(asked)


def test_first_option_wins_ties_and_nan_wins_nothing() -> None:
    assert first_best([-2.0, -1.0, -1.0]) == 1
    assert first_best([-1.0, math.nan]) is None
    assert first_best([-math.inf, -1.0]) == 1


def test_each_normalization_can_pick_its_own_option() -> None:
    # Per option: -4.0, -4.5, -8.0 in all; -2.0, -4.5, -1.6 per token; -2.0, -0.9, -1.0 per letter.
    picks = choice_predictions([-4.0, -4.5, -8.0], [2, 1, 5], ["ab", "abcde", "abcdefgh"])
    assert picks == {"acc": 0, "acc_norm": 1, "acc_bytes": 1, "acc_token": 2}


def test_length_counts_characters_and_bytes_apart() -> None:
    # Three characters in nine bytes against six in six: -1.0 and -1.1 per character, -0.333 and
    # -1.1 per byte.
    picks = choice_predictions([-3.0, -6.6], [3, 6], ["日本語", "abcdef"])
    assert (picks["acc_norm"], picks["acc_bytes"]) == (0, 0)
    # -2.0 and -1.5 per character, -0.667 and -1.5 per byte.
    picks = choice_predictions([-6.0, -9.0], [3, 6], ["日本語", "abcdef"])
    assert (picks["acc_norm"], picks["acc_bytes"]) == (1, 0)


def test_standard_error() -> None:
    assert standard_error([1.0]) is None
    assert standard_error([0.0, 1.0]) == pytest.approx(0.5)
    # Scores 1, 2, 3, 4: variance 5/3 over n - 1, divided by 4.
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 12))
