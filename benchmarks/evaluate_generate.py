"""Race: greedy answers to GSM8K by several adapters, against transformers' generate, one by one.

    python benchmarks/evaluate_generate.py
    python benchmarks/evaluate_generate.py --merged

Adapters are PEFT's, unmerged, as its documentation loads them; with ``--merged`` each is merged
into a base of its own first. The peer's batch size is the best of several. The last line is one
JSON object; benchmarks/README.md says what the fields mean.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from agreement import text_agreement
from evaluate_choice import DATA
from evaluation_race import dtype_of, gsm8k, heading, run_side, write_adapters
from race import announce
from rankscope.models.fetch import cached_model_folder

SAME_TEXTS = {"float32": 0.98, "bfloat16": 0.0}
"""Share of texts that must be the same; in bfloat16 near ties fall either way within words."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; default: SmolLM2-135M, fetched before")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--ranks", default="8,16,32,64", help="of the adapters")
    parser.add_argument("--with-base", action="store_true", help="the bare base too")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--batch-sizes", default="8,16,32,64", help="tried for the peer")
    parser.add_argument("--dtype", default="float32", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--merged", action="store_true", help="merge the peer's adapters")
    return parser.parse_args(arguments)


def main() -> int:
    """Race, print, and exit with 1 where the sides did not write the same."""
    options = parse()
    dtype = dtype_of(options.dtype)
    model = str((options.model or cached_model_folder("smollm2-135m")).resolve())
    ranks = [int(rank) for rank in options.ranks.split(",") if rank]
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(model, Path(folder), ranks)
        given = {
            "model": model,
            "dtype": dtype,
            "adapters": [*([None] if options.with_base else []), *adapters],
            "prompts": gsm8k(options.data_dir, options.items),
            "max_new_tokens": options.max_new_tokens,
            "batch_tokens": options.batch_tokens,
            "batch_sizes": [int(size) for size in options.batch_sizes.split(",")],
            "merged": options.merged,
        }
        theirs = run_side("evaluation_sides", "stock_generation", given)
        ours = run_side("evaluation_sides", "rankscope_generation", given)
    result = heading("evaluate_generate", dtype)
    result |= {"items": options.items, "adapters": len(ranks), "merged": options.merged}
    result["ratio"] = theirs["seconds"] / ours["seconds"]
    # Announced like a difference: the share of texts that are not the same.
    result["same_texts"] = text_agreement(ours, theirs)
    result["parity"] = 1 - text_agreement(ours, theirs)
    result["parity_tolerance"] = 1 - SAME_TEXTS[dtype]
    sides = {"transformers": theirs, "rankscope": ours}
    result["seconds"] = {name: side["seconds"] for name, side in sides.items()}
    result["new_tokens"] = {name: side["new_tokens"] for name, side in sides.items()}
    result["peer_batch_size"] = theirs["batch_size"]
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
