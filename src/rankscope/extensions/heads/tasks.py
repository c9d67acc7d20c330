"""The items of a task, prepared for measuring attention heads on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import EncodedRow, Encoder
from rankscope.data.tasks import LoadedTask
from rankscope.evaluate.context_window import EncodedSplit
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.metrics import first_best
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import Scorer
from rankscope.evaluate.token_trees import Floats, TokenTree

LOGPROB_PER_TOKEN = "logprob_per_token"  # Gold answer's score, for items without options


@dataclass(frozen=True, slots=True)
class HeadTask:
    name: str
    metric: str
    trees: tuple[TokenTree, ...]

    def scores(self, values: Sequence[Floats]) -> Floats:
        """Return the primary score of every item, from log-probabilities of its continuations."""
        if self.metric == LOGPROB_PER_TOKEN:
            counts = [len(tree.targets) for tree in self.trees]
            return np.array([v[0] / n for v, n in zip(values, counts, strict=True)])
        hits = [
            first_best(v.tolist()) == tree.gold for v, tree in zip(values, self.trees, strict=True)
        ]
        return np.array(hits, dtype=np.float64)

    def gold(self, values: Sequence[Floats]) -> Floats:
        """Return the log-probability of every item's right answer, nats."""
        return np.array([v[tree.gold] for v, tree in zip(values, self.trees, strict=True)])


def head_task(
    context: int | None,
    encoder: Encoder,
    task: LoadedTask,
    max_items: int,
    settings: EvaluateConfig,
) -> HeadTask:
    """Prepare the first test items of a task, for a model with a context of ``context`` tokens.

    Tasks with generated answers are scored by the likelihood of the gold answer, and so are
    mixtures whose parts have different scorers.
    """
    first = replace(task, test=task.test[:max_items])
    has_contexts = any(item.contexts for item in first.test)
    specs = [part.spec for part in task.parts or (task,)]
    has_one_format = len({(spec.scorer, spec.lists_options) for spec in specs}) == 1
    scorer = get_scorer(task.spec.scorer)
    if scorer.scores_one_row and has_one_format and not has_contexts:
        encoded = encode_split(encoder, first, "test", context, settings)
        metric = scorer.default_metric
    else:
        loss = Scorer[Any].of("loss")
        encoded = encode_split(encoder, first, "test", context, settings, loss)
        metric = LOGPROB_PER_TOKEN
    return HeadTask(task.spec.name, metric, tuple(token_trees(encoded)))


def token_trees(encoded: EncodedSplit) -> list[TokenTree]:
    """Return rows of text, or questions with the continuations that the primary metric compares."""
    if isinstance(encoded.encoded[0][0], EncodedRow):
        return [TokenTree.of_row(row) for (row,) in encoded.encoded]
    trees = []
    for item, (question,) in zip(encoded.items, encoded.encoded, strict=True):
        assert item.answer is not None
        compared = question.continuations[: len(item.choices)]
        trees.append(TokenTree.of_question(question.prompt, compared, item.answer))
    return trees


def related_tasks(tasks: Mapping[str, LoadedTask], trained_on: str) -> frozenset[str]:
    """Return the tasks that share items with a training task, itself included."""
    parts = {n: {n, *(part.spec.name for part in task.parts)} for n, task in tasks.items()}
    return frozenset(name for name, names in parts.items() if names & parts[trained_on])
