"""Everything a study needs that can be known before weights are loaded.

``check`` shows it, ``plan`` counts it and ``run`` works on it: tokenizer, tasks split and encoded,
trials with their ids, groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rankscope.analyze.checks import check_spectra_settings
from rankscope.config.study import Interval, StudyConfig, TrainConfig
from rankscope.data.contamination import find_contamination_between_tasks
from rankscope.data.encode import EncodedRows, Encoder, encode_rows
from rankscope.data.study_tasks import check_untrainable, read_replay, read_tasks, replay_notes
from rankscope.data.tasks import LoadedTask
from rankscope.device import available_memory_bytes, choose_device, choose_dtype
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import context_notes
from rankscope.evaluate.task_record import task_record
from rankscope.models.adapters.folder import check_other_base
from rankscope.models.adapters.warm_start import resolve_warm_starts, warm_start_notes
from rankscope.models.load import load_tokenizer, model_folder
from rankscope.models.methods import get_method
from rankscope.models.parameters import (
    Architecture,
    architecture,
    rank_notes,
    read_model_config,
    target_shapes,
)
from rankscope.models.quantize import check_bitsandbytes
from rankscope.provenance import sha256_json, tokenizer_sha256, weights_sha256
from rankscope.records import BASE, EvalKey, Split, TaskRecord, TrialSpec, Variant
from rankscope.run.groups import Group, make_groups
from rankscope.run.trials import duplicate_grid_points, make_trials
from rankscope.train.loop import check_zero_rates
from rankscope.train.memory import GroupMemory, MemoryModel, RowCounts
from rankscope.train.step_schedule import due_steps, planned_steps, trial_protocol

SPLITS: tuple[Split, ...] = ("validation", "test")

USABLE_SHARE = 0.9
"""Part of the memory that is free now which groups are planned to take; estimates err by less."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """How trials become groups that fit into ``room_bytes``."""

    model: MemoryModel
    counts: Mapping[str, RowCounts]
    """By training task, and by task whose rows are replayed."""
    room_bytes: int

    def counts_of(self, group: Group) -> RowCounts:
        """Of a group's rows; with replay every row is taken to be of the longer kind."""
        counts = [self.counts[group[0].task]]
        counts += [self.counts[trial.replay] for trial in group if trial.replay is not None]
        return RowCounts.longer(counts)

    def memory(self, group: Group, train: TrainConfig) -> GroupMemory:
        """What training a group takes."""
        return self.model.of_group(group, self.counts_of(group), train)

    def groups(self, trials: Sequence[TrialSpec], config: StudyConfig) -> list[Group]:
        """Trials cut into groups as ``max_group_size`` and the memory allow."""

        def fits(group: Group) -> bool:
            return self.memory(group, config.train).total_bytes <= self.room_bytes

        return make_groups(trials, config.max_group_size, fits)


@dataclass(frozen=True, slots=True)
class PreparedStudy:
    """A study file resolved on this machine.

    Attributes:
        config: the study file with ``auto`` values resolved.
        folder: the base model's folder.
        shapes: of its matrices.
        base_sha256: hash of its weights, where they were read.
        encoder: turns items into tokens.
        tasks: every task that is trained on or scored, by name.
        rows: encoded training rows of each training task.
        records: one per task, as stored.
        trials, groups: in the order they run.
        grouping: how much memory groups take, and how much there is.
        notes: what a reader of the results must know.
    """

    config: StudyConfig
    folder: Path
    shapes: Architecture
    base_sha256: str
    device: torch.device
    dtype: torch.dtype
    encoder: Encoder
    tasks: Mapping[str, LoadedTask]
    rows: Mapping[str, EncodedRows]
    records: tuple[TaskRecord, ...]
    trials: tuple[TrialSpec, ...]
    groups: tuple[Group, ...]
    grouping: "Grouping"
    notes: tuple[str, ...]
    replay: Mapping[str, EncodedRows] = field(default_factory=dict)
    """By task, the encoded rows that arms replay."""

    def wanted_evals(self, trial_id: str, trained_on: str | None) -> list[EvalKey]:
        """What one model is scored on, in order.

        Every task's test split; and the validation split of what choosing looks at: the model's
        own training task and the retention tasks (for the base, every training task).
        """
        keys: list[EvalKey] = []
        for record in self.records:
            chooses = "retention" in record.roles or (
                record.trained_on and trained_on in (None, record.name)
            )
            if chooses:
                keys.append((trial_id, record.name, "validation"))
            keys.append((trial_id, record.name, "test"))
        return keys

    def variants(self, trial: TrialSpec) -> list[Variant]:
        """How a trial is changed at inference and scored again; a method of PEFT's is not."""
        settings = self.config.evaluate
        found = [Variant("scale", strength) for strength in settings.scales]
        found += [Variant("layers", strength) for strength in settings.layer_scales]
        for strength in settings.intruder_scales:
            found += [Variant("intruders", strength), Variant("control", strength)]
        return list(dict.fromkeys(found)) if trial.peft is None else []

    def wanted_variants(self, trial: TrialSpec) -> list[EvalKey]:
        """What the changed forms of a trial are scored on: in-domain and retention, both splits."""
        tasks = self.curve_tasks(trial.task)
        return [
            (variant.of(trial.trial_id), task, split)
            for variant in self.variants(trial)
            for task in tasks
            for split in SPLITS
        ]

    def curve_steps(self, trial: TrialSpec) -> tuple[int, ...]:
        """Optimizer steps after which a trial is scored while it trains."""
        return self.due_steps(trial, self.config.train.evaluate_every)

    def snapshot_steps(self, trial: TrialSpec) -> tuple[int, ...]:
        """Optimizer steps after which its weights are kept; the last one's are stored anyway."""
        return self.due_steps(trial, self.config.train.checkpoint_every)[:-1]

    def due_steps(self, trial: TrialSpec, every: Interval) -> tuple[int, ...]:
        """The steps of one trial after which something is due; see ``trials.due_steps``."""
        rows, train = self.rows[trial.task], self.config.train
        return due_steps(every, len(rows.rows), rows.num_tokens, trial_protocol(trial, train))

    def curve_tasks(self, trained_on: str) -> list[str]:
        """What it is scored on then: the validation splits that it is scored on in the end."""
        wanted = self.wanted_evals("", trained_on)
        return [task for _, task, split in wanted if split == "validation"]

    def base_evals(self) -> list[EvalKey]:
        """What the untuned base is scored on."""
        return self.wanted_evals(BASE, None)


def prepare_study(config: StudyConfig, weights: bool = True) -> PreparedStudy:
    """Resolve, read, split and encode; nothing is trained and no weights are loaded.

    weights: the base's files must be there and are hashed. Without, its configuration and
    tokenizer are enough, and trials' ids are not those of a run.

    Raises:
        UserError: the model, a target module, a task or a row cannot be used.
    """
    folder = model_folder(config.model, weights)
    model_config = read_model_config(folder)
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
    scoring = context_notes(encoder, tasks.values(), context, config.evaluate)
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
        num_steps = planned_steps(len(encoded.rows), encoded.num_tokens, train)
        check_zero_rates(num_steps, train)
        method = get_method(trial.method)
        method.check_trial(trial, shapes, folder, encoded.num_tokens, num_steps)
    check_vectors(config, trials, shapes)
    check_bitsandbytes(config, trials, device)
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


def check_vectors(config: StudyConfig, trials: Iterable[TrialSpec], shapes: Architecture) -> None:
    """Raise UserError where spectra are asked for more vectors than a compared matrix has."""
    asked = config.analyze.spectra
    targets = {target for trial in trials for target in trial.targets}
    targets = targets or set(shapes.linear_shapes) - {shapes.output_layer or ""}
    compared = target_shapes(shapes, sorted(targets))
    if asked.enabled:
        check_spectra_settings(asked, compared)


def resolved(config: StudyConfig, encoder: Encoder, dtype: torch.dtype) -> StudyConfig:
    """``auto`` replaced by what it means here, so that trial ids say what was done."""
    model = config.model.model_copy(update={"prompt_format": encoder.prompt_format})
    name = str(dtype).removeprefix("torch.")
    return config.model_copy(update={"model": model, "dtype": name})


def rows_sha256(rows: EncodedRows) -> str:
    """Hash of what training sees: tokens and labels, so tokenizer and template are in it too."""
    return sha256_json([[row.input_ids, [int(x) for x in row.is_label]] for row in rows.rows])
