"""Every attention head removed by itself: from its layer on, against scoring again from scratch.

    python benchmarks/heads.py --data-dir DATA                 # the race, and how numbers differ
    python benchmarks/heads.py --data-dir DATA --dtype float32 --layers 7,22 --scratch-heads 4
    python benchmarks/heads.py --data-dir DATA --validate      # importance against exact ablation

The sides score the same items under the same model with the same heads removed:

- ours: ``analyses.heads.ablation.ablate``;
- from scratch: the product's own multiple-choice scorer, the head zeroed by a hook;
- plain: the same hook, every option with its prompt as a row of its own, as scripts do it.

The time of ours depends on the layer, nearly linearly, so that layers evenly spread around the
middle stand for all; the other two take the same time for every head, and few heads stand for all.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from race import rounded
from rankscope.config.study import EvaluateConfig, ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import load_task
from rankscope.device import (
    choose_device,
    choose_dtype,
    keep_freed_memory,
    provenance,
    use_deterministic,
)
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.likelihood import continuation_logprobs
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import Question
from rankscope.evaluate.token_trees import Floats, TokenTree
from rankscope.extensions.heads.ablation import Ablation, ablate, single_heads, zeroed
from rankscope.extensions.heads.layout import HeadLayout, HeadModel
from rankscope.extensions.heads.measures import head_importance
from rankscope.extensions.heads.tasks import HeadTask, token_trees
from rankscope.models.base import Row, RowBatch, batches_of
from rankscope.models.load import load_base

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}
"""Largest difference of a sum of log-probabilities between two sides, nats, by the base's dtype."""


@dataclass(frozen=True, slots=True)
class World:
    """A model, its heads, and the items."""

    heads: HeadModel
    task: HeadTask
    questions: tuple[Question, ...]

    @property
    def trees(self) -> tuple[TokenTree, ...]:
        """The items."""
        return self.task.trees


def world(options: argparse.Namespace) -> World:
    """Read model and items: plain prompts, options scored by their text."""
    keep_freed_memory()
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


def scratch(w: World, ablation: Ablation) -> list[Floats]:
    """Score again with the product's own scorer."""
    with torch.inference_mode(), zeroed(w.heads, ablation):
        return continuation_logprobs(w.heads.base, w.questions, [None], w.heads.batch_tokens)[
            None
        ].values


def plain(w: World, ablation: Ablation) -> list[Floats]:
    """Score again, every option with its prompt as a row of its own."""
    rows, targets = [], []
    for question in w.questions:
        for ids in question.continuations:
            first = len(question.prompt) - 1
            rows.append(Row([*question.prompt, *ids[:-1]], range(first, first + len(ids))))
            targets.append(ids)
    sums: list[float] = []
    with torch.inference_mode(), zeroed(w.heads, ablation):
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


def timed(side: object, *arguments: object) -> tuple[list[Floats], float]:
    """What a side gives, and its seconds."""
    assert callable(side)
    begun = time.perf_counter()
    return side(*arguments), time.perf_counter() - begun


def gap(first: list[Floats], second: list[Floats]) -> tuple[float, int]:
    """Largest difference, nats, and items whose most likely option is another."""
    pairs = list(zip(first, second, strict=True))
    return (
        max(float(np.abs(a - b).max()) for a, b in pairs),
        sum(int(a.argmax() != b.argmax()) for a, b in pairs),
    )


def race(w: World, layers: list[int], num_scratch: int, num_plain: int) -> dict[str, object]:
    """Time the sides and compare what they give."""
    ablations = [a for a in single_heads(w.heads.layout) if a[0][0] in layers]
    warm = w.trees[:8]
    ablate(w.heads, warm, ablations[:1])
    begun, computed = time.perf_counter(), time.process_time()
    _, ours = ablate(w.heads, w.trees, ablations)
    spent, computed = time.perf_counter() - begun, time.process_time() - computed
    seconds = spent / len(ablations)
    busy = computed / spent / torch.get_num_threads()
    places = np.linspace(0, len(ablations) - 1, num_scratch).round().astype(int).tolist()
    times: dict[str, list[float]] = {"scratch": [], "plain": []}
    begun, computed = time.perf_counter(), time.process_time()
    gaps, flips, margin = [], 0, []
    noise, noise_flips = [], 0
    for count, place in enumerate(places):
        values, spent = timed(scratch, w, ablations[place])
        times["scratch"].append(spent)
        apart, changed = gap(ours[place], values)
        gaps.append(apart)
        flips += changed
        margin += closest(ours[place], values)
        if count < num_plain:
            others_values, spent = timed(plain, w, ablations[place])
            times["plain"].append(spent)
            gaps.append(gap(ours[place], others_values)[0])
            rounding, changed = gap(values, others_values)
            noise.append(rounding)
            noise_flips += changed
    others = (time.process_time() - computed) / (time.perf_counter() - begun)
    per_scratch, per_plain = np.mean(times["scratch"]), np.mean(times["plain"])
    return {
        "ratio": float(per_scratch) / seconds,
        "ratio_plain": float(per_plain) / seconds,
        "seconds_per_head": seconds,
        "seconds_per_head_scratch": float(per_scratch),
        "seconds_per_head_plain": float(per_plain),
        "cores_busy": {"ours": busy, "others": others / torch.get_num_threads()},
        "seconds_scratch": {str(p): t for p, t in zip(places, times["scratch"], strict=True)},
        "heads": len(ablations),
        "layers": layers,
        "items": len(w.trees),
        "tokens": sum(len(tree.ids) for tree in w.trees),
        "parity": max(gaps),
        "parity_of_the_others": max(noise),
        "predictions_that_differ_of_the_others": noise_flips,
        "predictions_of_the_others": len(noise) * len(w.trees),
        "parity_tolerance": TOLERANCE[w.heads.base.model.dtype],
        "predictions": len(places) * len(w.trees),
        "predictions_that_differ": flips,
        "largest_margin_of_those": max(margin, default=0.0),
    }


def closest(first: list[Floats], second: list[Floats]) -> list[float]:
    """Of items whose most likely option differs, how far its rival is behind, nats."""
    return [
        float(a.max() - a[b.argmax()])
        for a, b in zip(first, second, strict=True)
        if a.argmax() != b.argmax()
    ]


def validate(w: World, layers: list[int], save: Path | None) -> dict[str, object]:
    """Spearman's rank correlations of first-order importance with exact ablation."""
    ablations = [a for a in single_heads(w.heads.layout) if a[0][0] in layers]
    begun = time.perf_counter()
    importance = head_importance(w.heads, w.trees)
    seconds = time.perf_counter() - begun
    intact, ablated = ablate(w.heads, w.trees, ablations)
    gold = w.task.gold(intact)
    rises = np.array([gold - w.task.gold(v) for v in ablated])  # of the loss, (heads, items)
    right = w.task.scores(intact).mean()
    falls = np.array([right - w.task.scores(v).mean() for v in ablated])
    signed = np.array([importance[a][:, h].numpy() for ((a, h),) in ablations])
    exact, first = np.abs(rises).mean(1), np.abs(signed).mean(1)
    by_layer = [np.array([at for ((at, _),) in ablations]) == layer for layer in layers]
    norms = np.concatenate([first[own] / np.linalg.norm(first[own]) for own in by_layer])
    worst = np.argsort(-exact)[:10]
    if save is not None:
        np.savez(save, signed=signed, rises=rises, falls=falls, layers=layers)
    return {
        "heads": len(ablations),
        "items": len(w.trees),
        "seconds_importance": seconds,
        "spearman": spearman(first, exact),
        "spearman_layer_normalized": spearman(norms, exact),
        "spearman_within_layers_mean": float(
            np.mean([spearman(first[own], exact[own]) for own in by_layer])
        ),
        "spearman_by_layer": {
            str(layer): spearman(first[own], exact[own])
            for layer, own in zip(layers, by_layer, strict=True)
        },
        "reliability": {
            "exact": reliability(np.abs(rises)),
            "importance": reliability(np.abs(signed)),
            "exact_signed": reliability(rises),
            "importance_signed": reliability(signed),
        },
        "spearman_signed_mean": spearman(-signed.mean(1), rises.mean(1)),
        "spearman_accuracy_fall": spearman(first, falls),
        "spearman_without_layer_0": spearman(first[~by_layer[0]], exact[~by_layer[0]])
        if layers[0] == 0
        else None,
        "accuracy": float(right),
        "largest": {
            f"{ablations[i][0][0]}.{ablations[i][0][1]}": {
                "loss_change": float(exact[i]),
                "first_order": float(first[i]),
                "rank_by_importance": int((first > first[i]).sum()) + 1,
                "accuracy_fall": float(falls[i]),
            }
            for i in worst
        },
    }


SPLITS = 200
"""Random halvings of the items."""


def reliability(per_item: Floats) -> float:
    """How far another draw of items would order the heads alike, by their means over items.

    Spearman and Brown's 2 r / (1 + r), r the mean rank correlation between random halves of the
    items. ``per_item`` is (heads, items).
    """
    drawn = np.random.default_rng(0)
    found = []
    for _ in range(SPLITS):
        order = drawn.permutation(per_item.shape[1])
        half = len(order) // 2
        parts = (order[:half], order[half:])
        found.append(spearman(*(per_item[:, part].mean(1) for part in parts)))
    r = float(np.mean(found))
    return 2 * r / (1 + r)


def spearman(a: object, b: object) -> float:
    """Rank correlation."""
    return float(spearmanr(a, b).statistic)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 1 where the sides gave other numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--num-fewshot", type=int, default=0, help="answered questions before each")
    parser.add_argument("--layers", default="", help="such as 2,7,12; by default six, or all")
    parser.add_argument("--scratch-heads", type=int, default=6)
    parser.add_argument("--plain-heads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--save", type=Path, help="with --validate: an .npz of all values")
    options = parser.parse_args(arguments)
    w = world(options)
    every = list(range(len(w.heads.layout)))
    step = max(1, len(every) // 6)
    spread = every if options.validate else every[max(0, (len(every) - 1 - 5 * step) // 2) :: step]
    layers = [int(part) for part in options.layers.split(",")] if options.layers else spread
    here = provenance()
    result: dict[str, object] = {
        "benchmark": "heads_validate" if options.validate else "heads",
        "device": f"{here.processor}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "dtype": str(w.heads.base.model.dtype).removeprefix("torch."),
    }
    if options.validate:
        result |= validate(w, layers, options.save)
    else:
        result |= race(w, layers, options.scratch_heads, options.plain_heads)
    print(json.dumps(rounded(result)))
    if options.validate:
        return 0
    parity = result["parity"]
    assert isinstance(parity, float)
    if parity <= TOLERANCE[w.heads.base.model.dtype]:
        return 0
    print(f"no race: scores differ by {parity:.2g} nats", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
