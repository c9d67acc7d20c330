"""How far two sides agree on what they scored or wrote; no model is needed here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rankscope.evaluate.metrics import choice_predictions

Side = Mapping[str, Any]


def choice_agreement(
    questions: Sequence[Mapping[str, Any]], ours: Side, theirs: Side
) -> dict[str, Any]:
    """Largest difference of an option's log p, and the share of items with the same prediction.

    Every metric counts its own predictions: ``acc`` by log p, ``acc_norm`` per character,
    ``acc_bytes`` per byte. ``differences`` lists each item predicted otherwise, with the margin by
    which ours preferred its option, in the metric's unit.
    """
    largest = 0.0
    same: dict[str, list[bool]] = {}
    differences = []
    for model, (own, other) in enumerate(zip(ours["logprobs"], theirs["logprobs"], strict=True)):
        for number, (question, a, b) in enumerate(zip(questions, own, other, strict=True)):
            # Not max(): it passes over NaN.
            largest = float(np.max([largest, *(np.abs(np.subtract(a, b)))]))
            texts = [answer.removeprefix(" ") for answer in question["answers"]]
            picks = [choice_predictions(x, [1] * len(x), texts) for x in (a, b)]
            for metric in ("acc", "acc_norm", "acc_bytes"):
                mine, their = (pick[metric] for pick in picks)
                same.setdefault(metric, []).append(mine == their)
                if mine is not None and their is not None and mine != their:
                    sizes = {"acc": lambda t: 1, "acc_norm": len}.get(
                        metric, lambda t: len(t.encode())
                    )
                    units = [value / sizes(text) for value, text in zip(a, texts, strict=True)]
                    margin = units[mine] - units[their]
                    differences.append(
                        {"model": model, "item": number, "metric": metric, "margin": margin}
                    )
    ids = [one == two for one, two in zip(ours["tokens"], theirs["tokens"], strict=True)]
    return {
        "parity": largest,
        "same_prediction": {metric: sum(all_) / len(all_) for metric, all_ in same.items()},
        "differences": differences,
        "same_tokens": sum(ids) / len(ids),
    }


def text_agreement(ours: Side, theirs: Side) -> float:
    """Share of texts that are the same, over all models."""
    pairs = [
        pair
        for own, other in zip(ours["texts"], theirs["texts"], strict=True)
        for pair in zip(own, other, strict=True)
    ]
    return sum(one == two for one, two in pairs) / len(pairs)
