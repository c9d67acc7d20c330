"""Arms x seeds x tasks become trials with content ids, and trials become packs.

Order of trials: training task, then arm, then grid point (method, targets, rank, alpha, learning
rate, its ratio, dropout, the arm's own protocol, then replay, KL and early stopping, each in the
order of the study file), then seed. Seeds of one point are neighbours, so a study that is stopped
early has whole arms rather than many arms with one seed each.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from rankscope.config.arm import OVERRIDES, ArmConfig
from rankscope.config.schema import StudyConfig, TrainConfig
from rankscope.errors import BadInput
from rankscope.provenance import canonical_json, sha256_json
from rankscope.records import TrialSpec

RESULTS_VERSION = 2
"""Part of every trial id: raise it when a change of the code changes what training gives."""

DEFAULT_MAX_PACK = 16
"""Most LoRA trials in a pack where the study file names no ``max_pack``."""

ID_LENGTH = 16
"""Hex digits of a trial or pack id: 64 bits, so 10,000 trials collide with probability 3e-12."""

ALONE = frozenset({"full", "peft"})
"""Methods that change the base or its modules and so cannot share it."""

NOT_TRAINING = frozenset(
    {
        "batch_tokens",
        "checkpoint_every",
        "checkpoint_seconds",
        "evaluate_every",
        "evaluate_items",
        "gradient_checkpointing",
    }
)
"""Fields of ``train`` that change when and how something is computed, and no result."""

STOPPING = frozenset({"evaluate_every", "evaluate_items"})
"""Of these, what decides when a trial with early stopping ends."""

WHERE_GIVEN = (
    "peft",
    "lr_ratio",
    "init_sha256",
    "replay_share",
    "replay_sha256",
    "kl_to_base",
    "early_stop",
    "selection_sha256",
)
"""Settings of a trial that are in its id only where it has them: ids older than they stay."""

Pack = tuple[TrialSpec, ...]
PackLimit = Literal["all trials of the task", "max_pack", "memory", "method"]
Value = TypeVar("Value")


def make_trials(
    config: StudyConfig,
    base_sha256: str,
    data_sha256: Mapping[str, str],
    adapter_sha256: Mapping[str, str] | None = None,
    replay_sha256: Mapping[str, str] | None = None,
    selection_sha256: Mapping[str, str] | None = None,
) -> list[TrialSpec]:
    """Every trial of the study, equal ones once, in the order this module documents.

    config: its ``dtype`` enters the ids as it stands, so put the dtype that ``auto`` resolved to
    there first if a machine with another one must not continue the study.
    base_sha256: hash of the base model's weights and configuration.
    data_sha256: by training task, hash of its training rows as split, rendered and encoded, in
    order. Prompt template, scorer (letter or text), row limits and ``data_seed`` act through it;
    selection and report items must not enter it, or a change of evaluation would train again.
    adapter_sha256: by folder, hash of each adapter that an arm goes on from (``init_from``); such
    an arm has the rank, alpha and targets of its adapter by now.
    replay_sha256: by task, hash of the rows that an arm replays, as encoded.
    selection_sha256: by training task, hash of what early stopping scores.
    Raises BadInput where a training task, such a folder or such rows have no hash.
    """
    known = adapter_sha256 or {}
    looked_at = {"replay_sha256": replay_sha256 or {}, "selection_sha256": selection_sha256 or {}}
    trials: dict[str, TrialSpec] = {}
    for task in config.tasks:
        if task.name not in data_sha256:
            raise BadInput(f"task {task.name!r}: no data was loaded for it")
        shared = shared_identity(config, base_sha256, data_sha256[task.name])
        for arm in config.arms:
            if arm.init_from is not None and arm.init_from not in known:
                raise BadInput(f"init_from {arm.init_from!r}: no adapter was read there")
            start = {} if arm.init_from is None else {"init_sha256": known[arm.init_from]}
            for point, seed in itertools.product(arm_points(arm, config.train), config.seeds):
                seen = seen_besides(point, task.name, looked_at)
                spec = TrialSpec.model_validate(
                    {"trial_id": "", "task": task.name, **point, **start, **seen, "seed": seed}
                )
                trial_id = sha256_json({**shared, **own_identity(spec, config.train)})[:ID_LENGTH]
                trials.setdefault(trial_id, spec.model_copy(update={"trial_id": trial_id}))
    return list(trials.values())


def seen_besides(
    point: Mapping[str, Any], task: str, hashes: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Hashes of what a trial sees besides its own rows: replayed ones, early stopping's items.

    Raises BadInput where there is none.
    """
    wanted = {
        "replay_sha256": point.get("replay"),
        "selection_sha256": task if point.get("early_stop") is not None else None,
    }
    found = {}
    for field, name in wanted.items():
        if name is not None:
            if name not in hashes[field]:
                raise BadInput(f"task {name!r}: no data was loaded for it")
            found[field] = hashes[field][name]
    return found


def make_packs(
    trials: Sequence[TrialSpec],
    max_pack: int | None = None,
    fits: Callable[[Pack], bool] = lambda pack: True,
) -> list[Pack]:
    """Trials that are trained together: per task its LoRA packs, then each other trial alone.

    The LoRA trials of a task are cut, in trial order, into as few packs as ``max_pack`` (by
    default ``DEFAULT_MAX_PACK``) and the memory (``fits``) allow; a trial that does not fit alone
    is a pack all the same. Sizes differ by at most one where ``max_pack`` alone limits. Give all
    trials of a study, done or not: packs, and with them the arithmetic, then do not depend on where
    a run was stopped.
    """
    limit = DEFAULT_MAX_PACK if max_pack is None else max_pack
    if limit < 1:
        raise BadInput(f"max_pack is {limit}: expected at least 1")
    packs: list[Pack] = []
    for task in unique([trial.task for trial in trials]):
        of_task = [trial for trial in trials if trial.task == task]
        packs += cut_to_fit([t for t in of_task if t.method not in ALONE], limit, fits)
        packs += [(trial,) for trial in of_task if trial.method in ALONE]
    return packs


def pack_id(pack: Sequence[TrialSpec]) -> str:
    """Content id of a pack: hash of its trial ids in their order."""
    return sha256_json([trial.trial_id for trial in pack])[:ID_LENGTH]


def described(pack: Pack) -> str:
    """A pack for one line of the screen: ``12 adapters r 2-128``, or ``full lr=0.0005``."""
    if len(pack) == 1:
        return pack[0].arm_label
    ranks = [trial.rank for trial in pack if trial.rank is not None]
    return f"{len(pack)} adapters r {min(ranks)}-{max(ranks)}"


def duplicate_grid_points(config: StudyConfig) -> int:
    """Grid points and seeds written more than once, which ``make_trials`` merges.

    Counted per study file, not per task: ``rank: [8, 8]`` is one, whatever the seeds and tasks;
    a point that two arms share is one; ``seeds: [0, 0]`` is one.
    """
    points = [point for arm in config.arms for point in arm_points(arm, config.train)]
    return len(points) - len(unique(points)) + len(config.seeds) - len(unique(config.seeds))


def own_protocol(trial: TrialSpec, train: TrainConfig) -> TrainConfig:
    """The protocol a trial is trained by: the study's, with what the trial's arm sets itself."""
    return train.model_copy(update=trial.overrides)


def planned_steps(num_rows: int, num_tokens: int, train: TrainConfig) -> int:
    """Optimizer steps of one trial on ``num_rows`` rows of ``num_tokens`` tokens together.

    As in transformers' Trainer, an epoch is ceil(ceil(rows / batch) / accumulation) steps, its last
    step being smaller where rows run out, and a fraction of an epoch is rounded up to a whole step.
    ``tokens`` asks for tokens / ``num_tokens`` epochs: every row is taken to have the mean length.
    ``max_steps`` wins over both. Raises BadInput for no rows.
    """
    if num_rows < 1:
        raise BadInput("there are no training rows: expected at least one")
    if train.max_steps is not None:
        return train.max_steps
    if train.tokens is not None:
        return math.ceil(train.tokens * epoch_steps(num_rows, train) / num_tokens)
    return math.ceil(train.epochs * epoch_steps(num_rows, train))


def epoch_steps(num_rows: int, train: TrainConfig) -> int:
    """Optimizer steps in which every row is seen once, the last step smaller where rows run out."""
    return math.ceil(num_rows / (train.batch_size * train.gradient_accumulation))


def due_steps(
    every: int | Literal["epoch"] | None, num_rows: int, num_tokens: int, train: TrainConfig
) -> tuple[int, ...]:
    """Optimizer steps after which something is due that happens ``every`` so many of them.

    After the last step it is due in any case; None is never. Arguments as of ``planned_steps``.
    """
    if every is None:
        return ()
    last = planned_steps(num_rows, num_tokens, train)
    stride = epoch_steps(num_rows, train) if every == "epoch" else every
    return (*range(stride, last, stride), last)


def pack_steps(pack: Pack, num_rows: int, num_tokens: int, train: TrainConfig) -> int:
    """Optimizer steps of the pack's longest trial; arguments as of ``planned_steps``."""
    return max(planned_steps(num_rows, num_tokens, own_protocol(t, train)) for t in pack)


def shared_identity(config: StudyConfig, base_sha256: str, data_sha256: str) -> dict[str, object]:
    """What the trials of one task share of what determines their training."""
    shared: dict[str, object] = {
        "results_version": RESULTS_VERSION,
        "base": base_sha256,
        "data": data_sha256,
        "prompt_format": config.model.prompt_format,
        "dtype": config.dtype,
    }
    return shared if config.quantize == "none" else {**shared, "quantize": config.quantize}


def own_identity(trial: TrialSpec, train: TrainConfig) -> dict[str, object]:
    """A trial's own settings and protocol as they enter its id; nothing about evaluation.

    An adapter to go on from counts by its content, wherever it lies, and so do replayed rows,
    whatever their task is called.
    What an arm sets of the protocol stands in the protocol alone, so that a setting that moves
    from ``train`` into the arms, or back, leaves the id as it was.
    """
    nowhere = {"trial_id", "schema_version", "init_from", "replay", *OVERRIDES}
    settings = trial.model_dump(mode="json", exclude=nowhere)
    for name in WHERE_GIVEN:
        if settings[name] is None:
            del settings[name]
    aside = NOT_TRAINING if trial.early_stop is None else NOT_TRAINING - STOPPING
    protocol = own_protocol(trial, train).model_dump(exclude=set(aside))
    if train.max_steps is not None or train.tokens is not None:
        del protocol["epochs"]  # these win, so epochs change nothing
    if train.tokens is None:
        del protocol["tokens"]
    if train.optimizer == "adamw" or not trial.is_full:
        del protocol["optimizer"]
    return {**settings, "train": protocol}


def arm_points(arm: ArmConfig, train: TrainConfig) -> Iterator[dict[str, Any]]:
    """An arm's grid points as fields of TrialSpec, repeated ones included.

    What an arm sets of the protocol is left out where the study's ``train`` says the same, and so
    is what it sets against forgetting at weight 0.
    """
    nothing = {"rank": None, "alpha": None, "targets": (), "dropout": 0.0}
    for grid in arm.grids():
        for values in itertools.product(*grid.values()):
            point: dict[str, Any] = nothing | dict(zip(grid, values, strict=True))
            if isinstance(point["method"], dict):
                settings = point["method"]["peft"]
                rank = settings.get("r")
                point["rank"] = rank if isinstance(rank, int) else None
                point |= {"method": "peft", "peft": canonical_json(settings)}
            elif point["rank"] is not None:
                point["alpha"] = resolved_alpha(point["alpha"], point["rank"])
            aside = {name for name in OVERRIDES if point.get(name) == getattr(train, name)}
            fields = mitigation_fields(point)
            aside |= {name for name, value in fields.items() if value is None}
            yield {name: v for name, v in (point | fields).items() if name not in aside}


def mitigation_fields(point: Mapping[str, Any]) -> dict[str, Any]:
    """What a grid point does against forgetting, as fields of TrialSpec; nothing of weight 0."""
    replay, stop = point.get("replay"), point.get("early_stop")
    fields: dict[str, Any] = {}
    if replay is not None:
        fields["replay"] = replay.task if replay.share else None
        fields["replay_share"] = replay.share or None
    if "kl_to_base" in point:
        fields["kl_to_base"] = point["kl_to_base"] or None
    if stop is not None:
        fields["early_stop"] = stop.patience
    return fields


def resolved_alpha(alpha: float | str, rank: int) -> float:
    """Alpha as a number: ``2r`` at rank 8 is 16."""
    if isinstance(alpha, str):
        return float(alpha.removesuffix("r") or 1) * rank
    return float(alpha)


def cut_to_fit(
    trials: Sequence[TrialSpec], limit: int, fits: Callable[[Pack], bool] = lambda pack: True
) -> list[Pack]:
    """Cut into runs of at most ``limit`` that fit, in order.

    Sizes differ by at most one where the memory does not matter. Where it does, each run takes all
    that it can, so that a large trial costs its neighbours nothing. A run that fits is taken to fit
    with fewer trials too: ``fits`` costs a pass on shapes, and is asked a logarithm of times a run.
    """
    if not trials:
        return []
    packs = cut_into(trials, math.ceil(len(trials) / limit))
    if all(map(fits, packs)):
        return packs
    packs, rest = [], tuple(trials)
    while rest:
        size = most_that_fit(rest[:limit], fits)
        packs.append(rest[:size])
        rest = rest[size:]
    return packs


def most_that_fit(trials: Pack, fits: Callable[[Pack], bool]) -> int:
    """How many of the first trials fit together; one is taken in any case."""
    fewest, most = 1, len(trials)
    size = most
    while fewest < most:
        if fits(trials[:size]):
            fewest = size
        else:
            most = size - 1
        size = (fewest + most + 1) // 2
    return fewest


def cut_into(trials: Sequence[TrialSpec], count: int) -> list[Pack]:
    """``count`` runs whose sizes differ by at most one."""
    cuts = [len(trials) * i // count for i in range(count + 1)]
    return [tuple(trials[start:end]) for start, end in itertools.pairwise(cuts)]


def what_limits(pack: Pack, packs: Sequence[Pack], max_pack: int | None = None) -> PackLimit:
    """What keeps a pack from holding more trials."""
    if pack[0].method in ALONE:
        return "method"
    alike = [p for p in packs if p[0].task == pack[0].task and p[0].method not in ALONE]
    if len(alike) == 1:
        return "all trials of the task"
    fewest = math.ceil(sum(map(len, alike)) / (max_pack or DEFAULT_MAX_PACK))
    return "max_pack" if len(alike) <= fewest else "memory"


def unique(values: Sequence[Value]) -> list[Value]:
    """The values in their order, equal ones once."""
    seen: list[Value] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
