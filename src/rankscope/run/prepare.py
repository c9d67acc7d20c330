"""From a study file to everything that can be known before weights are loaded."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from rankscope.advise.checks import undecidable_notes
from rankscope.advise.retention import scale_notes
from rankscope.analyses import enabled_analyses
from rankscope.config.study import StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.study_data import CachingEncoder, StudyData, prepare_data
from rankscope.device import (
    available_memory_bytes,
    choose_device,
    choose_dtype,
    dtype_name,
    dtype_notes,
)
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import study_item_tokens, task_record
from rankscope.hashing import tokenizer_sha256
from rankscope.models.grouped_lora import lora_implementation_notes
from rankscope.models.load import load_tokenizer
from rankscope.models.quantize import check_bitsandbytes
from rankscope.models.sharding import check_devices
from rankscope.models.study_base import StudyBase, resolve_base
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.run.adaptive import check_adaptive, resolve_rungs
from rankscope.run.given import given_models
from rankscope.run.groups import Grouping, Place
from rankscope.run.machines import Machine
from rankscope.run.prepared import PreparedStudy, wanted_splits
from rankscope.run.trials import check_trials, duplicate_grid_notes, make_trials


def prepare(
    config: StudyConfig, reporter: ProgressReporter | None = None, num_processes: int = 1
) -> PreparedStudy:
    """Prepare a run on this machine: fetch the model, encode the data, check it all.

    The base's weights are hashed, not loaded. ``num_processes`` groups train at a time, and share
    the free memory.
    """
    reporter = reporter or NullReporter()
    reporter.stage("preparing", 3)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    config, base = _resolved_here(config, device, dtype, weights=True)

    reporter.advance(1, "rows")
    encoder = _new_encoder(Encoder, config, base)
    config = _resolve_auto(config, encoder, dtype)
    data = prepare_data(config, encoder)

    reporter.advance(2, "trials and groups")
    sharing = num_processes * (config.train.devices if device.type == "cpu" else 1)
    place = Place(device, dtype, available_memory_bytes(device) / sharing)
    data_sha256 = {name: rows.sha256 for name, rows in data.rows.items()}
    study = _prepared(config, base, place, encoder, data, data_sha256)
    check_bitsandbytes(config, study.trials, device)
    check_devices(config, study.trials, device)
    reporter.finish()
    return study


def outline(
    config: StudyConfig, machine: Machine | None = None, reporter: ProgressReporter | None = None
) -> PreparedStudy:
    """Prepare a plan: the base's configuration and tokenizer are enough, and some rows stand for
    others of their length (``data/study_data.py``).

    The trials' ids are not those of a run. ``machine`` is planned for in place of this one.
    """
    reporter = reporter or NullReporter()
    reporter.stage("preparing", 3)
    device = machine.device if machine else choose_device(config.device)
    dtype = machine.dtype(config.dtype) if machine else choose_dtype(config.dtype, device)
    if machine is None:
        config, base = _resolved_here(config, device, dtype, weights=False)
    else:
        config, base = resolve_base(config, weights=False)

    reporter.advance(1, "rows")
    encoder = _new_encoder(CachingEncoder, config, base)
    config = _resolve_auto(config, encoder, dtype)
    data = prepare_data(config, encoder, whole=False)

    reporter.advance(2, "trials and groups")
    free = machine.memory * 1e9 if machine else available_memory_bytes(device)
    place = Place(device, dtype, free / (config.train.devices if device.type == "cpu" else 1))
    study = _prepared(config, base, place, encoder, data, dict.fromkeys(data.rows, ""))
    if machine is None:
        check_bitsandbytes(config, study.trials, device)
        check_devices(config, study.trials, device)
    reporter.finish()
    return study


def _resolved_here(
    config: StudyConfig, device: torch.device, dtype: torch.dtype, *, weights: bool
) -> tuple[StudyConfig, StudyBase]:
    """The base, with notes on how this machine trains adapters on it."""
    config, base = resolve_base(config, weights=weights)
    notes = lora_implementation_notes(config.train.lora_implementation, device, dtype)
    return config, replace(base, notes=(*base.notes, *notes))


def _new_encoder(kind: type[Encoder], config: StudyConfig, base: StudyBase) -> Encoder:
    max_length = config.train.max_length if config.arms else None  # items are scored whole
    return kind(load_tokenizer(base.folder), config.model.prompt_format, max_length)


def _resolve_auto(config: StudyConfig, encoder: Encoder, dtype: torch.dtype) -> StudyConfig:
    """Resolve ``auto`` of prompt format and dtype, so that trial ids name what was done."""
    model = config.model.model_copy(update={"prompt_format": encoder.prompt_format})
    return config.model_copy(update={"model": model, "dtype": dtype_name(dtype)})


def _prepared(
    config: StudyConfig,
    base: StudyBase,
    place: Place,
    encoder: Encoder,
    data: StudyData,
    data_sha256: Mapping[str, str],
) -> PreparedStudy:
    """Tasks, trials and their checks, the same for a run and a plan."""
    tokenizer = tokenizer_sha256(base.folder)
    records = tuple(task_record(config, encoder, task, tokenizer) for task in data.tasks.values())
    splits = [(data.tasks[name], split) for name, split in wanted_splits(config, records, None)]
    context = context_length(base.config)
    items, truncated = study_item_tokens(encoder, splits, context, config.evaluate)
    trials = make_trials(
        config,
        base.sha256,
        data_sha256=data_sha256,
        adapter_sha256=base.warm_starts,
        replay_sha256={name: rows.sha256 for name, rows in data.replay_rows.items()},
        validation_sha256={task.name: task.validation_sha256 for task in records},
    )
    labels = check_trials(config, trials, base, data.rows)
    rungs, rung_notes = resolve_rungs(config, data, labels)
    num_items = {name: len(data.tasks[name].test) for name in data.rows}
    study = PreparedStudy(
        config=config,
        base=base,
        device=place.device,
        dtype=place.dtype,
        encoder=encoder,
        data=data,
        items=items,
        task_records=records,
        trials=(*trials, *given_models(config, base, records)),
        grouping=Grouping.of(config, base.config, data, place),
        rungs=rungs,
        notes=(
            *base.notes,
            *dtype_notes(place.dtype, place.device),
            *encoder.notes,
            *truncated,
            *data.notes,
            *scale_notes(records, config.objective),
            *undecidable_notes(num_items, len(config.seeds)),
            *duplicate_grid_notes(config),
            *rung_notes,
        ),
    )
    check_adaptive(study)
    for analysis in enabled_analyses(config):
        analysis.check(study)
    return study
