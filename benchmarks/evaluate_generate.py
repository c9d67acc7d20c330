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
from evaluation import DATA, dtype_of, gsm8k, write_adapters
from evaluation_sides import rankscope_generation, stock_generation, stock_generation_merged
from race import announce, heading, race
from real_model import real_model

SAME_TEXTS = {"float32": 0.98, "bfloat16": 0.0}
"""Share of texts that must be the same; in bfloat16 near ties fall either way within words."""


def main() -> int:
    """Race, print, and exit with 1 where the sides did not write the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; by default SmolLM2-135M")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--pairs", type=int, default=6, help="of turns")
    parser.add_argument("--items", type=int, default=24, help="in every turn")
    parser.add_argument("--ranks", default="8,16,32,64", help="of the adapters")
    parser.add_argument("--with-base", action="store_true", help="the bare base too")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--batch-sizes", default="8,16,32,64", help="tried for the peer")
    parser.add_argument("--dtype", default="float32", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--merged", action="store_true", help="merge the peer's adapters")
    options = parser.parse_args()
    dtype = dtype_of(options.dtype)
    model = str((options.model or real_model()).resolve())
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
        }
        peers = {"ratio": stock_generation_merged if options.merged else stock_generation}
        result, raced = race(rankscope_generation, peers, given, options.pairs)
    same = text_agreement(raced["ratio"].ours[0].found, raced["ratio"].theirs[0].found)
    result |= {"items": options.items, "adapters": len(ranks), "same_texts": same}
    # Announced like a difference: the share of texts that are not the same.
    result |= {"parity": 1 - same, "parity_tolerance": 1 - SAME_TEXTS[dtype]}
    return announce({**heading("evaluate_generate", dtype), **result})


if __name__ == "__main__":
    sys.exit(main())
