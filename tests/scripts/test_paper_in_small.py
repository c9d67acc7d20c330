"""The paper in small: its numbers are those of the records, and its judges find planted truths."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import paper_in_small
from claims_judges import FAILS, HOLDS
from paper_in_small import Study

TRAINED, SCORED = ("gsm8k", "medmcqa", "mathqa", "mmlu"), ("arc_easy",)
RANKS, RATE = (8, 32, 128), {True: 5e-5, False: 1e-3}
NUM_ITEMS = 30
Change = Callable[[int | None, str, str], float]
"""Of a rank (None: full), the task that was trained and the one that is tested, nats."""


def planted(folder: Path, change: Change, norm: Callable[[int], float] = math.log) -> Study:
    """Records of one seed, with .01 nats of noise by item; r = 8 has a second, bad rate."""
    noise, items, trials, matrices = np.random.default_rng(1), [], [], []
    arms = [(rank, RATE[rank is None]) for rank in (*RANKS, None)] + [(8, 4e-3)]
    models = [("base", None, 0.0, "")]
    for task in TRAINED:
        for rank, lr in arms:
            name = f"{task}-{rank}-{lr}"
            models.append((name, rank, lr, task))
            trials.append(
                {"trial": name, "task": task, "rank": rank, "lr": lr, "seed": 0, "status": "done"}
            )
            size = {"frobenius": norm(rank or 8), "top_k": 8}
            kept, count = (0.9, 200 // rank) if rank else (0.8, 0)
            size |= {"similarity": kept, "intruders": count}
            matrices.append({"trial": name, "matrix": "q", **size})
    for name, rank, lr, trained in models:
        for test in (*TRAINED, *SCORED):
            for split in ("validation", "test"):
                gain = (change(rank, trained, test) - (lr == 4e-3)) if trained else 0.0
                for i in range(NUM_ITEMS):
                    score = -2 + i / NUM_ITEMS + gain + 0.01 * noise.normal()
                    row = {"model": name, "task": test, "split": split, "item": f"{i:02}"}
                    row |= {"score": float(score > -1.5), "gold_logprob": 3 * score}
                    among = None if test == "gsm8k" else score
                    items.append(row | {"gold_tokens": 3, "among": among})
    pd.DataFrame(items).to_parquet(folder / "items.parquet")
    pd.DataFrame(matrices).to_parquet(folder / "spectra.parquet")
    tasks = [{"name": task, "trained_on": task in TRAINED} for task in (*TRAINED, *SCORED)]
    about = {"tasks": tasks, "trials": trials}
    (folder / "study.json").write_text(json.dumps(about), "utf-8")
    return Study(folder)


def test_judges_find_what_was_planted(tmp_path: Path) -> None:
    def as_reported(rank: int | None, trained: str, test: str) -> float:
        if trained != test:
            return -0.2 if rank is None else -0.1
        return 0.3 + (0.1 if rank == 32 and test == "gsm8k" else 0)

    def reversed_of_it(rank: int | None, trained: str, test: str) -> float:
        if trained != test:
            return -0.1 if rank is None else -0.2
        return 0.6 if rank is None else 0.3 + (0.2 if rank == 8 and test == "mmlu" else 0)

    verdicts = {}
    for expected, change, norm in (
        (HOLDS, as_reported, math.log),
        (FAILS, reversed_of_it, lambda rank: rank**0.6),
    ):
        (tmp_path / expected).mkdir()
        study = planted(tmp_path / expected, change, norm)
        assert study.letters == ("medmcqa", "mathqa", "mmlu", "arc_easy")
        assert study.common_rate == 1e-3
        assert study.grids["gsm8k"].tuned(8) == (8, 1e-3)
        found = [judge(study).verdict for _, judge, _ in paper_in_small.POINTS]
        verdicts[expected] = found
    # Similarity and intruders were planted as reported in both.
    assert verdicts == {HOLDS: [HOLDS] * 7, FAILS: [FAILS] * 5 + [HOLDS] * 2}


def test_every_number_of_the_page_follows_from_the_records() -> None:
    for page, text in paper_in_small.numbers().items():
        kept = page.read_text("utf-8")
        assert paper_in_small.with_tables(kept, text) == kept, (
            f"{page} is not what the records say; run python scripts/paper_in_small.py"
        )
