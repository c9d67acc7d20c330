"""Race: a sweep over LoRA ranks on a real model, against TRL and a hand-tuned loop.

    python benchmarks/train_sweep.py                    bf16 where the machine has it
    python benchmarks/train_sweep.py --peers ratio_hand_tuned --pairs 12

SmolLM2-135M-Instruct, GSM8K rows, LoRA on attention. Its last line is one JSON object;
benchmarks/README.md says what the fields mean.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from evaluation import DATA
from packed_runs import packed
from race import Turn, announce, race
from rankscope.models.kernels import all_kernels
from real_model import real_model
from single_runs import hand_tuned, hand_tuned_joined, trl, trl_without_recomputation
from training import Rows, Setting, heading, parity_of

PEERS = {
    "ratio": trl,
    "ratio_trl_without_recomputation": trl_without_recomputation,
    "ratio_hand_tuned": hand_tuned,
    "ratio_hand_tuned_joined": hand_tuned_joined,
}


def packed_plainly(rows: Rows) -> Turn:
    """Our own side with plain kernels."""
    return packed(replace(rows, setting=replace(rows.setting, kernels="plain")))


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; by default SmolLM2-135M")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--ranks", default="8,16,32,64,128")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--pairs", type=int, default=6, help="of turns, for each peer")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--steps", type=int, default=2, help="of each trial in a turn")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kernels", default="plain", choices=list(all_kernels()))
    options = parser.parse_args()
    setting = Setting(
        model=str((options.model or real_model()).resolve()),
        task="gsm8k",
        data_dir=str(options.data_dir.resolve()),
        trials=tuple((int(rank), options.lr, 0) for rank in options.ranks.split(",")),
        batch_size=2,
        gradient_accumulation=4,
        max_length=options.max_length,
        steps=options.steps,
        dtype=options.dtype,
        device=options.device,
        kernels=options.kernels,
    )
    peers = {name: PEERS[name] for name in options.peers}
    if options.kernels != "plain":
        peers["ratio_plain_kernels"] = packed_plainly
    result, raced = race(packed, peers, Rows.read(setting), options.pairs)
    head = heading("train_sweep", setting)
    return announce({**head, "parity": parity_of(raced.values()), **result})


if __name__ == "__main__":
    sys.exit(main())
