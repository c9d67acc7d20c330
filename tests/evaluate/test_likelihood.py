"""Continuations in trees after shared prefixes have the log p of a plain model, one at a time."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from architectures import WINDOWED, stock
from evaluation_worlds import adapter, base, merged, one_at_a_time, plain_model
from tiny_models import base_of
from torch import nn

from rankscope.evaluate import prefix_sharing as prefixes, token_trees
from rankscope.evaluate.likelihood import continuation_logprobs, prefix_groups
from rankscope.evaluate.prefix_sharing import _common_length as common_length, find_shared_prefixes
from rankscope.evaluate.scorers.scorer import Question
from rankscope.evaluate.token_trees import TokenTree


def trees_of(questions: list[Question]) -> list[TokenTree]:
    return [TokenTree.of_question(q.prompt, q.continuations) for q in questions]


def assert_plain(found: Sequence[np.ndarray], questions: list[Question], model: nn.Module) -> None:
    """Log p is that of a plain model which reads one continuation at a time."""
    for question, values in zip(questions, found, strict=True):
        prompt = list(question.prompt)
        expected = [one_at_a_time(model, prompt, list(ids)) for ids in question.continuations]
        assert values == pytest.approx(expected, rel=1e-5)


def test_passes_keep_their_bounds_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_trees, "MAX_LOGITS", 300 * 20)  # twenty kept positions per pass
    rng = np.random.default_rng(0)
    questions = [
        Question(
            rng.integers(3, 300, rng.integers(1, 30)).tolist(),
            [rng.integers(3, 300, rng.integers(1, 5)).tolist() for _ in range(3)],
        )
        for _ in range(20)
    ]
    engine = base()
    ((prefix, parts),) = prefix_groups(trees_of(questions), 64, engine)
    assert prefix is None
    assert sorted(i for members, _ in parts for i in members) == list(range(20))
    batches = [batch for _, batch in parts]
    for batch in batches:
        alone = len(batch.rows.lengths) == 1
        assert alone or sum(batch.rows.lengths) <= 64
        assert alone or len(batch.rows.keep) <= 20
    assert max(len(batch.rows.lengths) for batch in batches) > 1
    with torch.inference_mode():
        found = continuation_logprobs(engine, questions, [None], 64)[None]
    model = plain_model(engine)
    assert_plain(found.values, questions, model)
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
    groups = list(prefix_groups(trees_of(questions), batch_tokens, engine))
    # The question that is nothing but its examples keeps its last token.
    assert sorted(0 if prefix is None else prefix.lengths[0] for prefix, _ in groups) == [0, 40, 69]
    with torch.inference_mode():
        found = continuation_logprobs(engine, questions, [None, member.name], batch_tokens)
    for adapter_name, of in ((None, None), (member.name, member)):
        model = merged(engine, of)
        assert_plain(found[adapter_name].values, questions, model)
    # Of seven questions the first 40 tokens are computed once, of seven the first 69.
    alone = sum(len(q.prompt) + sum(len(i) - 1 for i in q.continuations) for q in questions)
    assert found[None].num_tokens == alone - 6 * 40 - 6 * 69


@pytest.mark.parametrize("architecture", WINDOWED)
def test_shared_prefixes_longer_than_the_window_change_no_score(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "PASS_TOKENS", 10)
    questions, model = few_shot_questions(), stock(architecture)
    with torch.inference_mode():
        engine = base_of(stock(architecture))
        found = continuation_logprobs(engine, questions, [None], 64)[None]
    assert_plain(found.values, questions, model)


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


def cost(prompts: list[list[int]], groups: list[tuple[int, tuple[int, ...]]]) -> int:
    """Tokens computed, with what each group of a prefix costs besides."""
    return sum(
        (length + prefixes.PASS_TOKENS if length else 0)
        + sum(len(prompts[i]) - length for i in members)
        for length, members in groups
    )


def best_cost(prompts: list[list[int]]) -> int:
    """Cheapest of all ways to put neighbors in sorted order together."""
    ordered = sorted(prompts)
    best = cost(ordered, [(0, tuple(range(len(ordered))))])
    for marks in itertools.product([False, True], repeat=len(ordered) - 1):
        groups: list[list[int]] = [[0]]
        for index, is_cut in enumerate(marks, 1):
            if is_cut:
                groups.append([])
            groups[-1].append(index)
        cuts = []
        for group in groups:
            length = min(
                (common_length(ordered[a], ordered[b]) for a, b in itertools.pairwise(group)),
                default=0,
            )
            saved = (len(group) - 1) * length - prefixes.PASS_TOKENS
            pays = saved > 0 and length >= prefixes.MIN_LENGTH
            cuts.append((length if pays else 0, tuple(group)))
        best = min(best, cost(ordered, cuts))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_no_other_cut_computes_fewer_tokens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "PASS_TOKENS", 3)
    monkeypatch.setattr(prefixes, "MIN_LENGTH", 2)
    rng = random.Random(seed)
    stems = [[rng.randrange(2) for _ in range(rng.randrange(6))] for _ in range(3)]
    prompts = [
        rng.choice(stems) + [rng.randrange(3) for _ in range(rng.randrange(1, 6))]
        for _ in range(rng.randrange(1, 9))
    ]
    found = find_shared_prefixes(prompts)
    assert sorted(i for _, members in found for i in members) == list(range(len(prompts)))
    for length, members in found:
        heads = {tuple(prompts[i][:length]) for i in members}
        assert len(heads) == 1
        assert all(len(prompts[i]) > length for i in members)
    assert cost(prompts, found) == best_cost(prompts)


def test_examples_before_questions_are_shared_and_short_beginnings_are_not() -> None:
    heads = [[1] * 300, [2] * 200]
    prompts = [[*heads[i % 2], 10 + i] for i in range(8)] + [[3, 4], [3, 5]]
    assert dict(find_shared_prefixes(prompts)) == {300: (0, 2, 4, 6), 200: (1, 3, 5, 7), 0: (8, 9)}


def test_one_token_of_each_prompt_is_left() -> None:
    assert common_length([1, 2, 3], [1, 2, 3]) == 2
    assert common_length([1, 2], [1, 2, 3]) == 1
    assert common_length([1], [1]) == 0
    assert common_length([4, 2, 3], [5, 2, 3]) == 0
