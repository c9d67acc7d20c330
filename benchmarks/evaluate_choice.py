"""Race: multiple choice of one model or several, against lm-evaluation-harness's HFLM.

    python benchmarks/evaluate_choice.py --task arc_easy
    python benchmarks/evaluate_choice.py --task mmlu
    python benchmarks/evaluate_choice.py --task arc_easy --dtype bfloat16

ARC-easy is asked by option text without examples, MMLU by letter after five of its subject's. Both
sides score the same rows; the harness's batch size is the best of several, tried on a part of them.
The last line is one JSON object; benchmarks/README.md says what the fields mean.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from agreement import choice_agreement
from evaluation import DATA, arc_easy, dtype_of, mmlu, write_adapters
from evaluation_sides import harness_choice, rankscope_choice
from race import announce, heading, race
from real_model import real_model

TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}
"""Largest difference of an option's log p, in nats. bfloat16 keeps 8 bits, and sums over an
option's tokens add up what each side rounds otherwise."""
BATCH_SIZES = {"arc_easy": [1, 2, 4, 8, 16, 32], "mmlu": [1, 2, 4, 8]}


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--task", default="arc_easy", choices=list(BATCH_SIZES))
    parser.add_argument("--model", type=Path, help="folder; by default SmolLM2-135M")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--pairs", type=int, default=12, help="of turns")
    parser.add_argument("--items", type=int, default=40, help="of ARC-easy, in every turn")
    parser.add_argument("--subjects", type=int, default=2, help="of MMLU")
    parser.add_argument("--per-subject", type=int, default=10, help="items of each")
    parser.add_argument("--num-fewshot", type=int, help="default: 0 for ARC-easy, 5 for MMLU")
    parser.add_argument("--ranks", default="", help="of adapters besides the base, such as 8,32")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="float32", choices=["auto", "bfloat16", "float32"])
    options = parser.parse_args()
    if options.task == "arc_easy":
        questions = arc_easy(options.data_dir, options.items, options.num_fewshot or 0)
    else:
        shots = 5 if options.num_fewshot is None else options.num_fewshot
        questions = mmlu(options.data_dir, options.subjects, options.per_subject, shots)
    dtype = dtype_of(options.dtype)
    model = str((options.model or real_model()).resolve())
    ranks = [int(rank) for rank in options.ranks.split(",") if rank]
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "model": model,
            "dtype": dtype,
            "adapters": [None, *write_adapters(model, Path(folder), ranks)],
            "questions": questions,
            "batch_tokens": options.batch_tokens,
            "batch_sizes": BATCH_SIZES[options.task],
        }
        result, raced = race(rankscope_choice, {"ratio": harness_choice}, given, options.pairs)
    sides = (raced["ratio"].ours[0].found, raced["ratio"].theirs[0].found)
    result |= {"task": options.task, "items": len(questions), "models": 1 + len(ranks)}
    result |= choice_agreement(questions, *sides)
    result["parity_tolerance"] = TOLERANCE[dtype]
    return announce({**heading("evaluate_choice", dtype), **result})


if __name__ == "__main__":
    sys.exit(main())
