"""Likelihood of rows and of whole texts equals a plain model, one row at a time."""

import math

import pytest
import torch
from evaluation_worlds import (
    base,
    encoder,
    loaded,
    one_at_a_time,
    plain_model,
    text_items,
    tokenizer,
)

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import Item, Message
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.evaluate.scorers.loss import LossScorer
from rankscope.records import BASE

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def test_loss_equals_one_row_at_a_time() -> None:
    engine = base()
    record, items = evaluate_task(
        engine, encoder(), loaded(text_items(), "loss"), "test", {None: BASE}, SETTINGS
    )[None]
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
    engine, coder = base(), encoder(max_length=None)
    settings = SETTINGS.model_copy(update={"too_long": "truncate_left"})
    task = loaded((item,), "loss")
    record, (result,) = evaluate_task(engine, coder, task, "test", {None: BASE}, settings)[None]
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
    record, found = evaluate_task(engine, coder, task, "test", {None: BASE}, SETTINGS)[None]
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
        evaluate_task(engine, coder, asked, "test", {None: BASE}, SETTINGS)
