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

from packed_runs import packed
from race import announce, race
from rankscope.models.model_folder import pocket_folder
from single_runs import hand_tuned, plain_loop
from training import Rows, Setting, heading, parity_of

RANKS = (2, 8, 32, 128)
LEARNING_RATES = (1e-3, 2e-3)
SEEDS = (0, 1)
PEERS = {"ratio": plain_loop, "ratio_hand_tuned": hand_tuned}


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20, help="of turns, for each peer")
    parser.add_argument("--steps", type=int, default=4, help="of each trial in a turn")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--gradient-accumulation", type=int, default=4)
    options = parser.parse_args()
    setting = Setting(
        model=str(pocket_folder()),
        task="pocket_med",
        data_dir=None,
        trials=tuple(itertools.product(RANKS, LEARNING_RATES, SEEDS)),
        batch_size=options.batch_size,
        gradient_accumulation=options.gradient_accumulation,
        max_length=64,
        steps=options.steps,
        dtype="float32",
        device="cpu",
    )
    result, raced = race(packed, PEERS, Rows.read(setting), options.pairs)
    head = heading("train_pocket", setting)
    sizes = {"batch_size": options.batch_size, "accumulation": options.gradient_accumulation}
    return announce({**head, **sizes, "parity": parity_of(raced.values()), **result})


if __name__ == "__main__":
    sys.exit(main())
