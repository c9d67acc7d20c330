"""Arms x seeds x tasks become trials with content ids, and trials become packs.

Order of trials: training task, then arm, then grid point (method, targets, rank, alpha, learning
rate, dropout, each in the order of the study file), then seed. Seeds of one point are neighbours,
so a study that is stopped early has whole arms rather than many arms with one seed each.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from rankscope.config.schema import ArmConfig, StudyConfig, TrainConfig
from rankscope.errors import BadInput
from rankscope.provenance import sha256_json
from rankscope.records import TrialSpec

RESULTS_VERSION = 1
"""Part of every trial id: raise it when a change of the code changes what training gives."""

DEFAULT_MAX_PACK = 16
"""Most LoRA trials in a pack where the study file names no ``max_pack``."""

ID_LENGTH = 16
"""Hex digits of a trial or pack id: 64 bits, so 10,000 trials collide with probability 3e-12."""

Pack = tuple[TrialSpec, ...]
Value = TypeVar("Value")


def make_trials(
    config: StudyConfig, base_sha256: str, data_sha256: Mapping[str, str]
) -> list[TrialSpec]:
    """Every trial of the study, equal ones once, in the order this module documents.

    config: its ``dtype`` enters the ids as it stands, so put the dtype that ``auto`` resolved to
    there first if a machine with another one must not continue the study.
    base_sha256: hash of the base model's weights and configuration.
    data_sha256: by training task, hash of its training rows as split, rendered and encoded, in
    order. Prompt template, scorer (letter or text), row limits and ``data_seed`` act through it;
    selection and report items must not enter it, or a change of evaluation would train again.
    Raises BadInput where a training task has no hash.
    """
    trials: dict[str, TrialSpec] = {}
    for task in config.tasks:
        if task.name not in data_sha256:
            raise BadInput(f"task {task.name!r}: no data was loaded for it")
        shared = shared_identity(config, base_sha256, data_sha256[task.name])
        for arm in config.arms:
            for point, seed in itertools.product(arm_points(arm), unique(config.seeds)):
                settings = {"task": task.name, **point, "seed": seed}
                trial_id = sha256_json({**shared, **settings})[:ID_LENGTH]
                spec = TrialSpec.model_validate({"trial_id": trial_id, **settings})
                trials.setdefault(trial_id, spec)
    return list(trials.values())


def make_packs(trials: Sequence[TrialSpec], max_pack: int | None = None) -> list[Pack]:
    """Trials that are trained together: per task its LoRA packs, then each full trial alone.

    The LoRA trials of a task are cut, in trial order, into as few packs as ``max_pack`` (by
    default ``DEFAULT_MAX_PACK``) allows, whose sizes differ by at most one. Give all trials of a
    study, done or not: packs, and with them the arithmetic, then do not depend on where a run was
    stopped.
    """
    limit = DEFAULT_MAX_PACK if max_pack is None else max_pack
    if limit < 1:
        raise BadInput(f"max_pack is {limit}: expected at least 1")
    packs: list[Pack] = []
    for task in unique([trial.task for trial in trials]):
        of_task = [trial for trial in trials if trial.task == task]
        adapters = [trial for trial in of_task if trial.method != "full"]
        packs += balanced(adapters, limit)
        packs += [(trial,) for trial in of_task if trial.method == "full"]
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
    points = [point for arm in config.arms for point in arm_points(arm)]
    return len(points) - len(unique(points)) + len(config.seeds) - len(unique(config.seeds))


def planned_steps(num_rows: int, train: TrainConfig) -> int:
    """Optimizer steps of one trial on ``num_rows`` rows; ``max_steps`` wins over ``epochs``.

    As in transformers' Trainer, an epoch is ceil(ceil(rows / batch) / accumulation) steps, its last
    step being smaller where rows run out, and a fraction of an epoch is rounded up to a whole step.
    Raises BadInput for no rows.
    """
    if num_rows < 1:
        raise BadInput("there are no training rows: expected at least one")
    if train.max_steps is not None:
        return train.max_steps
    rows_per_step = train.batch_size * train.gradient_accumulation
    return math.ceil(train.epochs * math.ceil(num_rows / rows_per_step))


def shared_identity(config: StudyConfig, base_sha256: str, data_sha256: str) -> dict[str, object]:
    """What determines a trial's training besides its own settings; nothing about evaluation."""
    train = config.train.model_dump(exclude={"checkpoint_seconds"})
    if config.train.max_steps is not None:
        del train["epochs"]  # max_steps wins, so epochs change nothing
    return {
        "results_version": RESULTS_VERSION,
        "base": base_sha256,
        "data": data_sha256,
        "prompt_format": config.model.prompt_format,
        "dtype": config.dtype,
        "train": train,
    }


def arm_points(arm: ArmConfig) -> Iterator[dict[str, object]]:
    """An arm's grid points as fields of TrialSpec, repeated ones included."""
    if arm.is_full:
        for _, lr in itertools.product(arm.method, arm.lr):
            yield {
                "method": "full",
                "rank": None,
                "alpha": None,
                "lr": lr,
                "targets": (),
                "dropout": 0.0,
            }
        return
    axes = (arm.method, arm.target_sets(), arm.rank, arm.alpha, arm.lr, arm.dropout)
    for method, targets, rank, alpha, lr, dropout in itertools.product(*axes):
        yield {
            "method": method,
            "rank": rank,
            "alpha": resolved_alpha(alpha, rank),
            "lr": lr,
            "targets": targets,
            "dropout": dropout,
        }


def resolved_alpha(alpha: float | str, rank: int) -> float:
    """Alpha as a number: ``2r`` at rank 8 is 16."""
    if isinstance(alpha, str):
        return float(alpha.removesuffix("r") or 1) * rank
    return float(alpha)


def balanced(trials: Sequence[TrialSpec], limit: int) -> list[Pack]:
    """Cut into the fewest runs of at most ``limit``, sizes differing by at most one."""
    if not trials:
        return []
    count = math.ceil(len(trials) / limit)
    cuts = [len(trials) * i // count for i in range(count + 1)]
    return [tuple(trials[start:end]) for start, end in itertools.pairwise(cuts)]


def unique(values: Sequence[Value]) -> list[Value]:
    """The values in their order, equal ones once."""
    seen: list[Value] = []
    for value in values:
        if value not in seen:
            seen.append(value)
    return seen
