"""Options scored from cached prompts equal a plain model reading one whole option at a time."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_worlds import (
    adapter,
    base,
    choice_item,
    choice_items,
    encoder,
    lettered,
    loaded,
    merged,
    plain_model,
)
from peft import PeftModel
from transformers import LlamaForCausalLM

from rankscope.config.study import EvaluateConfig
from rankscope.data.items import LETTERS, Item
from rankscope.errors import UserError
from rankscope.evaluate import likelihood
from rankscope.evaluate import prefix_sharing as prefixes
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.evaluate.likelihood import Question, continuation_logprobs, prefix_groups
from rankscope.evaluate.scorers import get_scorer
from rankscope.models.adapters.folder import save_adapter
from rankscope.models.base import Base
from rankscope.records import BASE, ItemResult, TrialSpec


@torch.no_grad()
def one_at_a_time(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    """log p(answer | prompt): one row, one forward pass, no cache."""
    logprobs = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[len(prompt) + step - 1, token]) for step, token in enumerate(answer))


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


# PEFT asks transformers for a property that is to be renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_adapter_equals_its_merged_weights(tmp_path: Path) -> None:
    engine = base()
    stock = plain_model(engine)
    group = [adapter(engine, rank, seed=rank) for rank in (1, 4, 16)]
    for member in group:
        engine.multi_lora.attach(member)
    results = score(engine, choice_items(), "option_text", "{question}")
    for member in group:
        folder = tmp_path / member.name
        folder.mkdir()
        trial = TrialSpec(
            trial_id=member.name,
            task="toy",
            method="lora",
            rank=member.rank,
            alpha=member.alpha,
            lr=1e-3,
            targets=member.targets,
            dropout=0.0,
            seed=0,
        )
        save_adapter(member, trial, engine.record, folder)
        fresh = LlamaForCausalLM(copy.deepcopy(stock.config)).eval()
        fresh.load_state_dict(stock.state_dict())
        merged = PeftModel.from_pretrained(fresh, str(folder)).merge_and_unload()
        for item, result in zip(choice_items(), results[member.name], strict=True):
            assert result.option_logprobs == pytest.approx(
                reference(merged, item, item.choices), rel=1e-4
            )


def test_equal_options_tie_and_the_first_wins() -> None:
    # Items of the data room never repeat a choice; two texts of one token sequence still may tie.
    items = tuple(
        choice_item(answer + 1, "the cat", ("same", "same", "same"), answer) for answer in range(3)
    )
    results = score(base(), items, "option_text", "{question}")[None]
    assert [result.score for result in results] == [1.0, 0.0, 0.0]
    for result in results:
        assert len(set(result.option_logprobs)) == 1


def test_a_prefix_is_never_less_likely_than_what_it_begins() -> None:
    item = choice_item(1, "Question: how many?\nAnswer:", ("5", "57", "578"), 1)
    (result,) = score(base(), (item,), "option_text", "{question}")[None]
    tokens = [encoder().answer_ids(choice, item) for choice in item.choices]
    assert tokens[1][: len(tokens[0])] == tokens[0]
    assert tokens[2][: len(tokens[1])] == tokens[1]
    assert result.option_logprobs[0] > result.option_logprobs[1] > result.option_logprobs[2]


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (("a", ""), 0, "option '' has no tokens"),
        (("a",), 0, "found 1 choices"),
        (("a", "b"), None, "answer None"),
    ],
)
def test_unscorable_items_are_refused(
    choices: tuple[str, ...], answer: int | None, message: str
) -> None:
    # The prompt ends in a space, so that the empty option is not even a space of its own.
    item = Item("toy/test/7", "a ", "a", choices=choices, answer=answer)
    with pytest.raises(UserError, match=f"toy/test/7: .*{message}"):
        get_scorer("option_text").encode(
            encoder(), [item], loaded((item,), "option_text").spec, None
        )


def test_more_choices_than_letters_are_refused() -> None:
    item = choice_item(1, "pick", tuple(f"c{n}" for n in range(27)), 0)
    spec = loaded((item,), "option_letter", "{question}\n{options}").spec
    with pytest.raises(UserError, match="27 choices; letters name 26"):
        get_scorer("option_letter").encode(encoder(), [item], spec, None)


def test_passes_keep_their_bounds_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 300 * 20)  # twenty kept positions per pass
    rng = np.random.default_rng(0)
    questions = [
        Question(
            rng.integers(3, 300, rng.integers(1, 30)).tolist(),
            [rng.integers(3, 300, rng.integers(1, 5)).tolist() for _ in range(3)],
        )
        for _ in range(20)
    ]
    engine = base()
    (group,) = prefix_groups(questions, 64, 300, engine.device)
    assert group.prefix is None
    batches = group.batches
    assert sorted(index for batch in batches for index in batch.indices) == list(range(20))
    for batch in batches:
        alone = len(batch.indices) == 1
        assert alone or sum(batch.rows.lengths) <= 64
        assert alone or len(batch.rows.keep) <= 20
    assert max(len(batch.indices) for batch in batches) > 1
    with torch.inference_mode():
        found = continuation_logprobs(engine, questions, [None], 64)[None]
    model = plain_model(engine)
    for question, values in zip(questions, found.values, strict=True):
        expected = [
            one_at_a_time(model, list(question.prompt), list(ids)) for ids in question.continuations
        ]
        assert values == pytest.approx(expected, rel=1e-5)
    assert found.num_tokens == sum(
        len(q.prompt) + sum(len(ids) - 1 for ids in q.continuations) for q in questions
    )


def few_shot_questions() -> list[Question]:
    """Two subjects of six questions after 40 and 70 tokens each, and three that stand alone."""
    rng = np.random.default_rng(1)

    def drawn(length: int) -> list[int]:
        return rng.integers(3, 300, length).tolist()

    def question(head: list[int]) -> Question:
        options = [drawn(length) for length in (1, 3, 2)]
        return Question([*head, *drawn(int(rng.integers(1, 12)))], [*options, options[1][:2]])

    heads = [drawn(40), drawn(70)]
    questions = [question(head) for head in heads for _ in range(6)]
    # One that ends where the shared tokens do, and one that repeats another.
    questions += [Question(heads[1], [[5], [6, 7]]), questions[2]]
    return [*questions, *(question(drawn(n)) for n in (1, 9, 30))]


@pytest.mark.parametrize("batch_tokens", [64, 4096])
def test_shared_prefixes_change_no_score(
    monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    monkeypatch.setattr(prefixes, "PASS_TOKENS", 10)
    engine = base()
    member = adapter(engine, 4, seed=4)
    engine.multi_lora.attach(member)
    questions = few_shot_questions()
    groups = list(prefix_groups(questions, batch_tokens, 300, engine.device))
    assert [group.prefix and group.prefix.lengths for group in groups].count(None) == 1
    shared = {group.prefix.lengths[0]: group for group in groups if group.prefix is not None}
    # The question that is nothing but its examples keeps its last token.
    assert sorted(shared) == [40, 69]
    with torch.inference_mode():
        found = continuation_logprobs(engine, questions, [None, member.name], batch_tokens)
    for adapter_name, of in ((None, None), (member.name, member)):
        model = merged(engine, of)
        for question, values in zip(questions, found[adapter_name].values, strict=True):
            expected = [
                one_at_a_time(model, list(question.prompt), list(ids))
                for ids in question.continuations
            ]
            assert values == pytest.approx(expected, rel=1e-5)
    # Of seven questions the first 40 tokens are computed once, of seven the first 69.
    alone = sum(len(q.prompt) + sum(len(i) - 1 for i in q.continuations) for q in questions)
    assert found[None].num_tokens == alone - 6 * 40 - 6 * 69


def test_an_adapter_that_changes_nothing_gives_the_bases_scores_bit_for_bit() -> None:
    engine = base()
    member = adapter(engine, 8, seed=1, size=0)
    other = adapter(engine, 2, seed=2)
    for one in (member, other):
        engine.multi_lora.attach(one)
    questions = few_shot_questions()
    with torch.inference_mode():
        mixed = continuation_logprobs(engine, questions, [None, other.name, member.name], 64)
        alone = continuation_logprobs(engine, questions, [other.name], 64)
    for adapter_name, same in ((member.name, mixed[None]), (other.name, alone[other.name])):
        for one, two in zip(mixed[adapter_name].values, same.values, strict=True):
            assert one.tolist() == two.tolist()
    assert mixed[None].values[0].tolist() != mixed[other.name].values[0].tolist()
