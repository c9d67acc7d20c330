"""Race: a sweep over ranks by direct preference optimization, against TRL's DPOTrainer.

    python benchmarks/train_dpo.py
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

from evaluation import DATA
from packed_runs import load as load_base, train
from race import Segment, Turn, announce, race
from rankscope.extensions.preferences.rows import reference_margins
from rankscope.models.model_folder import pocket_folder
from real_model import real_model
from single_runs import (
    TrainerClock,
    copy_start,
    load,
    new_adapter,
    peft_config,
    trl_settings,
    watch_losses,
)
from training import Rows, Setting, StepClock, Trained, heading, parity_of, tolerance

RANKS = (1, 4, 16, 64)
MORE_ERROR = 2.0
"""Over the tolerance of a mean over tokens: a loss near log 2 moves by beta / 2 = .05 times the
error of a margin, four sums of some 30 nats, each known in bfloat16 to .3 %."""


def packed(rows: Rows) -> Turn:
    """Train the trials in one group, after the reference of all rows."""
    base = load_base(rows)

    def turn() -> Segment:
        clock = StepClock(base.device)
        margins = reference_margins(base, rows.encoded, rows.setting.protocol().batch_tokens)
        clock.step_done()
        pairs = zip(rows.encoded, margins, strict=True)
        own = replace(rows, encoded=[replace(row, value=margin) for row, margin in pairs])
        trained = Trained(seconds=clock.seconds(0))
        train(base, own, trained)
        return trained.segment()

    return turn


def trl(rows: Rows) -> Turn:
    """TRL's DPOTrainer as its documentation shows it, one run per trial."""
    return runs(rows, {})


def trl_without_recomputation(rows: Rows) -> Turn:
    """TRL's DPOTrainer, which keeps activations."""
    return runs(rows, {"activation_checkpointing": False})


def trl_reference_before(rows: Rows) -> Turn:
    """TRL's DPOTrainer, with the reference computed before."""
    return runs(rows, {"activation_checkpointing": False, "precompute_ref_log_probs": True})


PEERS = {
    "ratio": trl,
    "ratio_without_recomputation": trl_without_recomputation,
    "ratio_reference_before": trl_reference_before,
}


def runs(rows: Rows, changes: Mapping[str, Any]) -> Turn:
    """One trainer by trial on the rows in the trial's order."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    setting, model = rows.setting, load(rows.setting)

    def turn() -> Segment:
        trained = Trained()
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
            trained.add(spec, rows, step_losses(), clock.clock)
        return trained.segment()

    return turn


def check_pairs(prepared: Any, rows: Rows, order: list[int]) -> None:
    """Raise ValueError if TRL made other tokens of the rows."""
    for i, row in zip(order, prepared, strict=True):
        made = [tuple(row["prompt_ids"]) + tuple(row[n]) for n in ("chosen_ids", "rejected_ids")]
        if made != [part.input_ids for part in rows.encoded[i].parts]:
            raise ValueError(f"TRL makes other tokens of row {i}: {rows.prompts[i]!r}")


def main() -> int:
    """Race, print, and exit with 1 where the sides did not compute the same."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data-dir", default=str(DATA))
    parser.add_argument("--pocket", action="store_true", help="the pocket model, offline")
    parser.add_argument("--pairs", type=int, default=6, help="of turns, for each peer")
    parser.add_argument("--steps", type=int, default=4, help="of each trial in a turn")
    options = parser.parse_args()
    model = pocket_folder() if options.pocket else real_model()
    setting = Setting(
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
    result, raced = race(packed, PEERS, Rows.read(setting), options.pairs)
    result = {**heading("train_dpo", setting), "parity": parity_of(raced.values()), **result}
    result["parity_tolerance"] = MORE_ERROR * tolerance(setting.model, setting.torch_dtype())
    return announce(result)


if __name__ == "__main__":
    sys.exit(main())
