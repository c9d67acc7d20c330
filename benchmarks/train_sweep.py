"""Race: a sweep over LoRA ranks on a real model, against TRL and a hand-tuned loop.

    python benchmarks/train_sweep.py                             bf16 where the machine has it
    python benchmarks/train_sweep.py --dtype float32 --parity    losses agree, or exit 1

SmolLM2-135M-Instruct (``rankscope fetch smollm2-135m``), GSM8K rows, LoRA on attention. Its last
line is one JSON object; benchmarks/README.md says what the fields mean.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from race import Rows, Setting, Times, announce, heading, parity_of, rounded, run_side
from rankscope.models.fetch import cached_model_folder

PEERS = {"trl": ("single_runs", "trl"), "hand_tuned": ("single_runs", "hand_tuned")}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; by default the fetched smollm2-135m")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--ranks", default="8,16,32,64,128")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--steps", type=int, default=4, help="per rank, the warm-up step included")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--gradient-accumulation", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--kernels",
        default="plain",
        choices=["plain", "compiled", "liger"],
        help="of our side; plainly, too, in the same run",
    )
    parser.add_argument("--shares", action="store_true", help="where our time goes, no race")
    parser.add_argument("--no-parts", action="store_true", help="skip the parts' contributions")
    parser.add_argument("--parity", action="store_true", help="compare losses and nothing else")
    return parser.parse_args(arguments)


def setting_of(options: argparse.Namespace) -> Setting:
    """The race that the options describe."""
    folder = options.model or cached_model_folder("smollm2-135m")
    return Setting(
        model=str(folder.resolve()),
        task="gsm8k",
        data_dir=str(options.data_dir.resolve()),
        trials=tuple((int(rank), options.lr, 0) for rank in options.ranks.split(",")),
        batch_size=options.batch_size,
        gradient_accumulation=options.gradient_accumulation,
        max_length=options.max_length,
        steps=options.steps,
        dtype=options.dtype,
        device=options.device,
        kernels=options.kernels,
    )


def ratios(rows: Rows, ours: Times, peers: dict[str, Times]) -> dict[str, float]:
    """How many times as fast as each peer, in valid tokens per second."""
    quick = run_side("single_runs", "trl_without_recomputation", rows)
    middle = rows.setting.middle().trial_id
    trl, tuned = (ours.tokens_per_second / peers[n].tokens_per_second for n in PEERS)
    joined_gain = peers["hand_tuned"].notes["joined_gain"]
    assert isinstance(joined_gain, float)
    return {
        "ratio": trl,
        "ratio_hand_tuned": tuned,
        # Measured on the middle trial alone, so as a factor on top of the ratio over all trials.
        "ratio_trl_without_recomputation": trl * peers["trl"].rates[middle] / quick.rates[middle],
        "ratio_hand_tuned_joined": tuned / joined_gain,
    }


def utilization(rows: Rows, ours: Times) -> dict[str, float]:
    """Useful operations per second as a share of the fastest product, and the product rates."""
    machine = run_side("useful_work", "measure", rows).notes
    work, square, own = (
        float(str(machine[name])) for name in ("useful_flops", "square_gflops", "own_gflops")
    )
    return {
        "mfu": work / ours.seconds / (square * 1e9),
        "square_gflops": square,
        "own_shapes_gflops": own,
    }


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    options = parse()
    rows = Rows.read(setting_of(options))
    if options.shares:
        print(json.dumps(rounded(run_side("packed_runs", "shares", rows).notes)))
        return 0
    peers = {name: run_side(*side, rows) for name, side in PEERS.items()}
    ours = run_side("packed_runs", "packed", rows)
    result = heading("train_sweep", rows.setting)
    if options.kernels != "plain":  # Before and after, in one run
        before = replace(rows, setting=replace(rows.setting, kernels="plain"))
        peers["packed_plain"] = run_side("packed_runs", "packed", before)
    result["parity"] = parity_of(ours, peers.values())
    if not options.parity:
        result |= ratios(rows, ours, peers)
        result |= utilization(rows, ours)
        result["time_shares"] = run_side("packed_runs", "shares", rows).notes
        sides = {**peers, "packed": ours}
        if options.kernels != "plain":
            result["time_shares_plain"] = run_side("packed_runs", "shares", before).notes
        result["tokens_per_second"] = {n: times.tokens_per_second for n, times in sides.items()}
        result["hand_tuned"] = peers["hand_tuned"].notes
        if not options.no_parts:
            result["parts"] = run_side("packed_runs", "contributions", rows).notes
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
