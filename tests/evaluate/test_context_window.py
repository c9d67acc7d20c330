"""Items longer than the context are refused or cut at their beginning, and counted."""

import dataclasses

import pytest
from evaluation_worlds import (
    base,
    choice_items,
    encoder,
    loaded,
    text_items,
)

from rankscope.config.study import EvaluateConfig
from rankscope.errors import UserError
from rankscope.evaluate.context_window import ContextWindow, EncodedSplit, fit_to_context
from rankscope.evaluate.evaluator import encode_split, evaluate_task, truncation_notes
from rankscope.evaluate.likelihood import Question
from rankscope.evaluate.scorers import get_scorer
from rankscope.records import BASE

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def test_items_beyond_the_context_are_counted_and_refused() -> None:
    items = list(choice_items())
    assert items[3].answer is not None
    items[3] = dataclasses.replace(items[3], prompt="the " * 300)
    items[1] = dataclasses.replace(items[1], prompt="1 " * 400)
    task = loaded(tuple(items), "option_text")
    with pytest.raises(UserError, match=r"2 of 6 items that do not fit .* 256 tokens.*toy/test/2"):
        evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)


def test_rows_scored_up_to_max_length_are_counted_and_noted() -> None:
    """By their likelihood; one that does not fit the context either counts once."""
    items = text_items()
    task = loaded((dataclasses.replace(items[0], completion="the " * 300), *items[1:]), "loss")
    short, cut = encoder(64), SETTINGS.model_copy(update={"too_long": "truncate_left"})
    record, _ = evaluate_task(base(), short, task, "test", {None: BASE}, SETTINGS)[None]
    assert record.truncated == 1
    note = "1 of 4 test items are longer than max_length = 64 tokens and scored up to there"
    whole = encode_split(short, task, "test", 256, SETTINGS)
    assert note in truncation_notes(whole, task, "test", 256, short)[0]
    both = encode_split(short, task, "test", 32, cut)
    assert (both.cut_at_start, both.cut_at_end, both.truncated) == ({0, 3}, {0}, 2)
    assert len(truncation_notes(both, task, "test", 32, short)) == 2
    with pytest.raises(UserError, match="context of 256 tokens"):
        encode_split(encoder(None), task, "test", 256, SETTINGS)


def test_long_prompts_are_refused_or_cut_at_their_beginning() -> None:
    item = choice_items()[0]
    question = Question([1, *range(10, 30)], [[5, 6], [7]])
    split = EncodedSplit(get_scorer("option_text"), (item,), [[question]])
    with pytest.raises(
        UserError, match="1 of 1 items that do not fit the model's context of 12 tokens"
    ):
        fit_to_context(split, ContextWindow(12, [1], 12), "refuse", "task")
    cut = fit_to_context(split, ContextWindow(12, [1], 12), "truncate_left", "task")
    # Ten tokens of prompt are left for the longest option's two: the begin token and the last 9.
    assert cut.encoded == [[Question([1, *range(21, 30)], [[5, 6], [7]])]]
    assert cut.truncated == 1
    assert fit_to_context(split, ContextWindow(23, [1], 12), "truncate_left", "task") is split
    with pytest.raises(UserError, match="an answer that fills"):
        fit_to_context(split, ContextWindow(2, [1], 12), "truncate_left", "task")
