"""Race: a sweep over ranks by direct preference optimization, against TRL's DPOTrainer.

    python benchmarks/train_dpo.py --data-dir DATA
    python benchmarks/train_dpo.py --pocket

Pairs are multiple-choice rows: the right option and the one after it. TRL runs as its documentation
shows it; without computing activations again; and, besides, with the reference computed before
training, which is not timed. Ours computes the reference once for all ranks, timed. The last line
is one JSON object; benchmarks/README.md says what the fields mean.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from packed_runs import load as load_base
from packed_runs import train
from race import Rows, Setting, StepClock, Times, announce, heading, parity_of, run_side, tolerance
from rankscope.models.fetch import cached_model_folder
from rankscope.models.model_folder import pocket_folder
from rankscope.train.objectives.dpo import reference_margins
from single_runs import (
    TrainerClock,
    copy_start,
    load,
    new_adapter,
    peft_config,
    trl_settings,
    watch_losses,
)

RANKS = (1, 4, 16, 64)
MORE_ERROR = 2.0
"""Over the tolerance of a mean over tokens: a loss near log 2 moves by beta / 2 = .05 times the
error of a margin, four sums of some 30 nats, each known in bfloat16 to .3 %."""
PEERS = {
    "ratio": "trl",
    "ratio_without_recomputation": "trl_without_recomputation",
    "ratio_reference_before": "trl_reference_before",
}


def packed(rows: Rows) -> Times:
    """Train the trials in one group, after the reference of all rows."""
    times, base = Times(), load_base(rows)
    clock = StepClock(base.device)
    margins = reference_margins(base, rows.encoded, rows.setting.protocol().batch_tokens)
    clock.step_done()
    pairs = zip(rows.encoded, margins, strict=True)
    rows.encoded = [replace(row, value=margin) for row, margin in pairs]
    train(base, rows.setting.specs(), rows, rows.setting.protocol(), times)
    times.notes["reference_seconds"] = clock.seconds_after(0)
    times.seconds += clock.seconds_after(0)
    return times


def trl(rows: Rows) -> Times:
    """TRL's DPOTrainer as its documentation shows it, one run per trial."""
    return trl_runs(rows, {})


def trl_without_recomputation(rows: Rows) -> Times:
    """The same, which keeps activations."""
    return trl_runs(rows, {"activation_checkpointing": False})


def trl_reference_before(rows: Rows) -> Times:
    """The same, with the reference computed before."""
    return trl_runs(rows, {"activation_checkpointing": False, "precompute_ref_log_probs": True})


def trl_runs(rows: Rows, changes: Mapping[str, Any]) -> Times:
    """One trainer by trial on the rows in the trial's order."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    setting, times = rows.setting, Times()
    model = load(setting)
    for spec in setting.specs():
        order = [i for micros in rows.order(spec) for micro in micros for i in micro]
        columns = {
            "prompt": [rows.prompts[i] for i in order],
            "chosen": [rows.completions[i] for i in order],
            "rejected": [rows.rejected[i] for i in order],
        }
        with tempfile.TemporaryDirectory() as folder:
            trainer: Any = DPOTrainer(
                model=setting.model,
                args=DPOConfig(**trl_settings(spec, rows, folder), **changes),
                train_dataset=Dataset.from_dict(columns),
                peft_config=peft_config(spec),
            )
            check_pairs(trainer.train_dataset, rows, order)
            copy_start(trainer.model, new_adapter(model, spec))
            step_losses = watch_losses(trainer, setting.gradient_accumulation)
            clock = TrainerClock(setting.torch_device())
            trainer.add_callback(clock)
            trainer.train()
        times.add(spec, rows, step_losses(), clock.clock)
    return times


def check_pairs(prepared: Any, rows: Rows, order: list[int]) -> None:
    """Raise ValueError if TRL made other tokens of the rows."""
    for i, row in zip(order, prepared, strict=True):
        made = [tuple(row["prompt_ids"]) + tuple(row[n]) for n in ("chosen_ids", "rejected_ids")]
        if made != [part.input_ids for part in rows.encoded[i].parts]:
            raise ValueError(f"TRL makes other tokens of row {i}: {rows.prompts[i]!r}")


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data-dir", help="folder of the named tasks; needed without --pocket")
    parser.add_argument("--pocket", action="store_true", help="the pocket model, offline")
    parser.add_argument("--steps", type=int, default=4, help="of each trial, 1 warm-up included")
    options = parser.parse_args()
    model = pocket_folder() if options.pocket else cached_model_folder("smollm2-135m")
    rows = Rows.read(
        Setting(
            model=str(model),
            task="pocket_med" if options.pocket else "arc_easy",
            data_dir=None if options.pocket else options.data_dir,
            trials=tuple((rank, 1e-4, 0) for rank in RANKS),
            batch_size=2,
            gradient_accumulation=4,
            max_length=512,
            steps=options.steps,
            objective="dpo",
        )
    )
    peers = {name: run_side("train_dpo", side, rows) for name, side in PEERS.items()}
    ours = run_side("train_dpo", "packed", rows)
    result = heading("train_dpo", rows.setting) | {"parity": parity_of(ours, peers.values())}
    result["parity_tolerance"] = MORE_ERROR * tolerance(
        rows.setting.model, rows.setting.torch_dtype()
    )
    for name, times in peers.items():
        result[name] = ours.tokens_per_second / times.tokens_per_second
    sides = {**{side: peers[name] for name, side in PEERS.items()}, "packed": ours}
    result["tokens_per_second"] = {name: times.tokens_per_second for name, times in sides.items()}
    result["reference_seconds"] = ours.notes["reference_seconds"]
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
