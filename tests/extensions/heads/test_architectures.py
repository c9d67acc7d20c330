"""The column of heads in docs/your-model-and-data.md, against scoring with heads set to zero."""

from functools import partial
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES

from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers.scorer import Question
from rankscope.evaluate.token_trees import TokenTree
from rankscope.extensions.heads.ablation import ablate, zeroed
from rankscope.extensions.heads.layout import HeadLayout, HeadModel

from ...models.test_architectures import base_with, check_cell, token_rows


def check_heads(architecture: str, folder: Path) -> None:
    """An ablation continued from the middle, against scoring again with a head set to zero."""
    base = base_with(architecture)
    model = HeadModel(base, HeadLayout.of(base.model))
    questions = [Question(ids, [[5], [6, 7, 8]]) for ids in token_rows()]
    trees = [TokenTree.of_question(q.prompt, q.continuations) for q in questions]
    for heads in (((0, 1),), ((1, 2),), ((0, 3), (1, 0))):
        with zeroed(model, heads), torch.inference_mode():
            expected = continuation_logprobs(base, questions, [None], 4096)[None].values
        _, (found,) = ablate(model, trees, [heads])
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture(architecture: str, tmp_path: Path) -> None:
    check_cell(architecture, "heads", partial(check_heads, architecture, tmp_path))
