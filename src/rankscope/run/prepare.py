"""From a study file to everything that can be known before weights are loaded."""

from pathlib import Path

import torch

from rankscope.advise.retention import scale_notes
from rankscope.analyze.spectra import check_spectra_settings, compared_matrices
from rankscope.config.study import StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.stand_ins import CachingEncoder
from rankscope.data.study_data import prepare_data
from rankscope.data.tasks import items_sha256
from rankscope.device import available_memory_bytes, choose_device, choose_dtype, dtype_notes
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import study_truncation_notes
from rankscope.evaluate.task_record import task_record, task_sha256
from rankscope.hashing import tokenizer_sha256, weights_sha256
from rankscope.models.adapters.folder import check_same_base
from rankscope.models.adapters.warm_start import resolve_warm_starts, warm_start_notes
from rankscope.models.load import load_tokenizer
from rankscope.models.lora_implementation import lora_implementation_notes
from rankscope.models.methods import get_method
from rankscope.models.methods.method import TrialFacts
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import architecture, check_targets, rank_notes, read_model_config
from rankscope.models.quantize import check_bitsandbytes
from rankscope.models.sharding import check_devices
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.run.adaptive import check_adaptive, few_items_notes, usable_rungs
from rankscope.run.groups import Grouping
from rankscope.run.machines import Machine
from rankscope.run.prepared import PreparedStudy
from rankscope.run.trials import duplicate_grid_notes, make_trials
from rankscope.train.memory import MemoryModel, RowCounts
from rankscope.train.step_schedule import check_learning_rates, trial_steps

USABLE_SHARE = 0.9
"""Plan groups to use 90 % of the free memory; estimates are off by less than the other 10 %."""


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
    trials' ids are then not those of a run. If an arm has ``init_from`` and the weights are there,
    they are hashed all the same.
    machine: plan for it in place of this one.
    num_processes: train that many groups at a time, which share the free memory.
    grouped: form the groups, which runs passes on shapes; False leaves them out.
    """
    reporter = reporter or NullReporter()
    reporter.stage("preparing", 3)

    # The base model
    folder = model_folder(config.model, weights)
    model_config = read_model_config(folder)
    shapes = architecture(model_config)
    config, warm_starts = resolve_warm_starts(config, shapes)
    check_targets(config, shapes)  # before rows are read, which can take long
    device = machine.device if machine else choose_device(config.device)
    dtype = machine.dtype(config.dtype) if machine else choose_dtype(config.dtype, device)
    free_bytes = machine.memory * 1e9 if machine else available_memory_bytes(device)
    implementation = config.train.lora_implementation
    notes = [] if machine else lora_implementation_notes(implementation, device, dtype)
    missing_weights = [] if weights else missing_weights_notes(folder)
    is_hashed = weights or (bool(warm_starts) and not missing_weights)
    base_sha256 = weights_sha256(folder) if is_hashed else "not read"
    for start in warm_starts.values() if is_hashed else ():
        check_same_base(start.folder, start.base_sha256, base_sha256)

    # The data
    reporter.advance(1, "rows")
    encoder = (Encoder if weights else CachingEncoder)(
        load_tokenizer(folder), config.model.prompt_format, config.train.max_length
    )
    config = resolve_auto(config, encoder, dtype)
    data = prepare_data(config, encoder, whole=weights)
    truncated = study_truncation_notes(
        encoder, data.tasks.values(), context_length(model_config), config.evaluate
    )
    tokenizer_hash = tokenizer_sha256(folder)
    scored_by = (encoder, tokenizer_hash, config.evaluate)

    # The trials
    reporter.advance(2, "trials and groups")
    trials = make_trials(
        config,
        base_sha256,
        data_sha256={n: rows.sha256 if weights else "" for n, rows in data.rows.items()},
        adapter_sha256={name: start.sha256 for name, start in warm_starts.items()},
        replay_sha256={name: rows.sha256 for name, rows in data.replay_rows.items()},
        validation_sha256={
            name: task_sha256(task, *scored_by, items_sha256(task.validation))
            for name, task in data.tasks.items()
        },
    )
    labels: dict[int, str] = {}
    for trial in trials:
        rows = data.rows[trial.task]
        num_steps = trial_steps(trial, len(rows.rows), rows.num_tokens, config.train)
        labels.setdefault(num_steps, trial.label)
        check_learning_rates(trial, num_steps, config.train)
        facts = TrialFacts(shapes, folder, rows.num_tokens, num_steps)
        get_method(trial.method).check_trial(trial, facts)
    if machine is None:
        check_bitsandbytes(config, trials, device)
        check_devices(config, trials, device)
    if config.analyze.spectra.enabled:
        check_spectra_settings(config.analyze.spectra, compared_matrices(shapes, trials))

    # The groups
    if device.type == "cpu":
        num_processes *= config.train.devices
    grouping = Grouping(
        MemoryModel(model_config, dtype, device),
        {n: RowCounts.of(rows.rows) for n, rows in {**data.replay_rows, **data.rows}.items()},
        config.memory_limit or round(USABLE_SHARE * free_bytes / num_processes),
    )
    groups = tuple(grouping.groups(trials, config)) if grouped else ()
    reporter.finish()
    records = tuple(
        task_record(config, encoder, task, tokenizer_hash) for task in data.tasks.values()
    )
    of_rung = config.train.evaluate_items
    num_items = {name: min(of_rung, len(data.tasks[name].validation)) for name in data.rows}
    few_items = few_items_notes(config, num_items)
    prepared = PreparedStudy(
        config=config,
        folder=folder,
        shapes=shapes,
        base_sha256=base_sha256,
        device=device,
        dtype=dtype,
        encoder=encoder,
        data=data,
        task_records=records,
        trials=tuple(trials),
        groups=groups,
        grouping=grouping,
        rungs=() if few_items else usable_rungs(config, labels),
        notes=(
            *missing_weights,
            *dtype_notes(dtype, device),
            *notes,
            *encoder.notes,
            *rank_notes(config, shapes),
            *truncated,
            *warm_start_notes(warm_starts.values()),
            *data.notes,
            *scale_notes(records, config.objective),
            *duplicate_grid_notes(config),
            *few_items,
        ),
    )
    if config.strategy == "adaptive":
        check_adaptive(prepared)
    return prepared


def missing_weights_notes(folder: Path) -> list[str]:
    """A note if a model's folder has no weights."""
    if any(folder.glob("*.safetensors")):
        return []
    return [f"{folder} holds no weights: planned from config.json; a run needs *.safetensors there"]


def resolve_auto(config: StudyConfig, encoder: Encoder, dtype: torch.dtype) -> StudyConfig:
    """Resolve ``auto`` of prompt format and dtype, so that trial ids name what was done."""
    model = config.model.model_copy(update={"prompt_format": encoder.prompt_format})
    name = str(dtype).removeprefix("torch.")
    return config.model_copy(update={"model": model, "dtype": name})
