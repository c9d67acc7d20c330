"""Perplexity, partial scoring, headlines, extractors and long items, against slow references."""

import dataclasses
import math

import pytest
import torch
from evaluation_worlds import adapter, base, choice_items, encoder, lettered, loaded

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import Item
from rankscope.data.tasks import LoadedTask
from rankscope.errors import UserError
from rankscope.evaluate.context_window import ContextWindow, EncodedSplit, fit_to_context
from rankscope.evaluate.continuous_batching import Generation
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.evaluate.likelihood import Question
from rankscope.evaluate.metrics import choice_predictions
from rankscope.evaluate.scorers import get_scorer
from rankscope.models.base import Base, Row, RowBatch
from rankscope.records import BASE

SETTINGS = EvaluateConfig(batch_tokens=64, max_new_tokens=12)


def logprob(engine: Base, prompt: list[int], answer: list[int]) -> float:
    """log p(answer | prompt), one row by itself."""
    ids = [*prompt, *answer]
    batch = RowBatch.of([Row(ids, range(len(prompt) - 1, len(ids) - 1))], engine.device)
    with torch.inference_mode():
        logs = torch.log_softmax(engine.logits(batch).float(), dim=-1)
    return float(logs[torch.arange(len(answer)), torch.tensor(answer)].double().sum())


def changed(task: LoadedTask, **changes: object) -> LoadedTask:
    return dataclasses.replace(task, spec=dataclasses.replace(task.spec, **changes))


def test_perplexity_scores_every_token_once_whatever_the_window() -> None:
    texts = ("the cat sat on the mat", "日本語", "1 2 3 " * 30)
    items = tuple(Item(f"toy/test/{n}", "", text) for n, text in enumerate(texts))
    engine, coder = base(), encoder(max_length=16)
    task = loaded(items, "perplexity")
    record, found = evaluate_task(engine, coder, task, "test", {None: BASE}, SETTINGS)[None]
    total, count = 0.0, 0
    for text, result in zip(texts, found, strict=True):
        ids = coder.text_ids(text)
        whole = [coder.start_id, *ids]
        # 15 new tokens a window, after one token of the window before.
        wanted = sum(
            logprob(engine, whole[at : at + 1], whole[at + 1 : at + 16])
            for at in range(0, len(ids), 15)
        )
        assert result.gold_logprob == pytest.approx(wanted, abs=1e-3)
        total, count = total + wanted, count + len(ids)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert record.metrics["logprob_per_token_pooled"] == pytest.approx(total / count, abs=1e-5)
    assert record.metrics["bits_per_byte"] == pytest.approx(-total / num_bytes / math.log(2))
    assert record.metrics["perplexity"] == pytest.approx(math.exp(-total / count), rel=1e-4)
    asked = loaded((Item("toy/test/1", "q", "a"),), "perplexity")
    with pytest.raises(UserError, match="scores whole texts"):
        evaluate_task(engine, coder, asked, "test", {None: BASE}, SETTINGS)


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
    wanted = [
        logprob(
            engine,
            coder.prompt_ids(dataclasses.replace(item, prompt=context)),
            coder.answer_ids(item.completion, item),
        )
        for context in item.contexts
    ]
    assert found[0].option_logprobs == pytest.approx(wanted, abs=1e-3)
    assert [result.score for result in found] in ([1.0, 0.0], [0.0, 1.0])
    assert set(record.metrics) == {"acc"}
    assert results[other.name][1][0].option_logprobs != found[0].option_logprobs


def test_bytes_and_characters_pick_differently() -> None:
    # -9 over 3 characters (9 bytes) against -5 over 2 (2 bytes): per character -3 and -2.5, per
    # byte -1 and -2.5.
    picks = choice_predictions([-9.0, -5.0], [3, 1], ["日本語", "ab"])
    assert picks == {"acc": 1, "acc_norm": 1, "acc_bytes": 0, "acc_token": 0}


@pytest.mark.parametrize("metric", ["acc_norm", "acc_bytes", "acc_token", "letter"])
def test_a_headline_is_the_metric_of_the_same_name(metric: str) -> None:
    task = changed(
        loaded(lettered(choice_items()), "option_text", "{question}\n{options}"),
        primary_metric=metric,
    )
    record, found = evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)[None]
    assert record.metric == metric
    assert record.score == record.metrics[metric]
    assert record.score == pytest.approx(sum(item.score for item in found) / len(found))


def test_extractors_compare_the_part_they_find() -> None:
    def written(text: str) -> Generation:
        return Generation(None, 0, [], 1, stopped=True, text=text)

    items = tuple(Item(f"x/{n}", "q", "So the answer is Blue.", reference="") for n in range(4))
    texts = ["I say the answer is blue, not red", "the answer is red", "blue", ""]
    spec = dataclasses.replace(loaded(items, "exact_match").spec, extract=r"answer is (\w+)")
    scores = get_scorer("exact_match").judge(items, [written(text) for text in texts], spec)
    assert [item.score for item in scores.items] == [1.0, 0.0, 0.0, 0.0]
    assert scores.items[0].gold == "blue"
    assert scores.metrics == {"stopped": 1.0, "exact_match": 0.25, "answered": 0.5}
    numbers = (Item("x/1", "q", "so #### 1,234", reference="1234"),)
    spec = dataclasses.replace(spec, extract=r"A: \S+")
    scores = get_scorer("number").judge(numbers, [written("A: $1,234.00 or 7")], spec)
    assert [item.score for item in scores.items] == [1.0]


def test_stop_strings_of_the_task_end_answers() -> None:
    items = tuple(Item(f"toy/test/{n}", f"the cat {n}", "sat") for n in range(4))
    task = loaded(items, "exact_match")
    free = evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)[None][1]
    texts = [result.generated or "" for result in free]
    stop = next(c for text in texts for c in text if c.isascii())
    cut = changed(task, stop=(stop,))
    found = evaluate_task(base(), encoder(), cut, "test", {None: BASE}, SETTINGS)[None][1]
    assert [result.generated for result in found] == [
        (result.generated or "").partition(stop)[0] for result in free
    ]


def test_scores_without_leaked_rows() -> None:
    items = choice_items()
    task = dataclasses.replace(
        loaded(items, "option_text"), contaminated_ids=frozenset({items[0].item_id, "gone"})
    )
    record, found = evaluate_task(base(), encoder(), task, "test", {None: BASE}, SETTINGS)[None]
    kept = [item.score for item in found[1:]]
    assert record.without_contamination is not None
    assert (record.without_contamination.contaminated, record.without_contamination.n) == (1, 5)
    assert record.without_contamination.score == pytest.approx(sum(kept) / 5)
    assert record.score == pytest.approx(sum(item.score for item in found) / 6)
    chosen, _ = evaluate_task(base(), encoder(), task, "validation", {None: BASE}, SETTINGS)[None]
    assert chosen.without_contamination is None


def test_long_prompts_are_refused_or_cut_at_their_beginning() -> None:
    item = choice_items()[0]
    question = Question([1, *range(10, 30)], [[5, 6], [7]])
    split = EncodedSplit(get_scorer("option_text"), (item,), [[question]])
    with pytest.raises(UserError, match="1 of 1 items do not fit the model's context of 12 tokens"):
        fit_to_context(split, ContextWindow(12, [1], 12), "refuse", "task")
    cut = fit_to_context(split, ContextWindow(12, [1], 12), "truncate_left", "task")
    # Ten tokens of prompt are left for the longest option's two: the begin token and the last 9.
    assert cut.encoded == [[Question([1, *range(21, 30)], [[5, 6], [7]])]]
    assert cut.truncated == 1
    assert fit_to_context(split, ContextWindow(23, [1], 12), "truncate_left", "task") is split
    with pytest.raises(UserError, match="the answer fills"):
        fit_to_context(split, ContextWindow(2, [1], 12), "truncate_left", "task")
