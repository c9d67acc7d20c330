"""Everything a study needs that can be known before weights are loaded.

``check`` shows it, ``plan`` counts it and ``run`` works on it: tokenizer, tasks split and encoded,
trials with their ids, groups.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rankscope.analyze.spectra import check_too_many
from rankscope.config.analyze import SpectraConfig
from rankscope.config.study import Interval, StudyConfig, TrainConfig
from rankscope.data.contamination import find_contamination_between_tasks
from rankscope.data.encode import EncodedRows, Encoder, encode_rows
from rankscope.data.study_tasks import check_untrainable, read_replay, read_tasks, replay_notes
from rankscope.data.tasks import LoadedTask
from rankscope.device import available_memory_bytes, choose_device, choose_dtype
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import context_length, cut_notes
from rankscope.evaluate.task_record import task_record
from rankscope.models.adapters.folder import check_other_base
from rankscope.models.adapters.warm_start import resolve_warm_starts, warm_start_notes
from rankscope.models.load import load_tokenizer, model_folder
from rankscope.models.methods.eva_directions import RHO
from rankscope.models.parameters import (
    Architecture,
    architecture,
    rank_notes,
    read_config,
    target_shapes,
)
from rankscope.models.peft_backend.settings import count_parameters, peft_config
from rankscope.models.quantize import check_quantize, require_bitsandbytes
from rankscope.provenance import sha256_json, tokenizer_sha256, weights_sha256
from rankscope.records import BASE, EvalKey, Split, TaskRecord, TrialSpec, Variant
from rankscope.run.groups import Group, make_groups
from rankscope.run.prepared import SPLITS, Grouping, PreparedStudy
from rankscope.run.trials import duplicate_grid_points, make_trials
from rankscope.train.loop import check_zero_rates
from rankscope.train.memory import GroupMemory, MemoryModel, RowCounts
from rankscope.train.step_schedule import due_steps, planned_steps, trial_protocol

USABLE_SHARE = 0.9
"""Part of the memory that is free now which groups are planned to take; estimates err by less."""


def prepare_study(config: StudyConfig, weights: bool = True) -> PreparedStudy:
    """Resolve, read, split and encode; nothing is trained and no weights are loaded.

    weights: the base's files must be there and are hashed. Without, its configuration and
    tokenizer are enough, and trials' ids are not those of a run.

    Raises:
        UserError: the model, a target module, a task or a row cannot be used.
    """
    folder = model_folder(config.model, weights)
    model_config = read_config(folder)
    shapes = architecture(model_config)
    config, starts = resolve_warm_starts(config, shapes)
    caps = rank_notes(config, shapes)  # refuses a target that is not there, before rows are read
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    tokenizer = load_tokenizer(folder)
    encoder = Encoder(tokenizer, config.model.prompt_format, config.train.max_length)
    config = resolved(config, encoder, dtype)
    read = read_tasks(config)
    check_untrainable(config, read)
    replay, replayed = read_replay(config, read, encoder)
    tasks, contamination_notes = with_contamination(config, read, replayed)
    context = context_length(model_config)
    scoring = [
        note
        for task in tasks.values()
        for part in task.parts or (task,)
        for split in SPLITS
        for note in cut_notes(encoder, part, split, context, config.evaluate)
    ]
    rows = {
        task.name: encode_rows(encoder, tasks[task.name].train, config.train.labels)
        for task in config.tasks
    }
    base_sha256 = weights_sha256(folder) if weights or starts else "not read"
    for start in starts.values():
        check_other_base(start.folder, start.base_sha256, base_sha256)
    tokenizer_hash = tokenizer_sha256(folder)
    records = tuple(task_record(config, encoder, task, tokenizer_hash) for task in tasks.values())
    trials = make_trials(
        config,
        base_sha256,
        {name: rows_sha256(encoded) for name, encoded in rows.items()},
        {name: start.sha256 for name, start in starts.items()},
        {name: rows_sha256(encoded) for name, encoded in replay.items()},
        {record.name: record.sha256 for record in records},
    )
    for trial in trials:
        encoded, train = rows[trial.task], trial_protocol(trial, config.train)
        check_zero_rates(planned_steps(len(encoded.rows), encoded.num_tokens, train), train)
    check_eva(trials, rows, shapes)
    check_vectors(config, trials, shapes)
    check_methods(config, trials, device)
    for settings, targets, num_steps in peft_methods(trials, rows, config.train):
        count_parameters(model_config, peft_config(json.loads(settings), targets, num_steps))
    grouping = Grouping(
        MemoryModel(model_config, dtype, device),
        {name: RowCounts.of(encoded.rows) for name, encoded in {**replay, **rows}.items()},
        config.memory_limit or round(USABLE_SHARE * available_memory_bytes(device)),
    )
    notes = [] if weights else without_weights(folder)
    notes += [*encoder.notes, *caps, *(note for task in tasks.values() for note in task.notes)]
    repeated = duplicate_grid_points(config)
    notes += [*scoring, *warm_start_notes(starts.values())]
    notes += replay_notes(config)
    notes += contamination_notes
    if repeated:
        were = (
            "1 grid point is repeated" if repeated == 1 else f"{repeated} grid points are repeated"
        )
        notes.append(f"{were} in the study file and merged: each is trained once")
    notes += row_notes({**replay, **rows}, config.train.max_length)
    return PreparedStudy(
        config=config,
        folder=folder,
        shapes=shapes,
        base_sha256=base_sha256,
        device=device,
        dtype=dtype,
        encoder=encoder,
        tasks=tasks,
        rows=rows,
        records=records,
        trials=tuple(trials),
        groups=tuple(grouping.groups(trials, config)),
        grouping=grouping,
        notes=tuple(notes),
        replay=replay,
    )


def without_weights(folder: Path) -> list[str]:
    """A note where a model's folder holds none."""
    if any(folder.glob("*.safetensors")):
        return []
    return [f"{folder} holds no weights: planned from config.json; a run needs *.safetensors there"]


def with_contamination(
    config: StudyConfig, tasks: Mapping[str, LoadedTask], replayed: Mapping[str, LoadedTask]
) -> tuple[dict[str, LoadedTask], list[str]]:
    """The tasks, each with the test items that some training row of the study holds; and notes.

    A task that the study does not train on contamination nothing from training rows of its own.
    """
    trained = {**replayed, **{task.name: tasks[task.name] for task in config.tasks}}
    notes, between = find_contamination_between_tasks(
        {name: task.train for name, task in trained.items()},
        {name: task.test for name, task in tasks.items()},
    )
    found = {}
    for name, task in tasks.items():
        own = task.contaminated_ids if name in trained else frozenset[str]()
        found[name] = replace(task, contaminated_ids=own | between.get(name, set()))
    return found, notes


def row_notes(rows: Mapping[str, EncodedRows], max_length: int) -> list[str]:
    """One sentence per task whose training rows do not all fit."""
    return [
        f"{name}: {encoded.dropped} training rows dropped, {encoded.truncated} completions "
        f"cut at max_length = {max_length} tokens"
        for name, encoded in rows.items()
        if encoded.dropped or encoded.truncated
    ]


def check_methods(config: StudyConfig, trials: Sequence[TrialSpec], device: torch.device) -> None:
    """Raise UserError for what this machine, or a base in 4 bits, cannot do."""
    if config.train.optimizer == "adamw8bit" and any(trial.is_full for trial in trials):
        require_bitsandbytes("optimizer: adamw8bit")
    if config.quantize == "none":
        return
    check_quantize(device)
    if any(trial.is_full for trial in trials):
        raise UserError(
            "quantize: 4bit: full fine-tuning trains the base's own weights, which 4 bits cannot "
            "hold; remove the arm of method 'full', or 'quantize'"
        )


def peft_methods(
    trials: Iterable[TrialSpec], rows: Mapping[str, EncodedRows], train: TrainConfig
) -> list[tuple[str, tuple[str, ...], int]]:
    """Settings, targets and optimizer steps of every method of PEFT's in the study, each once."""
    found = []
    for trial in trials:
        if trial.peft is not None:
            encoded, own = rows[trial.task], trial_protocol(trial, train)
            steps = planned_steps(len(encoded.rows), encoded.num_tokens, own)
            found.append((trial.peft, trial.targets, steps))
    return list(dict.fromkeys(found))


def check_eva(
    trials: Iterable[TrialSpec], rows: Mapping[str, EncodedRows], shapes: Architecture
) -> None:
    """Raise UserError where EVA would look for more directions than there are training tokens."""
    for trial in trials:
        if trial.method != "eva" or trial.rank is None:
            continue
        targets = target_shapes(shapes, trial.targets).values()
        needed = max(min(round(RHO * trial.rank), inputs) for _, inputs in targets)
        found = rows[trial.task].num_tokens
        if found < needed:
            raise UserError(
                f"method eva, rank {trial.rank}: {trial.task} has {found} training tokens, "
                f"expected at least {needed} to find as many directions in; choose a smaller rank"
            )


def check_vectors(config: StudyConfig, trials: Iterable[TrialSpec], shapes: Architecture) -> None:
    """Raise UserError where spectra are asked for more vectors than a compared matrix has."""
    asked = config.analyze.spectra
    targets = {target for trial in trials for target in trial.targets}
    targets = targets or set(shapes.linear_shapes) - {shapes.output_layer or ""}
    compared = target_shapes(shapes, sorted(targets))
    intruder_k = asked.intruder_k if asked.intruder_k != SpectraConfig().intruder_k else None
    if asked.enabled:
        check_too_many(
            compared,
            {"analyze.spectra.top_k": asked.top_k, "analyze.spectra.intruder_k": intruder_k},
        )


def resolved(config: StudyConfig, encoder: Encoder, dtype: torch.dtype) -> StudyConfig:
    """``auto`` replaced by what it means here, so that trial ids say what was done."""
    model = config.model.model_copy(update={"prompt_format": encoder.prompt_format})
    name = str(dtype).removeprefix("torch.")
    return config.model_copy(update={"model": model, "dtype": name})


def rows_sha256(rows: EncodedRows) -> str:
    """Hash of what training sees: tokens and labels, so tokenizer and template are in it too."""
    return sha256_json([[row.input_ids, [int(x) for x in row.is_label]] for row in rows.rows])
