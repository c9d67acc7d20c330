"""Race: a whole study of ranks and rates, against the scripts people write for it.

    python benchmarks/whole_study.py

Ours is one search: ``rankscope run``, from the start of its process to its end. A second side is a
random quarter of its grid, whole, scaled from our own rates. The scripts do what the grid would:
train every trial with TRL's ``SFTTrainer``, score the base and every trial on both splits of every
task with lm-evaluation-harness's ``HFLM``, and decompose every matrix that changed with
``torch.linalg.svd`` (the base's once). That would take hours, so each part is timed on
a sample, which the result states, and scaled up by counted tokens or matrices. Of the scripts only
that counts; loading, tokenizing and first steps do not.

Parity is shown first, on a small grid in float32, where the sides differ by rounding alone. The
last line is one JSON object; benchmarks/README.md says what the fields mean.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import torch

from evaluate_choice import BATCH_SIZES, TOLERANCE as LOGPROB_TOLERANCE
from evaluation import DATA
from evaluation_sides import harness_choice
from race import Segment, Turn, announce, segment_of
from rankscope.advise.recommend import recommend
from rankscope.config.task import TaskConfig
from rankscope.data.items import Item
from rankscope.data.tasks import load_task
from rankscope.formatting import with_leading_space
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.load import load_tokenizer
from rankscope.records import BASE, Split, StudyRecords
from rankscope.store import Ledger, weights_path
from real_model import real_model
from single_runs import trl, trl_without_recomputation
from training import Rows, Setting, difference, heading

TRAINED, CROSS_DOMAIN, RETAINED = "gsm8k", ("arc_easy", "openbookqa"), "piqa"
TEXT = "exam_text"
"""Retention: MMLU's questions as plain text."""
BATCH = {"batch_size": 4, "gradient_accumulation": 1}
SMALL: dict[str, Any] = {"steps": 2, "items": 6, "seeds": 1, "dtype": "float32"}
"""The study on which parity is shown: the smallest and the largest rank, one rate, and full
fine-tuning."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; by default SmolLM2-135M")
    parser.add_argument("--data-dir", type=Path, default=DATA)
    parser.add_argument("--ranks", type=numbers(int), default="2,4,8,16,32,64,128")
    parser.add_argument("--rates", type=numbers(float), default="5e-4,2e-3,8e-3")
    parser.add_argument("--full-rates", type=numbers(float), default="5e-5,2e-4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100, help="training rows")
    parser.add_argument("--max-length", type=int, default=160, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=24, help="of 4 rows")
    parser.add_argument("--items", type=int, default=40, help="of each task and split")
    parser.add_argument("--sample-steps", type=int, default=4, help="TRL's, the first untimed")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--out", type=Path, help="keep the study in this new folder")
    options = parser.parse_args(arguments)
    if options.out is not None and options.out.exists():
        parser.error(f"--out: {options.out} exists; a study that is there would not be timed")
    return options


def numbers(kind: type) -> Any:
    """Parses a list with commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def task_configs(options: argparse.Namespace) -> dict[str, TaskConfig]:
    """Every task of the study, by name."""
    data = options.data_dir.resolve()
    text = TaskConfig(
        name=TEXT, path=str(data / "mmlu"), fields={"text": "question"}, scorer="perplexity"
    )
    named = [TaskConfig(name=name) for name in (*CROSS_DOMAIN, RETAINED)]
    trained = TaskConfig(name=TRAINED, scorer="loss", max_train_rows=options.rows)
    return {task.name: task for task in (trained, *named, text)}


def study_file(options: argparse.Namespace, model: Path, strategy: str) -> dict[str, Any]:
    """LoRA at every rank and rate and full fine-tuning, scored in and out of domain."""
    tasks = {
        name: task.model_dump(exclude_defaults=True) for name, task in task_configs(options).items()
    }
    return {
        "name": "whole-study",
        "data_dir": str(options.data_dir.resolve()),
        "model": {"path": str(model), "prompt_format": "plain"},
        "dtype": options.dtype,
        "strategy": strategy,
        "tasks": [tasks[TRAINED]],
        "arms": [
            {"method": "lora", "rank": options.ranks, "lr": options.rates},
            {"method": "full", "lr": options.full_rates},
        ],
        "seeds": list(range(options.seeds)),
        "train": {
            "max_steps": options.steps,
            "max_length": options.max_length,
            **BATCH,
        },
        "evaluate": {
            "cross_domain": [tasks[name] for name in CROSS_DOMAIN],
            "retention": [tasks[RETAINED], tasks[TEXT]],
            "max_items": options.items,
        },
        "analyze": {"answers": {"enabled": False}},  # The scripts write none
    }


def run_study(file: dict[str, Any], folder: Path) -> tuple[StudyRecords, float]:
    """A study's records and the seconds of its command. The base's decompositions are made anew."""
    folder.mkdir(parents=True, exist_ok=True)
    path, out = folder / "study.yaml", folder / "out"
    path.write_text(json.dumps(file), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("rankscope")),
        "run",
        str(path),
        "--out",
        str(out),
    ]
    environment = {**os.environ, "RANKSCOPE_CACHE": str(folder / "cache")}
    begun = time.perf_counter()
    code = subprocess.run(command, check=False, stdout=sys.stderr, env=environment).returncode
    seconds = time.perf_counter() - begun
    if code not in (0, 3):  # 3: a trial diverged, as one of the highest rate may
        raise SystemExit(f"{command}: exit status {code}")
    with Ledger.open(out, write=False) as ledger:
        return ledger.load(), seconds


def setting_of(options: argparse.Namespace, model: Path, **changes: Any) -> Setting:
    """The study's trials, as ``training.py`` describes them."""
    rates = {**dict.fromkeys(options.ranks, options.rates), None: options.full_rates}
    seeds = range(options.seeds)
    setting = Setting(
        model=str(model),
        task=TRAINED,
        data_dir=str(options.data_dir.resolve()),
        trials=tuple((rank, lr, s) for rank in rates for lr in rates[rank] for s in seeds),
        steps=options.steps,
        dtype=options.dtype,
        device="cpu",
        max_length=options.max_length,
        **BATCH,
    )
    return replace(setting, **changes)


# --- what is scored -------------------------------------------------------------------------------

Items = dict[tuple[str, Split], tuple[Item, ...]]


def items_of(options: argparse.Namespace) -> Items:
    """Items that every model of a grid is scored on, by task and split: of other tasks test items,
    since nothing is chosen by them."""
    items: Items = {}
    for name, config in task_configs(options).items():
        task = load_task(config, options.data_dir, 0, options.items, trained_on=[TRAINED])
        splits: tuple[Split, ...] = ("test",) if name in CROSS_DOMAIN else ("validation", "test")
        items |= {(name, split): tuple(getattr(task, split)) for split in splits}
    return items


def questions_of(items: Sequence[Item], max_length: int) -> list[dict[str, Any]]:
    """Items as the harness's side reads them; texts have no prompt, solutions are cut."""
    return [
        {
            "prompt": item.prompt,
            "max_length": None if item.choices else max_length,
            "answers": [
                with_leading_space(item.prompt, answer) if item.prompt else answer
                for answer in item.choices or (item.completion,)
            ],
        }
        for item in items
    ]


def harness(
    options: argparse.Namespace, model: Path, adapters: Sequence[str | None], items: Items
) -> dict[str, Any]:
    """The harness's log-probabilities, tokens and seconds."""
    dtype = str(setting_of(options, model).torch_dtype()).removeprefix("torch.")
    given = {
        "model": str(model),
        "dtype": dtype,
        "adapters": adapters,
        "questions": [
            question
            for chosen in items.values()
            for question in questions_of(chosen, options.max_length)
        ],
        "batch_sizes": BATCH_SIZES["arc_easy"],
    }
    return segment_of(harness_choice, given).found


def tokens_of(
    options: argparse.Namespace, model: Path, items: Items
) -> dict[tuple[str, Split], list[int]]:
    """Tokens of every item by task and split: its prompt with each of its answers."""
    tokenizer = load_tokenizer(model)

    def length(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return {
        key: [
            sum(
                min(question["max_length"] or inf, length(question["prompt"]) + length(answer))
                for answer in question["answers"]
            )
            for question in questions_of(chosen, options.max_length)
        ]
        for key, chosen in items.items()
    }


# --- parity ---------------------------------------------------------------------------------------


def parity(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """The largest differences of losses and log-probabilities, in a grid of a few steps."""
    small = argparse.Namespace(**{**vars(options), **SMALL})
    small.ranks = sorted({options.ranks[0], options.ranks[-1]})
    small.rates, small.full_rates = options.rates[:1], options.full_rates[:1]
    setting = setting_of(small, model)
    with tempfile.TemporaryDirectory() as folder:
        file = study_file(small, model, "grid")
        file["analyze"]["spectra"] = {"enabled": False}
        study, _ = run_study(file, Path(folder))
        theirs = segment_of(trl, Rows.read(setting, options.rows)).found["losses"]
        adapters = [t for t in study.trials if not t.spec.is_full]
        places = [str(Path(folder) / "out" / weights_path(t.spec)) for t in adapters]
        items = {key: chosen for key, chosen in items_of(small).items() if chosen[0].choices}
        scored = harness(small, model, [None, *places], items)
        models = [BASE, *(trial.spec.trial_id for trial in adapters)]
        logprobs = largest_difference(study, models, items, scored["logprobs"])
    trained = {(t.spec.rank, t.spec.lr, t.spec.seed): t.train for t in study.trials}
    ours: dict[str, list[float]] = {}
    for spec in setting.specs():
        record = trained[spec.rank, spec.lr, spec.seed]
        ours[spec.trial_id] = [point.loss for point in record.losses] if record else []
    return {
        **heading("whole_study", setting),
        "parity": difference(ours, theirs),
        "parity_logprobs": logprobs,
    }


def largest_difference(
    study: StudyRecords, models: list[str], items: Items, theirs: list[list[list[float]]]
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


# --- the scripts ----------------------------------------------------------------------------------


def decompose(model: str) -> Turn:
    """Full SVDs of one layer's matrices: seconds of those of attention, and of all."""
    reader = CheckpointReader(Path(model))
    layer = f".{reader.num_layers // 2}."
    weights = {name: reader.weight(name).float() for name in reader.layers if layer in name}

    def turn() -> Segment:
        seconds = {}
        for name, weight in weights.items():
            begun = time.perf_counter()
            torch.linalg.svd(weight, full_matrices=False)
            seconds[name] = time.perf_counter() - begun
        attention = sum(s for name, s in seconds.items() if name.endswith(ATTENTION))
        found = {"layers": reader.num_layers, "attention": attention}
        return Segment(sum(seconds.values()), len(seconds), found)

    return turn


def samples(
    options: argparse.Namespace, model: Path, adapter: Path, items: Items
) -> tuple[dict[str, dict[bool, float]], float]:
    """The scripts' seconds: per trained token, per scored token and of a trial's decompositions,
    by whether the model is tuned as a whole (the base is scored as such a one is). And how many
    times as fast TRL trains the middle rank without its gradient checkpointing."""
    ranks = sorted({options.ranks[0], options.ranks[len(options.ranks) // 2], options.ranks[-1]})
    trials = [(rank, options.rates[0], 0) for rank in ranks] + [(None, options.full_rates[0], 0)]
    setting = setting_of(options, model, trials=tuple(trials), steps=options.sample_steps)
    rows = Rows.read(setting, options.rows)
    *rates, full = segment_of(trl, rows).found["rates"].values()
    rows = replace(rows, setting=replace(setting, trials=(trials[len(rates) // 2],)))
    (faster,) = segment_of(trl_without_recomputation, rows).found["rates"].values()
    tested = {key: chosen for key, chosen in items.items() if key[1] == "test"}
    base, tuned = harness(options, model, [None, str(adapter)], tested)["seconds_by_model"]
    scored = sum(sum(tokens) for tokens in tokens_of(options, model, tested).values())
    svds = segment_of(decompose, str(model))
    layers, attention = svds.found["layers"], svds.found["attention"]
    found = {
        "per_trained_token": {False: statistics.mean(1 / rate for rate in rates), True: 1 / full},
        "per_scored_token": {False: tuned / scored, True: base / scored},
        "decompositions": {
            False: layers * attention,
            True: layers * svds.seconds,
        },
    }
    return found, faster / rates[len(rates) // 2]


# --- the account ----------------------------------------------------------------------------------


def account(
    study: StudyRecords,
    seconds: float,
    whole: Mapping[str, int],
    tokens: Mapping[tuple[str, Split], list[int]],
    scripts: Mapping[str, Mapping[bool, float]],
) -> dict[str, Any]:
    """The scripts' seconds, ours, and which source saves how many.

    Args:
        study: the study; ``seconds`` is what its command took.
        whole: by trial, the tokens of its whole training.
        tokens: by task and split, the tokens of every item.
        scripts: what ``samples`` found.
    """
    is_full = {trial.spec.trial_id: trial.spec.is_full for trial in study.trials} | {BASE: True}
    listed = [is_full[i] for i in (*whole, BASE)]
    train, score, svds = scripts.values()
    trained = {t.spec.trial_id: t.train.num_tokens for t in study.trials if t.train}
    theirs = {
        "training": sum(train[is_full[i]] * count for i, count in whole.items()),
        "scoring": sum(map(score.__getitem__, listed))
        * sum(sum(of_split) for of_split in tokens.values()),
        "spectra": sum(map(svds.__getitem__, listed)),
    }
    points = [point for trial in study.trials for point in trial.curve]
    ours = {
        "training": sum(t.train.seconds for t in study.trials if t.train),
        "scoring": sum(r.seconds for r in [*study.evals.values(), *points]),
        "spectra": sum(record.seconds for t in study.trials for record in t.analyses),
    }
    scored = [(model, sum(tokens[task, split])) for model, task, split in study.evals]
    scored += [(p.trial_id, sum(tokens[p.task, "validation"][: p.n])) for p in points]
    at_their_rate = sum(train[is_full[i]] * count for i, count in trained.items())
    scoring_at_their_rate = sum(score[is_full[model]] * count for model, count in scored)
    saved = {
        "tokens_per_second": at_their_rate - ours["training"],
        "trials": theirs["training"] - at_their_rate,
        "scoring": scoring_at_their_rate - ours["scoring"],
        "items": theirs["scoring"] - scoring_at_their_rate,
        "spectra": theirs["spectra"] - ours["spectra"],
        "rest": sum(ours.values()) - seconds,
    }
    pace = {
        full: sum(t.train.seconds for t in study.trials if t.train and t.spec.is_full == full)
        / max(1, sum(count for i, count in trained.items() if is_full[i] == full))
        for full in (False, True)
    }
    quarter = sum(pace[is_full[i]] * count for i, count in whole.items()) / 4
    quarter += (ours["scoring"] + ours["spectra"]) * len(whole) / 4 / max(1, len(trained))
    total = sum(theirs.values())
    return {
        "ratio": total / seconds,
        "shares": {name: part / (total - seconds) for name, part in saved.items()},
        "seconds": {"rankscope": seconds, **ours, "random_quarter": quarter},
        "seconds_of_scripts": {"all": total, **theirs},
        "trained_tokens": {"rankscope": sum(trained.values()), "scripts": sum(whole.values())},
        "scored_tokens": {
            "rankscope": sum(count for _, count in scored),
            "scripts": len(listed) * sum(sum(of_split) for of_split in tokens.values()),
            "scripts_on_test_items": len(listed)
            * sum(sum(of_split) for (_, split), of_split in tokens.items() if split == "test"),
        },
        "samples": {
            name: {"full" if full else "lora": value for full, value in part.items()}
            for name, part in scripts.items()
        },
    }


def race(options: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    """Run the study whole and the scripts' samples; the study stays in ``folder``."""
    setting, items = setting_of(options, model), items_of(options)
    study, seconds = run_study(study_file(options, model, "search"), folder)
    adapters = [t.spec for t in study.trials if t.status == "done" and t.spec.rank is not None]
    if not adapters:
        raise RuntimeError("no adapter was trained to its end: the harness has none to score")
    place = folder / "out" / weights_path(adapters[0])
    scripts, speed = samples(options, model, place, items)
    rows = Rows.read(setting, options.rows)
    by_seed = {spec.seed: rows.tokens(spec, 0) for spec in setting.specs()}
    rates = {*options.rates, *options.full_rates}  # The search may have trained others
    listed = [trial.spec for trial in study.trials if trial.spec.lr in rates]
    whole = {spec.trial_id: by_seed[spec.seed] for spec in listed}
    found = account(study, seconds, whole, tokens_of(options, model, items), scripts)
    theirs = found["seconds_of_scripts"]
    without_recomputation = theirs["all"] - theirs["training"] * (1 - 1 / speed)
    (advice,) = recommend(study).advice
    statuses = [trial.status for trial in study.trials]
    return {
        **heading("whole_study", setting),
        **found,
        "ratio_trl_without_recomputation": without_recomputation / seconds,
        "trials": {status: statuses.count(status) for status in sorted(set(statuses))},
        "items": options.items,
        "decision": {
            "text": f"{advice.verdict} {advice.summary} {advice.explanation}",
            "net_gains": {
                a.label: a.expected.net.value for a in advice.arms if a.expected is not None
            },
        },
    }


def main() -> int:
    """Show parity, race, print; exit with 1 if the sides did not compute the same."""
    options = parse()
    model = (options.model or real_model()).resolve()
    shown = parity(options, model)
    if (
        shown["parity_logprobs"] > LOGPROB_TOLERANCE["float32"]
        or shown["parity"] > shown["parity_tolerance"]
    ):
        return announce(shown) or 1
    with tempfile.TemporaryDirectory() as folder:
        result = race(options, model, options.out or Path(folder))
    kept = {name: shown[name] for name in shown if name.startswith("parity")}
    return announce({**result, **kept})


if __name__ == "__main__":
    sys.exit(main())
