"""Prompts are grouped by what they begin with where that saves tokens, against trying every cut."""

import itertools
import random

import pytest

from rankscope.evaluate import prefix_sharing as prefixes
from rankscope.evaluate.prefix_sharing import common_length, find_shared_prefixes


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
