"""From a study file to everything that can be known before weights are loaded."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rankscope.analyze.spectra import check_spectra_settings
from rankscope.config.study import StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.study_data import prepare_data
from rankscope.device import available_memory_bytes, choose_device, choose_dtype
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import context_notes
from rankscope.evaluate.task_record import task_record
from rankscope.hashing import tokenizer_sha256, weights_sha256
from rankscope.models.adapters.folder import check_other_base
from rankscope.models.adapters.warm_start import resolve_warm_starts, warm_start_notes
from rankscope.models.load import load_tokenizer, model_folder
from rankscope.models.methods import get_method
from rankscope.models.methods.method import TrialFacts
from rankscope.models.parameters import (
    Architecture,
    architecture,
    rank_notes,
    read_model_config,
    target_shapes,
)
from rankscope.models.quantize import check_bitsandbytes
from rankscope.records import TrialSpec
from rankscope.run.groups import Grouping
from rankscope.run.prepared import PreparedStudy
from rankscope.run.trials import duplicate_grid_notes, make_trials
from rankscope.train.memory import MemoryModel, RowCounts
from rankscope.train.step_schedule import check_learning_rates

USABLE_SHARE = 0.9
"""Share of the free memory that groups are planned to take; estimates err by less."""


def prepare_study(config: StudyConfig, weights: bool = True) -> PreparedStudy:
    """Resolve, read, check, split and encode; nothing is trained and no weights are loaded.

    weights: the base's files must be there and are hashed. Without, its configuration and
    tokenizer are enough, and the trials' ids are not those of a run.
    """
    # The base model
    folder = model_folder(config.model, weights)
    model_config = read_model_config(folder)
    shapes = architecture(model_config)
    config, warm_starts = resolve_warm_starts(config, shapes)
    rank_caps = rank_notes(config, shapes)  # checks the targets before rows are read
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    base_sha256 = weights_sha256(folder) if weights or warm_starts else "not read"
    for start in warm_starts.values():
        check_other_base(start.folder, start.base_sha256, base_sha256)

    # The data
    encoder = Encoder(load_tokenizer(folder), config.model.prompt_format, config.train.max_length)
    config = resolve_auto(config, encoder, dtype)
    data = prepare_data(config, encoder)
    context = context_length(model_config)
    truncated = context_notes(encoder, data.tasks.values(), context, config.evaluate)
    tokenizer_hash = tokenizer_sha256(folder)
    records = tuple(task_record(config, encoder, t, tokenizer_hash) for t in data.tasks.values())

    # The trials
    trials = make_trials(
        config,
        base_sha256,
        {name: rows.sha256 for name, rows in data.rows.items()},
        {name: start.sha256 for name, start in warm_starts.items()},
        {name: rows.sha256 for name, rows in data.replay_rows.items()},
        {record.name: record.sha256 for record in records},
    )
    for trial in trials:
        rows = data.rows[trial.task]
        num_steps = check_learning_rates(trial, len(rows.rows), rows.num_tokens, config.train)
        facts = TrialFacts(shapes, folder, rows.num_tokens, num_steps)
        get_method(trial.method).check_trial(trial, facts)
    check_bitsandbytes(config, trials, device)
    if config.analyze.spectra.enabled:
        check_spectra_settings(config.analyze.spectra, compared_shapes(trials, shapes))

    # The groups
    grouping = Grouping(
        MemoryModel(model_config, dtype, device),
        {n: RowCounts.of(rows.rows) for n, rows in {**data.replay_rows, **data.rows}.items()},
        config.memory_limit or round(USABLE_SHARE * available_memory_bytes(device)),
    )
    return PreparedStudy(
        config=config,
        folder=folder,
        shapes=shapes,
        base_sha256=base_sha256,
        device=device,
        dtype=dtype,
        encoder=encoder,
        data=data,
        records=records,
        trials=tuple(trials),
        groups=tuple(grouping.groups(trials, config)),
        grouping=grouping,
        notes=(
            *([] if weights else missing_weights_notes(folder)),
            *encoder.notes,
            *rank_caps,
            *truncated,
            *warm_start_notes(warm_starts.values()),
            *data.notes,
            *duplicate_grid_notes(config),
        ),
    )


def missing_weights_notes(folder: Path) -> list[str]:
    """A note if a model's folder has no weights."""
    if any(folder.glob("*.safetensors")):
        return []
    return [f"{folder} holds no weights: planned from config.json; a run needs *.safetensors there"]


def resolve_auto(config: StudyConfig, encoder: Encoder, dtype: torch.dtype) -> StudyConfig:
    """Replace ``auto`` by what it means here, so that trial ids name what was done."""
    model = config.model.model_copy(update={"prompt_format": encoder.prompt_format})
    name = str(dtype).removeprefix("torch.")
    return config.model_copy(update={"model": model, "dtype": name})


def compared_shapes(
    trials: Sequence[TrialSpec], shapes: Architecture
) -> dict[str, tuple[int, int]]:
    """Shapes of the matrices whose spectra are compared: those that some adapter changes."""
    targets = {target for trial in trials for target in trial.targets}
    targets = targets or set(shapes.linear_shapes) - {shapes.output_layer or ""}
    return target_shapes(shapes, sorted(targets))
