"""Race: a whole study of ranks, against the scripts people write for it.

    python benchmarks/whole_study.py

Ours is one command, ``rankscope run``. The scripts train one adapter after another with TRL's
``SFTTrainer``, then score the base and every adapter with lm-evaluation-harness's ``HFLM``, on the
same rows and the same items. The study and TRL's training count from the start of the process to
its end, loading and tokenizing included; of the harness only the scoring counts. The adapters that
the harness scores are those of the study, so that log-probabilities can be compared.

Parity is shown first, on a sample in float32, where the sides differ by rounding alone. In the race
itself bfloat16 keeps 8 bits, and each step of Adam builds on the rounding of those before it; the
differences are printed as ``differences``. The last line is one JSON object; benchmarks/README.md
says what the fields mean.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import evaluation_race
from evaluate_choice import BATCH_SIZES, DATA
from evaluate_choice import TOLERANCE as LOGPROB_TOLERANCE
from race import Rows, Setting, Times, announce, heading, parity_of, run_side
from rankscope.config.task import TaskConfig
from rankscope.data.chat import with_leading_space
from rankscope.data.items import Item
from rankscope.data.tasks import load_task
from rankscope.models.fetch import cached_model_folder
from rankscope.records import BASE, Split, StudyRecords
from rankscope.store import Ledger, adapter_path

TRAINED, RETAINED = "arc_easy", "piqa"
BATCH = {"batch_size": 2, "gradient_accumulation": 4, "max_length": 256}
SPLITS: tuple[Split, ...] = ("validation", "test")
SAMPLE = {"rows": 32, "items": 10}
"""Parity is shown on this many rows (four optimizer steps) and items."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; by default the fetched smollm2-135m")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--ranks", default="8,16,32,64,128")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--rows", type=int, default=400, help="training rows, one epoch")
    parser.add_argument("--items", type=int, default=100, help="of each task and split")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    return parser.parse_args(arguments)


def study_file(options: argparse.Namespace, model: Path) -> dict[str, object]:
    """LoRA at every rank, one seed, scored on its own task and on one it should keep."""
    return {
        "name": "whole-study",
        "data_dir": str(options.data_dir.resolve()),
        "model": {"path": str(model), "prompt_format": "plain"},
        "dtype": options.dtype,
        "tasks": [{"name": TRAINED, "max_train_rows": options.rows}],
        "arms": [
            {"method": "lora", "rank": [int(r) for r in options.ranks.split(",")], "lr": options.lr}
        ],
        "seeds": [0],
        "train": {"epochs": 1, **BATCH},
        "evaluate": {"retention": [RETAINED], "max_items": options.items},
        # The scripts have nothing that corresponds to it.
        "analyze": {"spectra": {"enabled": False}},
    }


def questions_of(items: tuple[Item, ...]) -> list[dict[str, Any]]:
    """Items as the harness's side reads them."""
    return [
        {
            "prompt": item.prompt,
            "answers": [with_leading_space(item.prompt, choice) for choice in item.choices],
        }
        for item in items
    ]


def largest_difference(
    study: StudyRecords,
    models: list[str],
    items: dict[tuple[str, Split], tuple[Item, ...]],
    theirs: list[list[list[float]]],
) -> float:
    """Largest difference of a right answer's log p between the study's records and the harness."""
    differences = [0.0]
    for model, logprobs in zip(models, theirs, strict=True):
        answers = iter(logprobs)
        for (task, split), chosen in items.items():
            for item, result in zip(chosen, study.results[model, task, split], strict=True):
                assert result.item_id == item.item_id
                assert result.gold_logprob is not None
                differences.append(abs(result.gold_logprob - next(answers)[item.answer or 0]))
    return max(differences)


def setting_of(options: argparse.Namespace, model: Path) -> Setting:
    """The same training as the study's, as ``race.py`` describes it."""
    return Setting(
        model=str(model),
        task=TRAINED,
        data_dir=str(options.data_dir.resolve()),
        trials=tuple((int(rank), options.lr, 0) for rank in options.ranks.split(",")),
        steps=options.rows // (BATCH["batch_size"] * BATCH["gradient_accumulation"]),
        warmup_steps=0,
        dtype=options.dtype,
        device="cpu",
        **BATCH,
    )


def items_of(options: argparse.Namespace) -> dict[tuple[str, Split], tuple[Item, ...]]:
    """What every model is scored on."""
    items: dict[tuple[str, Split], tuple[Item, ...]] = {}
    for name in (TRAINED, RETAINED):
        task = load_task(
            TaskConfig(name=name), options.data_dir, 0, options.items, trained_on=[TRAINED]
        )
        items |= {(name, split): tuple(getattr(task, split)) for split in SPLITS}
    return items


def race(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Run every side; the study stays in ``folder``."""
    model = (options.model or cached_model_folder("smollm2-135m")).resolve()
    setting, items = setting_of(options, model), items_of(options)
    dtype = str(setting.torch_dtype()).removeprefix("torch.")

    file, out = folder / "study.yaml", folder / "out"
    file.write_text(json.dumps(study_file(options, model)), encoding="utf-8")
    command = Path(sys.executable).with_name("rankscope")
    begun = time.perf_counter()
    arguments = [command, "run", file, "--out", out]
    subprocess.run([str(part) for part in arguments], check=True, stdout=sys.stderr)
    ours = time.perf_counter() - begun
    with Ledger.open(out, write=False) as ledger:
        study = ledger.load()
    trials = {trial.spec.rank: trial for trial in study.trials}
    models = [BASE, *(trials[rank].spec.trial_id for rank, _, _ in setting.trials)]

    begun = time.perf_counter()
    trained = run_side("single_runs", "trl", Rows.read(setting, options.rows))
    training = time.perf_counter() - begun
    given = {
        "model": str(model),
        "dtype": dtype,
        "adapters": [None, *(str(out / adapter_path(name)) for name in models[1:])],
        "questions": [question for chosen in items.values() for question in questions_of(chosen)],
        "batch_sizes": BATCH_SIZES[TRAINED],
    }
    scored = evaluation_race.run_side("evaluation_sides", "harness_choice", given)

    losses = Times()
    for spec in setting.specs():
        record = trials[spec.rank].train
        losses.losses[spec.trial_id] = [point.loss for point in record.losses] if record else []
    return {
        **heading("whole_study", setting),
        "models": len(models),
        "items": len(given["questions"]),
        "ratio": (training + scored["seconds"]) / ours,
        "seconds": {"rankscope": ours, "trl": training, "harness": scored["seconds"]},
        "parity": parity_of(losses, [trained]),
        "parity_logprobs": largest_difference(study, models, items, scored["logprobs"]),
    }


def raced(options: argparse.Namespace) -> dict[str, object]:
    """The result of one race, whose study is removed."""
    with tempfile.TemporaryDirectory() as folder:
        return race(options, Path(folder))


def main() -> int:
    """Show parity, race, print; exit with 1 if the sides did not compute the same."""
    options = parse()
    small = {name: min(size, getattr(options, name)) for name, size in SAMPLE.items()}
    is_exact = options.dtype == "float32"  # then the race itself shows parity
    checked = vars(options) if is_exact else {**vars(options), **small, "dtype": "float32"}
    sample = raced(argparse.Namespace(**checked))
    if float(str(sample["parity_logprobs"])) > LOGPROB_TOLERANCE["float32"] or announce(sample):
        return 1
    if is_exact:
        return 0
    result = raced(options)
    differences = {"loss": result["parity"], "logprob": result["parity_logprobs"]}
    parity = {name: sample[name] for name in sample if name.startswith("parity")}
    return announce({**result, **parity, "differences": differences})


if __name__ == "__main__":
    sys.exit(main())
