"""Race: every attention head removed by itself, from its layer on, against scoring again.

    python benchmarks/heads.py
    python benchmarks/heads.py --dtype float32 --layers 7,22

The sides score the same items under the same model with the same heads removed:

- ours: ``extensions.heads.ablation.ablate``, all heads of some layers in one walk;
- from scratch: the product's own multiple-choice scorer, the head zeroed by a hook;
- plain: the same hook, every option with its prompt as a row of its own, as scripts do it.

The time of ours depends on the layer, nearly linearly, so that layers evenly spread around the
middle stand for all; the other two take the same time for every head, and few heads stand for all.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluation import DATA
from race import Segment, Turn, announce, heading, race
from rankscope.config.study import EvaluateConfig, ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import load_task
from rankscope.device import choose_device, choose_dtype, use_deterministic
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import Question
from rankscope.evaluate.token_trees import Floats
from rankscope.extensions.heads.ablation import Ablation, ablate, single_heads, zeroed
from rankscope.extensions.heads.layout import HeadLayout, HeadModel
from rankscope.extensions.heads.tasks import HeadTask, token_trees
from rankscope.models.base import Row, RowBatch, batches_of
from rankscope.models.load import load_base

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest difference of a sum of log-probabilities between two sides, nats, by the base's dtype."""
LAYERS = 6
"""Layers that stand for all."""
SAMPLED = {"scratch": 6, "plain": 2}
"""Heads of a turn of the peers."""


@dataclass(frozen=True, slots=True)
class World:
    """A model, its heads, and the items."""

    heads: HeadModel
    task: HeadTask
    questions: tuple[Question, ...]

    def ablations(self, layers: str) -> list[Ablation]:
        """Every head of the layers, such as ``2,7,12``; by default of six around the middle."""
        count = len(self.heads.layout)
        step = max(1, count // LAYERS)
        spread = range(max(0, (count - 1 - (LAYERS - 1) * step) // 2), count, step)
        chosen = [int(part) for part in layers.split(",")] if layers else spread
        return [a for a in single_heads(self.heads.layout) if a[0][0] in chosen]


def world(options: argparse.Namespace) -> World:
    """Read model and items: plain prompts, options scored by their text."""
    use_deterministic(0)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    base = load_base(ModelConfig.model_validate(options.model), device, dtype)
    settings = TaskConfig(name=options.task, num_fewshot=options.num_fewshot)
    task = load_task(settings, options.data_dir, 0, options.items)
    encoder = Encoder(base.tokenizer, "plain", 1024)
    encoded = encode_split(
        encoder, task, "test", context_length(base.model.config), EvaluateConfig()
    )
    trees = tuple(token_trees(encoded))
    questions = tuple(
        Question(q.prompt, q.continuations[: len(item.choices)])
        for (q,), item in zip(encoded.encoded, encoded.items, strict=True)
    )
    layout = HeadLayout.of(base.model)
    head_task = HeadTask(task.spec.name, get_scorer(task.spec.scorer).default_metric, trees)
    heads = HeadModel(base, layout, batch_tokens=options.batch_tokens)
    return World(heads, head_task, questions)


def ours(options: argparse.Namespace) -> Turn:
    """All heads in one walk, in which each branches off at its layer."""
    w = world(options)
    ablations = w.ablations(options.layers)

    def turn() -> Segment:
        begun = time.perf_counter()
        _, found = ablate(w.heads, w.task.trees, ablations)
        seconds = time.perf_counter() - begun
        chosen = sampled("scratch", ablations)
        return Segment(seconds, len(ablations), {str(i): found[i] for i in chosen})

    return turn


def scratch(options: argparse.Namespace) -> Turn:
    """Score again with the product's own scorer."""
    w = world(options)
    return by_hook(w, "scratch", lambda: scored(w), w.ablations(options.layers))


def plain(options: argparse.Namespace) -> Turn:
    """Score again, every option with its prompt as a row of its own."""
    w = world(options)
    return by_hook(w, "plain", lambda: scored_plainly(w), w.ablations(options.layers))


def by_hook(
    w: World, name: str, score: Callable[[], list[Floats]], ablations: list[Ablation]
) -> Turn:
    """Some heads, each zeroed by a hook."""
    chosen = sampled(name, ablations)

    def turn() -> Segment:
        found, begun = {}, time.perf_counter()
        for place in chosen:
            with torch.inference_mode(), zeroed(w.heads, ablations[place]):
                found[str(place)] = score()
        return Segment(time.perf_counter() - begun, len(chosen), found)

    return turn


def sampled(name: str, ablations: list[Ablation]) -> list[int]:
    """Places of the heads of a peer's turn, spread over all; the plain ones are the first."""
    every = np.linspace(0, len(ablations) - 1, SAMPLED["scratch"]).round().astype(int)
    return list(dict.fromkeys(every.tolist()))[: SAMPLED[name]]


def scored(w: World) -> list[Floats]:
    """Log-probabilities of the options by the product's own scorer."""
    asked = (w.heads.base, w.questions, [None], w.heads.batch_tokens)
    return continuation_logprobs(*asked)[None].values


def scored_plainly(w: World) -> list[Floats]:
    """Log-probabilities of the options, every option with its prompt as a row of its own."""
    rows, targets = [], []
    for question in w.questions:
        for ids in question.continuations:
            first = len(question.prompt) - 1
            rows.append(Row([*question.prompt, *ids[:-1]], range(first, first + len(ids))))
            targets.append(ids)
    sums: list[float] = []
    for batch in batches_of(rows, w.heads.batch_tokens):
        logits = w.heads.base.logits(RowBatch.of(batch, w.heads.base.device))
        logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
        at = 0
        for ids in targets[len(sums) : len(sums) + len(batch)]:
            wanted = torch.tensor(ids, device=logits.device)
            steps = torch.arange(at, at + len(ids), device=logits.device)
            sums.append(float(logprobs[steps, wanted].double().sum()))
            at += len(ids)
    bounds = np.cumsum([len(q.continuations) for q in w.questions])[:-1]
    return np.split(np.array(sums), bounds)


def apart(first: Segment, second: Segment) -> dict[str, float]:
    """Largest difference, nats, and how many items have another most likely option."""
    heads = [(first.found[head], second.found[head]) for head in second.found]
    pairs = [pair for of_head in heads for pair in zip(*of_head, strict=True)]
    return {
        "parity": float(np.max([np.abs(a - b).max() for a, b in pairs])),
        "predictions": len(pairs),
        "predictions_that_differ": sum(int(a.argmax() != b.argmax()) for a, b in pairs),
    }


def command_line(doc: str, items: int) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=items, help="in every turn")
    parser.add_argument("--num-fewshot", type=int, default=0, help="answered questions before each")
    parser.add_argument("--layers", default="", help="such as 2,7,12")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    return parser


def main() -> int:
    """Race, print, and exit with 1 where the sides gave other numbers."""
    parser = command_line(str(__doc__), items=40)
    parser.add_argument("--pairs", type=int, default=6, help="of turns, for each peer")
    options = parser.parse_args()
    device = choose_device(options.device)
    dtype = str(choose_dtype(options.dtype, device)).removeprefix("torch.")
    result, raced = race(ours, {"ratio": scratch, "ratio_plain": plain}, options, options.pairs)
    found = {name: apart(of.ours[0], of.theirs[0]) for name, of in raced.items()}
    result |= found["ratio"] | {"items": options.items}
    result["parity"] = float(np.max([of["parity"] for of in found.values()]))
    result["parity_tolerance"] = TOLERANCE[dtype]
    return announce({**heading("heads", dtype, device), **result})


if __name__ == "__main__":
    sys.exit(main())
