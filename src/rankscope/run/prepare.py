"""From a study file to everything that can be known before weights are loaded."""

from importlib import import_module

import torch

from rankscope.advise.checks import undecidable_notes
from rankscope.advise.retention import scale_notes
from rankscope.analyses import enabled_analyses
from rankscope.config.study import StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.stand_ins import CachingEncoder
from rankscope.data.study_data import prepare_data
from rankscope.device import (
    available_memory_bytes,
    choose_device,
    choose_dtype,
    dtype_name,
    dtype_notes,
)
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import study_item_tokens
from rankscope.evaluate.scoring_memory import ScoringShape
from rankscope.evaluate.task_record import task_record
from rankscope.hashing import tokenizer_sha256
from rankscope.models.load import load_tokenizer
from rankscope.models.lora_implementation import lora_implementation_notes
from rankscope.models.quantize import check_bitsandbytes
from rankscope.models.sharding import check_devices
from rankscope.models.study_base import resolve_base
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.run.adaptive import check_adaptive, resolve_rungs
from rankscope.run.groups import Grouping
from rankscope.run.machines import Machine
from rankscope.run.prepared import PreparedStudy, wanted_splits
from rankscope.run.trials import check_trials, duplicate_grid_notes, make_trials


def prepare_study(
    config: StudyConfig,
    weights: bool = True,
    reporter: ProgressReporter | None = None,
    machine: Machine | None = None,
    num_processes: int = 1,
    grouped: bool = True,
) -> PreparedStudy:
    """Fetch the model, encode the data, check it all and plan the groups; weights are only hashed.

    weights: the base's weights must be there and are hashed. False plans from its configuration
    and tokenizer, with rows that stand for others of their length (``data/stand_ins.py``). The
    trials' ids are then not those of a run.
    machine: plan for it in place of this one.
    num_processes: train that many groups at a time, which share the free memory.
    grouped: form the groups, which runs passes on shapes; False leaves them out.
    """
    reporter = reporter or NullReporter()
    reporter.stage("preparing", 3)
    device = machine.device if machine else choose_device(config.device)
    dtype = machine.dtype(config.dtype) if machine else choose_dtype(config.dtype, device)
    free = machine.memory * 1e9 if machine else available_memory_bytes(device)
    config, base = resolve_base(config, weights)
    implementation = config.train.lora_implementation
    notes = [] if machine else lora_implementation_notes(implementation, device, dtype)

    reporter.advance(1, "rows")
    tokenizer, new_encoder = load_tokenizer(base.folder), Encoder if weights else CachingEncoder
    max_length = config.train.max_length if config.arms else None
    encoder = new_encoder(tokenizer, config.model.prompt_format, max_length)
    config = _resolve_auto(config, encoder, dtype)
    if any(task.is_harness_task for task in config.evaluate.cross_domain):
        import_module("rankscope.evaluate.lm_eval.bridge")  # registers how they are read
    data = prepare_data(config, encoder, whole=weights)
    context, evaluate = context_length(base.config), config.evaluate
    tokenizer_hash = tokenizer_sha256(base.folder)
    records = tuple(task_record(config, encoder, t, tokenizer_hash) for t in data.tasks.values())
    scored = wanted_splits(config, records, trained_on=None)
    splits = [(data.tasks[name], split) for name, split in scored]
    items, truncated = study_item_tokens(encoder, splits, context, evaluate)

    reporter.advance(2, "trials and groups")
    trials = make_trials(
        config,
        base.sha256,
        data_sha256={n: rows.sha256 if weights else "" for n, rows in data.rows.items()},
        adapter_sha256={name: start.sha256 for name, start in base.warm_starts.items()},
        replay_sha256={name: rows.sha256 for name, rows in data.replay_rows.items()},
        validation_sha256={task.name: task.validation_sha256 for task in records},
    )
    labels = check_trials(config, trials, base, data.rows)
    trials += base.given
    if machine is None:
        check_bitsandbytes(config, trials, device)
        check_devices(config, trials, device)
    rungs, rung_notes = resolve_rungs(config, data, labels)

    grouping = Grouping.of(config, base.config, data, (dtype, device), free, num_processes)
    groups = tuple(grouping.groups(trials, config)) if grouped else ()
    reporter.finish()
    prepared = PreparedStudy(
        config=config,
        base=base,
        device=device,
        dtype=dtype,
        encoder=encoder,
        data=data,
        items=items,
        scoring=tuple(
            ScoringShape.of(grouping.model, of_split, evaluate) for of_split in items.values()
        ),
        task_records=records,
        trials=tuple(trials),
        groups=groups,
        grouping=grouping,
        rungs=rungs,
        notes=(
            *base.notes,
            *dtype_notes(dtype, device),
            *notes,
            *encoder.notes,
            *truncated,
            *data.notes,
            *scale_notes(records, config.objective),
            *undecidable_notes(
                {name: len(data.tasks[name].test) for name in data.rows}, len(config.seeds)
            ),
            *duplicate_grid_notes(config),
            *rung_notes,
        ),
    )
    check_adaptive(prepared)
    for analysis in enabled_analyses(config):
        analysis.check(prepared)
    return prepared


def _resolve_auto(config: StudyConfig, encoder: Encoder, dtype: torch.dtype) -> StudyConfig:
    """Resolve ``auto`` of prompt format and dtype, so that trial ids name what was done."""
    model = config.model.model_copy(update={"prompt_format": encoder.prompt_format})
    return config.model_copy(update={"model": model, "dtype": dtype_name(dtype)})
