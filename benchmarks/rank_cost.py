"""Cost of a rank by itself: tokens per second and peak memory of one adapter, and of full
fine-tuning.

    python benchmarks/rank_cost.py [--ranks 8,32,128,512]

No race. Every model trains alone, in a process of its own, on GSM8K rows, SmolLM2-135M-Instruct.
The list is walked up and down again, and both figures are the mean of the two. The last line is one
JSON object.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from evaluation import DATA
from packed_runs import packed
from race import Segment, Turn, rounded, segment_of
from rankscope.device import peak_memory_bytes
from real_model import real_model
from training import Rows, Setting, heading


def alone(rows: Rows) -> Turn:
    """Train, and note the peak of the process."""
    train = packed(rows)

    def turn() -> Segment:
        segment = train()
        segment.found["peak_bytes"] = peak_memory_bytes(rows.setting.torch_device())
        return segment

    return turn


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("--model", type=Path, help="folder; by default SmolLM2-135M")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--ranks", default="8,16,32,64,128,256,512")
    parser.add_argument("--steps", type=int, default=2, help="in a turn, which is timed once")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    options = parser.parse_args()
    folder = options.model or real_model()
    ranks: list[int | None] = [*map(int, options.ranks.split(",")), None]
    speeds, peaks = defaultdict(list), defaultdict(list)
    for rank in [*ranks, *reversed(ranks)]:
        setting = Setting(
            model=str(folder.resolve()),
            task="gsm8k",
            data_dir=str(options.data_dir.resolve()),
            trials=((rank, 2e-5 if rank is None else 2e-4, 0),),
            batch_size=2,
            gradient_accumulation=4,
            max_length=options.max_length,
            steps=options.steps,
            dtype=options.dtype,
        )
        segment = segment_of(alone, Rows.read(setting))
        name = "full" if rank is None else str(rank)
        speeds[name].append(segment.rate)
        peaks[name].append(segment.found["peak_bytes"])
        print(f"{name}: {segment.rate:.0f} tokens/s", file=sys.stderr, flush=True)
    result = heading("rank_cost", setting)
    del result["parity_tolerance"]
    result["tokens_per_second"] = {name: fmean(found) for name, found in speeds.items()}
    result["spread"] = max(max(found) / min(found) for found in speeds.values())
    result["peak_bytes"] = {name: fmean(found) for name, found in peaks.items()}
    print(json.dumps(rounded(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
