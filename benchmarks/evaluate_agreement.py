"""Agreement with lm-evaluation-harness and transformers, base and an adapter, in float32.

    python benchmarks/evaluate_agreement.py
    python benchmarks/evaluate_agreement.py --items 40 --written 20

Option texts (raw, per character, per byte) and letters, after no and five examples, against HFLM;
greedy answers to GSM8K against ``generate``. The last line is one JSON object with every case; it
exits with 1 where an option's log p differs by more than 1e-3, where fewer than 99.8 % of
predictions are the same, or fewer than 98 % of the answers.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from agreement import choice_agreement, text_agreement
from evaluate_choice import BATCH_SIZES, DATA
from evaluation_race import arc_easy, gsm8k, heading, mmlu, run_side, write_adapters
from race import rounded
from rankscope.models.fetch import cached_model_folder

LOGPROB = 1e-3
PREDICTIONS = 0.998
TEXTS = 0.98


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; default: SmolLM2-135M, fetched before")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=200, help="of each case of choice; 0: none")
    parser.add_argument("--written", type=int, default=200, help="answers to GSM8K; 0 for none")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--num-fewshot", type=int, nargs="*", default=[0, 5], help="of each case")
    return parser.parse_args(arguments)


def passes(found: dict[str, Any]) -> bool:
    """One case is in agreement; NaN is not."""
    if "same_texts" in found:
        return bool(found["same_texts"] >= TEXTS)
    same = found["same_prediction"].values()
    return bool(found["parity"] <= LOGPROB) and min(same) >= PREDICTIONS


def main() -> int:
    """Compare, print, and exit with 1 where a case is not in agreement."""
    options = parse()
    folder = str((options.model or cached_model_folder("smollm2-135m")).resolve())
    cases = {}
    for shots in options.num_fewshot if options.items else ():
        cases[f"arc_easy {shots} shots"] = arc_easy(options.data_dir, options.items, shots)
        per_subject = max(1, options.items // 4)
        cases[f"mmlu {shots} shots"] = mmlu(options.data_dir, 4, per_subject, shots)
    result = heading("evaluate_agreement", "float32")
    with tempfile.TemporaryDirectory() as place:
        given: dict[str, Any] = {
            "model": folder,
            "dtype": "float32",
            "adapters": [None, *write_adapters(folder, Path(place), [16])],
            "batch_tokens": 4096,
            "merged": True,
        }
        for name, questions in cases.items():
            # One batch size: speed is not what is measured here.
            size = BATCH_SIZES[name.split()[0]][1]
            asked = {**given, "questions": questions, "batch_sizes": [size]}
            sides = [
                run_side("evaluation_sides", side, asked)
                for side in ("rankscope_choice", "harness_choice")
            ]
            result[name] = choice_agreement(questions, *sides)
        if options.written:
            prompts = gsm8k(options.data_dir, options.written)
            length = options.max_new_tokens
            asked = {**given, "prompts": prompts, "max_new_tokens": length, "batch_sizes": [16]}
            sides = [
                run_side("evaluation_sides", side, asked)
                for side in ("rankscope_generation", "stock_generation")
            ]
            result["gsm8k written"] = {"same_texts": text_agreement(*sides)}
    found = [value for value in result.values() if isinstance(value, dict)]
    result["parity"] = max((case["parity"] for case in found if "parity" in case), default=0.0)
    print(json.dumps(rounded(result)))
    return 0 if all(passes(case) for case in found) else 1


if __name__ == "__main__":
    sys.exit(main())
