"""From a study file to everything that can be known before weights are loaded."""

from dataclasses import replace

import torch

from rankscope.advise.checks import width_notes
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
from rankscope.run.groups import USABLE_SHARE, Grouping
from rankscope.run.machines import Machine
from rankscope.run.prepared import PreparedStudy, wanted_splits
from rankscope.run.trials import check_trials, duplicate_grid_notes, make_trials
from rankscope.train.memory import MemoryModel, RowCounts


def prepare(
    config: StudyConfig, reporter: ProgressReporter | None = None, num_processes: int = 1
) -> PreparedStudy:
    """Prepare a run on this machine: fetch the model, encode the data, check it all.

    The base's weights are hashed, not loaded. ``num_processes`` groups train at a time, and share
    the free memory.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    room = available_memory_bytes(device) / num_processes
    study = _prepared(config, device, dtype, room, reporter or NullReporter(), is_plan=False)
    return _checked_here(study)


def outline(
    config: StudyConfig, machine: Machine | None = None, reporter: ProgressReporter | None = None
) -> PreparedStudy:
    """Prepare a plan: the base's configuration and tokenizer are enough, and some rows stand for
    others of their length (``data/study_data.py``).

    The trials' ids are not those of a run. ``machine`` is planned for in place of this one.
    """
    reporter = reporter or NullReporter()
    if machine is not None:
        dtype, room = machine.dtype(config.dtype), machine.memory * 1e9
        return _prepared(config, machine.device, dtype, room, reporter, is_plan=True)
    device = choose_device(config.device)
    dtype, room = choose_dtype(config.dtype, device), available_memory_bytes(device)
    return _checked_here(_prepared(config, device, dtype, room, reporter, is_plan=True))


def _checked_here(study: PreparedStudy) -> PreparedStudy:
    """Raise UserError if this machine cannot run the study; add notes on how it does."""
    config, train = study.config, study.config.train
    check_bitsandbytes(config.quantize, train.optimizer, study.trials, study.device)
    check_devices(config, study.trials, study.device)
    notes = lora_implementation_notes(train.lora_implementation, study.device, study.dtype)
    return replace(study, notes=(*study.notes, *notes))


def _read(
    config: StudyConfig, dtype: torch.dtype, reporter: ProgressReporter, *, is_plan: bool
) -> tuple[StudyConfig, StudyBase, Encoder, StudyData]:
    """The base and the encoded rows; the study with ``auto`` resolved, so that trial ids name what
    was done."""
    reporter.stage("preparing", 3)
    config, base = resolve_base(config, weights=not is_plan)
    reporter.advance(1, "rows")
    max_length = config.train.max_length if config.arms else None  # items are scored whole
    kind = CachingEncoder if is_plan else Encoder
    encoder = kind(load_tokenizer(base.folder), config.model.prompt_format, max_length)
    model = config.model.model_copy(update={"prompt_format": encoder.prompt_format})
    config = config.model_copy(update={"model": model, "dtype": dtype_name(dtype)})
    return config, base, encoder, prepare_data(config, encoder, whole=not is_plan)


def _prepared(
    config: StudyConfig,
    device: torch.device,
    dtype: torch.dtype,
    free_bytes: float,
    reporter: ProgressReporter,
    *,
    is_plan: bool,
) -> PreparedStudy:
    config, base, encoder, data = _read(config, dtype, reporter, is_plan=is_plan)
    reporter.advance(2, "trials and groups")
    tokenizer, tasks = tokenizer_sha256(base.folder), data.tasks
    records = tuple(task_record(config, encoder, task, tokenizer) for task in tasks.values())
    wanted = wanted_splits(config.evaluate.split, records, None)
    splits = [(tasks[name], split) for name, split in wanted]
    context = context_length(base.config)
    items, truncated = study_item_tokens(encoder, splits, context, config.evaluate)
    trials = make_trials(
        config,
        base.sha256,
        data_sha256={name: "" if is_plan else rows.sha256 for name, rows in data.rows.items()},
        adapter_sha256=base.warm_starts,
        replay_sha256={name: rows.sha256 for name, rows in data.replay_rows.items()},
        validation_sha256={task.name: task.validation_sha256 for task in records},
        fewer_sha256={
            (name, n): str(n) if is_plan else rows.sha256
            for name, of_task in data.fewer_rows.items()
            for n, rows in of_task.items()
        },
    )
    labels = check_trials(config, trials, base, data.rows_of)
    rungs, rung_notes = resolve_rungs(config, data, labels)
    free_bytes /= config.train.devices if device.type == "cpu" else 1
    rows = {**data.replay_rows, **data.rows}
    num_items = {n: len(tasks[n].validation) + len(tasks[n].test) for n in data.rows}
    in_accuracy = {task.name: task.score_unit == "accuracy" for task in records}
    study = PreparedStudy(
        config=config,
        base=base,
        device=device,
        dtype=dtype,
        encoder=encoder,
        data=data,
        items=items,
        task_records=records,
        trials=(*trials, *given_models(config, base, records)),
        grouping=Grouping(
            MemoryModel(base.config, dtype, device),
            {name: RowCounts.of(encoded.rows) for name, encoded in rows.items()},
            config.memory_limit or round(USABLE_SHARE * free_bytes),
        ),
        rungs=rungs,
        notes=(
            *base.notes,
            *dtype_notes(dtype, device),
            *encoder.notes,
            *truncated,
            *data.notes,
            *scale_notes(records, config.objective),
            *width_notes(num_items, len(config.seeds), config.objective.margin, in_accuracy),
            *duplicate_grid_notes(config),
            *rung_notes,
        ),
    )
    _check(study)
    reporter.finish()
    return study


def _check(study: PreparedStudy) -> None:
    check_adaptive(study)
    for analysis in enabled_analyses(study.config):
        analysis.check(study)
