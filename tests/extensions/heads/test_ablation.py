"""The fast ablation gives what scoring again from scratch gives."""

import itertools
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_worlds import adapter, base, choice_items, encoder, joined_of, lettered, loaded

from rankscope.config.study import EvaluateConfig
from rankscope.errors import UserError
from rankscope.evaluate.context_window import EncodedSplit
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.likelihood import continuation_logprobs, row_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.evaluate.token_trees import Floats, TokenTree
from rankscope.extensions.heads.ablation import ablate, single_heads, whole_layers, zeroed
from rankscope.extensions.heads.layout import HeadLayout, HeadModel
from rankscope.extensions.heads.tasks import LOGPROB_PER_TOKEN, head_task, token_trees

from ...test_benchmarks import LinesOf

TOLERANCE = 1e-4
"""Nats, of sums of log-probabilities of up to 100 nats in float32."""


@pytest.fixture(scope="module")
def world() -> HeadModel:
    """Three layers: what items begin with has to leave one and enter another before a third."""
    made = base(num_layers=3)
    tuned = adapter(made, 4, seed=0)
    made.multi_lora.attach(tuned)
    return HeadModel(made, HeadLayout.of(made.model), tuned.name)


def split_of(scorer: str) -> EncodedSplit:
    items = choice_items() if scorer != "option_letter" else lettered(choice_items())
    if scorer == "shared":  # all begin alike, one of them with nothing more
        begun = "Question: the cat sat on the mat and the other"
        prompts = [begun, *(f"{begun} {item.prompt}" for item in items[1:])]
        items = tuple(replace(i, prompt=p) for i, p in zip(items, prompts, strict=True))
        scorer = "option_text"
    if scorer in ("few-shot", "few-shot loss"):  # worth a row of its own, seen by all items
        examples = "Question: the cat sat on the mat and the other. " * 6
        items = tuple(replace(i, prompt=examples + i.prompt) for i in items)
        scorer = "loss" if scorer.endswith("loss") else "option_text"
    return encode_split(encoder(), loaded(items, scorer), "test", 256, EvaluateConfig())


def from_scratch(model: HeadModel, split: EncodedSplit) -> list[Floats]:
    base, name = model.base, model.adapter_name
    with torch.inference_mode():
        if split.scorer.name == "loss":
            logprobs = row_logprobs(base, [row for (row,) in split.encoded], [name], 4096)[name]
            return [np.array([total]) for total in logprobs.totals]
        questions = [question for (question,) in split.encoded]
        values = continuation_logprobs(base, questions, [name], 4096)[name].values
    return [v[: len(i.choices)] for v, i in zip(values, split.items, strict=True)]


def largest_gap(first: list[Floats], second: list[Floats]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "scorer", ["option_text", "option_letter", "loss", "shared", "few-shot", "few-shot loss"]
)
@pytest.mark.parametrize("is_tuned", [False, True])
def test_every_ablation_equals_scoring_again_from_scratch(
    world: HeadModel, scorer: str, is_tuned: bool
) -> None:
    """In one pass and in several."""
    model = world if is_tuned else replace(world, adapter_name=None)
    layout, split = model.layout, split_of(scorer)
    ablations = [
        *single_heads(layout),
        *whole_layers(layout),
        whole_layers(layout)[0] + whole_layers(layout)[1],
        ((0, 0), (0, 1)),
        ((0, 3), (1, 0), (1, 2)),
    ]
    intact, expected = from_scratch(model, split), []
    for ablation in ablations:
        with zeroed(model, ablation):
            expected.append(from_scratch(model, split))
        assert largest_gap(expected[-1], intact) > 10 * TOLERANCE  # it did remove something
    for batch_tokens in (4096, 150):
        model = replace(model, batch_tokens=batch_tokens)
        again, ablated = ablate(model, token_trees(split), ablations)
        assert largest_gap(again, intact) < TOLERANCE
        for scores, reference in zip(ablated, expected, strict=True):
            assert largest_gap(scores, reference) < TOLERANCE
            assert [int(v.argmax()) for v in scores] == [int(v.argmax()) for v in reference]


def test_an_ablation_begins_at_its_layer_and_computes_a_common_beginning_once(
    world: HeadModel,
) -> None:
    model = replace(world, adapter_name=None)
    trees = token_trees(split_of("few-shot"))
    columns = zip(*(tree.ids for tree in trees), strict=False)
    beginning = sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))
    assert beginning > 60
    rest = sum(len(tree.ids) - beginning for tree in trees)
    tokens = [0, 0, 0]  # By layer
    with ExitStack() as hooks:
        for layer in model.layout:
            attention = model.base.model.get_submodule(layer.attention)

            def count(*seen: Any, at: int = layer.index) -> None:
                tokens[at] += seen[2][0].shape[1]

            hooks.callback(attention.register_forward_hook(count).remove)
        ablate(model, trees, [((1, 1),)])
    intact = beginning + rest
    assert tokens == [intact, 2 * intact, 2 * intact]


def test_equal_options_are_one_and_tie() -> None:
    question = Question([5, 6, 7], [(8, 9), (10, 11, 12), (8, 9), (13,), (10, 11, 12)])
    tree = TokenTree.of_question(question.prompt, question.continuations, gold=4)
    assert tree.ids == (5, 6, 7, 8, 10, 11)
    assert tree.branches == (1, 2, 0, 0, 0)
    by_option = [[(k, t) for k, t, c in tree.targets if c == option] for option in range(5)]
    assert by_option[0] == by_option[2]
    assert by_option[1] == by_option[4] == [(0, 10), (2, 11), (3, 12)]
    row = tree.gold_row()
    assert row.ids == (5, 6, 7, 10, 11)
    assert row.keep == (2, 3, 4)
    assert [token for _, token, _ in row.targets] == [10, 11, 12]


def test_removing_no_head_changes_no_bit(world: HeadModel) -> None:
    split = split_of("option_text")
    trees = token_trees(split)
    intact, _ = ablate(world, trees, [((1, 0),)])
    before = from_scratch(world, split)
    with zeroed(world, ()):
        assert largest_gap(before, from_scratch(world, split)) == 0
    # The ablation leaves nothing behind either.
    assert largest_gap(intact, ablate(world, trees, [])[0]) == 0


def test_a_joined_task_whose_parts_are_asked_differently_is_scored_by_likelihood() -> None:
    """Parts alike are scored as they are asked, whatever the order."""
    context, settings = 256, EvaluateConfig(too_long="truncate_left")
    letters = loaded(lettered(choice_items()), "option_letter", "{question}\n{options}")
    texts = loaded(choice_items(), "option_text")
    metrics = [
        head_task(context, encoder(), joined_of(*parts), 6, settings).metric
        for parts in ((texts, texts), (letters, texts), (texts, letters))
    ]
    assert metrics == ["acc", LOGPROB_PER_TOKEN, LOGPROB_PER_TOKEN]


def test_items_beyond_the_context_are_cut_if_the_study_allows_it() -> None:
    items = list(choice_items())
    items[3] = replace(items[3], prompt="the " * 300)
    task = loaded(tuple(items), "option_text")
    with pytest.raises(UserError, match="do not fit"):
        head_task(256, encoder(), task, 6, EvaluateConfig())
    found = head_task(256, encoder(), task, 6, EvaluateConfig(too_long="truncate_left"))
    assert len(found.trees) == 6


@pytest.mark.usefixtures("minutes")
def test_the_benchmark_prints_its_line(lines_of: LinesOf) -> None:
    options = "--model pocket --task pocket_cloze --items 12 --dtype float32 --pairs 1"
    (line,) = lines_of("heads", *options.split())
    assert line["parity"] <= 1e-4
    assert not line["predictions_that_differ"]
