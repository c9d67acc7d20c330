"""Race: sixteen small adapters of mixed rank on the pocket model, against PEFT one after another.

    python benchmarks/train_pocket.py
    python benchmarks/train_pocket.py --batch-size 64 --gradient-accumulation 1

The pocket study's rows and precision. The first line has the batch size and accumulation that a
study file has by default, the second the pocket study's own, with which a run alone is bound by
arithmetic and a pack has little to gain. The last line of each is one JSON object;
benchmarks/README.md says what the fields mean.
"""

import argparse
import itertools
import sys

from race import Rows, Setting, announce, heading, parity_of, run_side
from rankscope.models.model_folder import pocket_folder

RANKS = (2, 8, 32, 128)
LEARNING_RATES = (1e-3, 2e-3)
SEEDS = (0, 1)
PEERS = {"ratio": "plain_loop", "ratio_hand_tuned": "hand_tuned"}


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--steps", type=int, default=32, help="of each trial, 2 warm-up included")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--gradient-accumulation", type=int, default=4)
    options = parser.parse_args()
    rows = Rows.read(
        Setting(
            model=str(pocket_folder()),
            task="pocket_med",
            data_dir=None,
            trials=tuple(itertools.product(RANKS, LEARNING_RATES, SEEDS)),
            batch_size=options.batch_size,
            gradient_accumulation=options.gradient_accumulation,
            max_length=64,
            steps=options.steps,
            warmup_steps=2,
            dtype="float32",
            device="cpu",
        )
    )
    peers = {name: run_side("single_runs", side, rows) for name, side in PEERS.items()}
    ours = run_side("packed_runs", "packed", rows)
    result = heading("train_pocket", rows.setting)
    result["batch_size"] = options.batch_size
    result["gradient_accumulation"] = options.gradient_accumulation
    result["parity"] = parity_of(ours, peers.values())
    for name, times in peers.items():
        result[name] = ours.tokens_per_second / times.tokens_per_second
    sides = {**{side: peers[name] for name, side in PEERS.items()}, "packed": ours}
    result["tokens_per_second"] = {name: times.tokens_per_second for name, times in sides.items()}
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
