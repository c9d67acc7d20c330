"""First-order importance of attention heads against exact ablation, by Spearman's correlation.

    python evidence/judges/head_importance.py [--items 200] [--layers 2,7,12]

Every head of the layers is removed by itself. ``reliability`` says how far another draw of items
would order the heads alike. Prints one line of JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(1, str(Path(__file__).parents[2] / "benchmarks"))

from heads import World, command_line, world
from race import heading, rounded
from rankscope.device import keep_freed_memory
from rankscope.evaluate.token_trees import Floats
from rankscope.extensions.heads.ablation import ablate, single_heads
from rankscope.extensions.heads.measures import head_importance

SPLITS = 200
"""Random halvings of the items."""


def judged(w: World, layers: list[int]) -> dict[str, object]:
    """Rank correlations over all heads and layer by layer."""
    ablations = [a for a in single_heads(w.heads.layout) if a[0][0] in layers]
    begun = time.perf_counter()
    importance = head_importance(w.heads, w.task.trees)
    seconds = time.perf_counter() - begun
    intact, ablated = ablate(w.heads, w.task.trees, ablations)
    gold = w.task.gold(intact)
    rises = np.array([gold - w.task.gold(v) for v in ablated])  # of the loss, (heads, items)
    right = w.task.scores(intact).mean()
    falls = np.array([right - w.task.scores(v).mean() for v in ablated])
    signed = np.array([importance[a][:, h].numpy() for ((a, h),) in ablations])
    exact, first = np.abs(rises).mean(1), np.abs(signed).mean(1)
    by_layer = [np.array([at for ((at, _),) in ablations]) == layer for layer in layers]
    norms = np.concatenate([first[own] / np.linalg.norm(first[own]) for own in by_layer])
    within = [spearman(first[own], exact[own]) for own in by_layer]
    return {
        "heads": len(ablations),
        "items": len(w.task.trees),
        "seconds_importance": seconds,
        "spearman": spearman(first, exact),
        "spearman_layer_normalized": spearman(norms, exact),
        "spearman_within_layers_mean": float(np.mean(within)),
        "spearman_by_layer": dict(zip(map(str, layers), within, strict=True)),
        "spearman_signed_mean": spearman(-signed.mean(1), rises.mean(1)),
        "spearman_accuracy_fall": spearman(first, falls),
        "reliability": {
            "exact": reliability(np.abs(rises)),
            "importance": reliability(np.abs(signed)),
        },
    }


def reliability(per_item: Floats) -> float:
    """How far another draw of items would order the heads alike, by their means over items.

    Spearman and Brown's 2 r / (1 + r), r the mean rank correlation between random halves of the
    items. ``per_item`` is (heads, items).
    """
    drawn, found = np.random.default_rng(0), []
    for _ in range(SPLITS):
        halves = np.array_split(drawn.permutation(per_item.shape[1]), 2)
        found.append(spearman(*(per_item[:, half].mean(1) for half in halves)))
    r = float(np.mean(found))
    return 2 * r / (1 + r)


def spearman(a: object, b: object) -> float:
    """Rank correlation."""
    return float(spearmanr(a, b).statistic)


def main() -> None:
    options: argparse.Namespace = command_line(str(__doc__), items=200).parse_args()
    keep_freed_memory()
    w = world(options)
    every = list(range(len(w.heads.layout)))
    layers = [int(part) for part in options.layers.split(",")] if options.layers else every
    head = heading("head_importance", w.heads.base.record.dtype)
    print(json.dumps(rounded({**head, **judged(w, layers)})))


if __name__ == "__main__":
    main()
