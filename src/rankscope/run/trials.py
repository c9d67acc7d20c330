"""Trials with content ids, made of arms x seeds x tasks and of given models.

Trials are ordered by training task, then arm, then grid point, then seed. A grid point is (method,
targets, rank, alpha, learning rate, its ratio, dropout, the arm's own protocol, then replay, KL and
early stopping), each in the order of the study file. Seeds of one point are neighbors, so a study
that is stopped early has whole arms, rather than many arms with one seed each.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rankscope.analyses import enabled_analyses
from rankscope.config.arm import TRAIN_OVERRIDES, ArmConfig, resolved_alpha
from rankscope.config.study import GivenConfig, StudyConfig, TrainConfig
from rankscope.data.study_data import StudyData
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import wanted_splits
from rankscope.filesystem import user_path
from rankscope.hashing import canonical_json, sha256_json
from rankscope.models.given import NOT_READ, check_distinct, trial_of_given
from rankscope.models.methods.method import Method
from rankscope.models.study_base import StudyBase
from rankscope.records import (
    GivenModel,
    Prompt,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    TrialSpec,
    finished_trials,
)
from rankscope.store import Ledger, task_changes
from rankscope.train.objectives import SFT
from rankscope.train.objectives.objective import objective_of
from rankscope.train.step_schedule import check_learning_rates, trial_protocol, trial_steps

RESULTS_VERSION = 2
"""Part of every trial id: raise it when a change of the code changes training results."""

BEYOND = (2, 4, 8)  # Factors of rates and ranks beyond the ends of the lists
MOST_EXTENDED = 1000  # Trials; lists of more are long enough
MODELS_NAMED = 12  # Models that a message names

ID_LENGTH = 16
"""Hex digits of a trial or group id: 64 bits, so 10,000 trials collide with probability 3e-12."""

NOT_TRAINING = frozenset(
    "batch_tokens checkpoint_every checkpoint_seconds devices evaluate_every evaluate_items".split()
    + "gradient_checkpointing kernels lora_implementation".split()
)
"""Fields of ``train`` that change when and how something is computed, but no result."""

STOPPING = frozenset({"evaluate_every", "evaluate_items"})
"""Exceptions for early stopping: these fields decide when such a trial ends."""


def study_trials(
    config: StudyConfig, base: StudyBase, data: StudyData, tasks: Sequence[TaskRecord], whole: bool
) -> tuple[tuple[TrialSpec, ...], tuple[TrialSpec, ...]]:
    """Make every trial of the study, given models last, and the trials beyond its lists.

    A search may train those beyond the ends of the lists. ``whole`` False makes ids that do not
    depend on training rows. Raises UserError: a trial cannot train on its rows, or a given model is
    unusable.
    """
    make = partial(
        make_trials,
        base_sha256=base.sha256,
        data_sha256={name: rows.sha256 if whole else "" for name, rows in data.rows.items()},
        adapter_sha256=base.warm_starts,
        replay_sha256={name: rows.sha256 for name, rows in data.replay_rows.items()},
        validation_sha256={task.name: task.validation_sha256 for task in tasks},
        fewer_sha256={
            (name, n): rows.sha256 if whole else str(n)
            for name, of_task in data.fewer_rows.items()
            for n, rows in of_task.items()
        },
        solved=lambda task, num: data.tasks[task].solved(num, config.data_seed),
    )
    trials = make(config)
    for trial in trials:
        _check_trial(trial, config, base, data)
    known = {trial.trial_id for trial in trials}
    is_search = config.strategy == "search" and len(trials) <= MOST_EXTENDED
    beyond = [t for t in make(_extended(config)) if t.trial_id not in known] if is_search else []
    given = _given_models(config, base, tasks)
    return (*trials, *given), tuple(t for t in beyond if _may_train(t, config, base, data))


def _check_trial(trial: TrialSpec, config: StudyConfig, base: StudyBase, data: StudyData) -> None:
    if not trial.trains:
        if data.seen_by(trial) == data:
            found, do = "the base itself, which is scored in any case", "change or remove it"
            raise UserError(f"{trial.task}: {trial.arm_label}", found, "another prompt", do)
        return
    rows = data.rows_of(trial)
    num_steps = trial_steps(trial, len(rows.rows), rows.num_tokens, config.train)
    check_learning_rates(trial, num_steps, config.train)
    Method.of(trial.method).check_trial(trial, base, rows.num_tokens, num_steps)


def _may_train(trial: TrialSpec, config: StudyConfig, base: StudyBase, data: StudyData) -> bool:
    try:
        _check_trial(trial, config, base, data)
    except UserError:
        return False
    return (trial.rank or 0) <= (base.config.hidden_size or 0)


def _extended(config: StudyConfig) -> StudyConfig:
    """Extend the study by rates and ranks beyond the ends of its lists, in factors of two.

    A single rank was chosen and stays alone; a single rate is a guess.
    """

    def longer(arm: ArmConfig) -> ArmConfig:
        more: dict[str, list[Any]] = {}
        if arm.lr:
            low, high = min(arm.lr), max(arm.lr)
            more["lr"] = [*arm.lr, *(high * f for f in BEYOND), *(low / f for f in BEYOND)]
        if arm.rank and len(arm.rank) > 1 and arm.init_from is None and arm.rank_pattern is None:
            low, high = min(arm.rank), max(arm.rank)
            smaller = (low // f for f in BEYOND if low >= f)
            more["rank"] = [*arm.rank, *(high * f for f in BEYOND), *smaller]
        return arm.model_copy(update=more)

    return config.model_copy(update={"arms": [longer(arm) for arm in config.arms]})


def make_trials(
    config: StudyConfig,
    base_sha256: str,
    data_sha256: Mapping[str, str],
    adapter_sha256: Mapping[str, str] = {},
    replay_sha256: Mapping[str, str] = {},
    validation_sha256: Mapping[str, str] = {},
    fewer_sha256: Mapping[tuple[str, int], str] = {},
    solved: Callable[[str, int], tuple[tuple[str, str, str], ...]] = lambda task, num: (),
) -> list[TrialSpec]:
    """Make every trial of the study, equal ones once, in the order of the module's docstring.

    Args:
        config: the study, with ``auto`` resolved.
        base_sha256: hash of the base model's weights and configuration.
        data_sha256: by training task, hash of its encoded training rows, in order. Prompt template,
            scorer, row limits and ``data_seed`` act through it. Validation and test items must not,
            or a change of evaluation would train again.
        adapter_sha256: by folder, hash of each adapter of a warm start (``init_from``).
        replay_sha256: by task, hash of the encoded rows that an arm replays.
        validation_sha256: by training task, hash of the items that early stopping scores.
        fewer_sha256: by training task and number, as ``data_sha256``, for arms with fewer rows.
        solved: returns the examples that prompts show, given training task and number.
    """
    trials: dict[str, TrialSpec] = {}
    for task in config.tasks:
        for arm in config.arms:
            seeds = config.seeds if arm.trains else [0]  # nothing about a prompt is random
            for point, seed in itertools.product(_arm_points(arm, config.train), seeds):
                values = {"trial_id": "", "task": task.name, "seed": seed, **point}
                if arm.init_from is not None:
                    values["init_sha256"] = adapter_sha256[arm.init_from]
                if point.get("replay") is not None:
                    values["replay_sha256"] = replay_sha256[point["replay"]]
                if point.get("early_stop") is not None:
                    values["validation_sha256"] = validation_sha256[task.name]
                if (prompt := point.get("prompt")) is not None:
                    shown = {"examples": solved(task.name, prompt.num_fewshot or 0)}
                    values["prompt"] = prompt.model_copy(update=shown)
                spec = TrialSpec.model_validate(values)
                few = (task.name, spec.rows or 0)
                data = fewer_sha256[few] if spec.rows else data_sha256[task.name]
                shared = _shared_identity(config, base_sha256, data if spec.trains else "")
                trial_id = sha256_json({**shared, **_own_identity(spec, config.train)})[:ID_LENGTH]
                trials.setdefault(trial_id, spec.model_copy(update={"trial_id": trial_id}))
    return list(trials.values())


def duplicate_grid_notes(config: StudyConfig) -> list[str]:
    """Write a sentence on grid points and seeds that ``make_trials`` merges, being repeated.

    They are counted per study file, not per task: ``rank: [8, 8]`` is one, whatever the seeds and
    tasks. A point that two arms share is one, and so is ``seeds: [0, 0]``.
    """
    points = [point for arm in config.arms for point in _arm_specs(arm, config.train)]
    repeated = len(points) - len(set(points)) + len(config.seeds) - len(set(config.seeds))
    if not repeated:
        return []
    told = "1 grid point is" if repeated == 1 else f"{repeated} grid points are"
    return [f"{told} repeated in the study file and merged: each is trained once"]


def _shared_identity(config: StudyConfig, base_sha256: str, data_sha256: str) -> dict[str, object]:
    """Return the settings that determine the training of all trials of one task."""
    return {
        "results_version": RESULTS_VERSION,
        "base": base_sha256,
        "data": data_sha256,
        "prompt_format": config.model.prompt_format,
        "dtype": config.dtype,
        "quantize": config.quantize,
    }


def _own_identity(trial: TrialSpec, train: TrainConfig) -> dict[str, object]:
    """Return a trial's own settings and protocol as they enter its id; evaluation is left out.

    A warm start's adapter counts by content, not by folder. Replayed rows count by content, not by
    the name of their task. Protocol settings of the arm count as part of the protocol, so a move
    from ``train`` into the arms, or back, does not change the id.
    """
    nowhere = {"trial_id", "schema_version", "given", "init_from", "replay", *TRAIN_OVERRIDES}
    nowhere |= {"rows"}  # Their hash counts
    nowhere |= {n for n in ("rank_pattern", "prompt") if getattr(trial, n) is None}
    settings = trial.model_dump(mode="json", exclude=nowhere)
    if not trial.trains:
        return settings
    aside = NOT_TRAINING if trial.early_stop is None else NOT_TRAINING - STOPPING
    protocol = trial_protocol(trial, train).model_dump(exclude=set(aside))
    objective = protocol.pop("objective")
    if objective != SFT:
        protocol["objective"] = objective_of(objective).identity()
    if train.max_steps is not None or train.tokens is not None:
        del protocol["epochs"]  # these win, so epochs change nothing
    if not trial.is_full:
        del protocol["optimizer"]  # of full fine-tuning alone
    elif train.devices > 1:  # bfloat16 activations too, see trainable_shards
        protocol["is_sharded"] = True
    return {**settings, "train": protocol}


def _arm_points(arm: ArmConfig, train: TrainConfig) -> Iterator[dict[str, Any]]:
    """Yield an arm's grid points as fields of TrialSpec, repeated ones included.

    Protocol settings equal to those of ``train`` are left out, and so are regularizers of weight 0.
    """
    nothing = {"rank": None, "alpha": None, "targets": (), "dropout": 0.0}
    for grid in arm.grids():
        for values in itertools.product(*grid.values()):
            point: dict[str, Any] = nothing | dict(zip(grid, values, strict=True))
            if isinstance(point["method"], dict):
                ((name, settings),) = point["method"].items()
                rank = settings.get("r")
                point["rank"] = rank if isinstance(rank, int) else None
                point |= {"method": name, "peft": canonical_json(settings)}
            elif point["rank"] is not None:
                point["alpha"] = resolved_alpha(point["alpha"], point["rank"])
            if not arm.trains:
                num, system = point.pop("num_fewshot"), point.pop("system").strip()
                point["prompt"] = Prompt(system=system, num_fewshot=num)
            if point.get("rows") == "all":
                del point["rows"]
            aside = {name for name in TRAIN_OVERRIDES if point.get(name) == getattr(train, name)}
            fields = _mitigation_fields(point)
            aside |= {name for name, value in fields.items() if value is None}
            yield {name: v for name, v in (point | fields).items() if name not in aside}


NO_TRIAL: dict[str, Any] = {"trial_id": "", "task": "", "seed": 0} | {
    name: None for name in TrialSpec.model_fields if name.endswith("_sha256")
}
"""Fields that a trial has besides its point of the grid."""


def _arm_specs(arm: ArmConfig, train: TrainConfig) -> list[TrialSpec]:
    """Return an arm's grid points as specs without task and seed, repeated ones included."""
    return [TrialSpec.model_validate(NO_TRIAL | point) for point in _arm_points(arm, train)]


def _mitigation_fields(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return regularizers of a grid point as fields of TrialSpec, None for weight 0."""
    replay = point.get("replay")
    stop = point.get("early_stop")
    fields: dict[str, Any] = {}
    if replay is not None:
        fields["replay"] = replay.task if replay.share else None
        fields["replay_share"] = replay.share or None
    if "kl_to_base" in point:
        fields["kl_to_base"] = point["kl_to_base"] or None
    if stop is not None:
        fields["early_stop"] = stop.patience
    return fields


# --- models that are given ------------------------------------------------------------------------


def _given_models(
    config: StudyConfig, base: StudyBase, tasks: Sequence[TaskRecord]
) -> tuple[TrialSpec, ...]:
    """Return the trials of all given models: those of ``base``, and those scored by another study.

    ``tasks`` are the study's. Raises UserError: stored scores differ from those that the study
    would compute, or an analysis needs the models' weights.
    """
    scored = [g for g in config.given or () if g.scores is not None]
    trials = (*base.given, *(_scored_trial(given, config, base, tasks) for given in scored))
    check_distinct(trials)
    names = [trial.arm_label for trial in trials]
    for trial in trials:
        if names.count(trial.arm_label) > 1:
            found = f"the name {trial.arm_label!r} twice"
            raise UserError("given", found, "each model's own", "set 'name' of one")
    return trials


def _scored_trial(
    given: GivenConfig, config: StudyConfig, base: StudyBase, tasks: Sequence[TaskRecord]
) -> TrialSpec:
    folder = user_path(given.folder)
    study, where = Ledger.read(folder, with_analyses=False), f"given: scores in {folder}"
    trial = _the_one(study, given.trial, where)
    again = "score its models again: rankscope eval"
    needed = {"sha256": base.sha256, "dtype": config.dtype, "quantize": config.quantize}
    needed["prompt_format"] = config.model.prompt_format
    for name, now in needed.items():
        before = getattr(study.model, name)
        if before != now and now != NOT_READ:
            found = f"those of the base model {study.model.label} with {name} {before[:12]!r}"
            raise UserError(where, found, f"{now[:12]!r}, as of this study's base", again)
    known = {task.name: task for task in study.tasks}
    own = {task.name: task for task in tasks}
    for name, split in wanted_splits(config.evaluate.split, tasks, ""):
        if (trial.spec.trial_id, name, split) not in study.evals:
            found = f"no {split} scores of task {name!r}"
            raise UserError(where, found, "scores on all that this study scores", again)
        if changes := task_changes(known[name], own[name], split):
            found = f"scores of task {name!r} on other items, or scored otherwise"
            raise UserError(where, f"{found} ({'; '.join(changes)})", "this study's", again)
    for analysis in enabled_analyses(config):
        found = "stored scores, without the weights that an analysis needs"
        do = "turn it off, or give the model's own folder as 'path'"
        raise UserError(where, found, f"a study without {analysis.section}.{analysis.name}", do)
    assert trial.train is not None
    model = GivenModel(
        name=given.name or trial.spec.arm_label,
        folder=str(folder),
        sha256=trial.train.weights_sha256,
        scores_of=trial.spec.trial_id,
    )
    kept = trial.spec.model_dump(include={"method", "peft", "rank", "alpha", "targets"})
    return trial_of_given(model, base.sha256, kept)


def _the_one(study: StudyRecords, wanted: str | None, where: str) -> TrialRecords:
    """Return the finished model that ``wanted`` names, or the only one."""
    finished = finished_trials(study.trials)
    names = [f"{t.spec.label} ({t.spec.trial_id})" for t in finished]
    chosen = [
        t for t in finished if wanted in (None, t.spec.trial_id, t.spec.label, t.spec.arm_label)
    ]
    if len(chosen) != 1:
        found = f"{len(chosen)} finished models" + (f" called {wanted!r}" if wanted else "")
        do = f"name one with 'trial': {', '.join(names[:MODELS_NAMED]) or 'there is none'}"
        raise UserError(where, found, "one", do)
    return chosen[0]
