"""Race: multiple choice of one model or several, against lm-evaluation-harness's HFLM.

    python benchmarks/evaluate_choice.py --task arc_easy
    python benchmarks/evaluate_choice.py --task mmlu
    python benchmarks/evaluate_choice.py --task arc_easy --dtype bfloat16

ARC-easy is asked by option text without examples, MMLU by letter after five of its subject's. Both
sides score the same rows; the harness's batch size is the best of several, tried on a part of them.
The last line is one JSON object; benchmarks/README.md says what the fields mean.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from agreement import choice_agreement
from evaluation_race import arc_easy, dtype_of, heading, mmlu, run_side, write_adapters
from race import announce
from rankscope.models.fetch import cached_model_folder

DATA = Path(os.environ.get("RANKSCOPE_DATA", Path(__file__).parents[2] / "shared" / "data"))
TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}
"""Largest difference of an option's log p, in nats. bfloat16 keeps 8 bits, and sums over an
option's tokens add up what each side rounds otherwise."""
BATCH_SIZES = {"arc_easy": [1, 2, 4, 8, 16, 32], "mmlu": [1, 2, 4, 8]}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--task", default="arc_easy", choices=list(BATCH_SIZES))
    parser.add_argument("--model", type=Path, help="folder; default: SmolLM2-135M, fetched before")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=300, help="of ARC-easy")
    parser.add_argument("--subjects", type=int, default=2, help="of MMLU")
    parser.add_argument("--per-subject", type=int, default=60, help="items of each")
    parser.add_argument("--num-fewshot", type=int, help="default: 0 for ARC-easy, 5 for MMLU")
    parser.add_argument("--ranks", default="", help="of adapters besides the base, such as 8,32")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="float32", choices=["auto", "bfloat16", "float32"])
    return parser.parse_args(arguments)


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    options = parse()
    if options.task == "arc_easy":
        questions = arc_easy(options.data_dir, options.items, options.num_fewshot or 0)
    else:
        shots = 5 if options.num_fewshot is None else options.num_fewshot
        questions = mmlu(options.data_dir, options.subjects, options.per_subject, shots)
    dtype = dtype_of(options.dtype)
    model = str((options.model or cached_model_folder("smollm2-135m")).resolve())
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
        theirs = run_side("evaluation_sides", "harness_choice", given)
        ours = run_side("evaluation_sides", "rankscope_choice", given)
    result = heading("evaluate_choice", dtype)
    result |= {"task": options.task, "items": len(questions), "models": 1 + len(ranks)}
    result["ratio"] = theirs["seconds"] / ours["seconds"]
    result |= choice_agreement(questions, ours, theirs)
    result["parity_tolerance"] = TOLERANCE[dtype]
    result["seconds"] = {"harness": theirs["seconds"], "rankscope": ours["seconds"]}
    result["harness_batch_size"] = theirs["batch_size"]
    result["computed_tokens"] = ours["computed_tokens"]
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
