"""The rows of a study as read: tasks, those joined of others, and those whose rows are replayed."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from rankscope.config.study import StudyConfig
from rankscope.config.task import TaskConfig
from rankscope.data.encode import EncodedRows, Encoder, encode_rows
from rankscope.data.mixtures import mix_tasks
from rankscope.data.registry import overlapping_subjects
from rankscope.data.tasks import LoadedTask, load_task
from rankscope.errors import UserError


def read_tasks(config: StudyConfig) -> dict[str, LoadedTask]:
    """Every task that is trained on or scored, read and split."""
    return {
        task.name: mix_tasks(
            task, [read(config, part) for part in parts_of(config, task)], config.data_seed
        )
        if task.mixture
        else read(config, task)
        for task in config.evaluation_tasks().values()
    }


def read(config: StudyConfig, task: TaskConfig) -> LoadedTask:
    """One task that is not joined."""
    return load_task(
        task,
        Path(config.data_dir) if config.data_dir is not None else None,
        config.data_seed,
        config.evaluate.max_items,
        exclude_subjects=overlapping_subjects(task.name, trained_names(config)),
        trained=task.name in trained_names(config),
    )


def trained_names(config: StudyConfig) -> list[str]:
    """Names of the tasks whose rows are trained on: parts in place of what they are joined to, and
    replayed tasks."""
    own = [name for task in config.tasks for name in (task.mixture or [task.name])]
    return [*own, *replayed_tasks(config)]


def parts_of(config: StudyConfig, task: TaskConfig) -> list[TaskConfig]:
    """The tasks a joined one is made of: as the study describes them, else named ones."""
    described = config.evaluation_tasks()
    return [described.get(name, TaskConfig(name=name)) for name in task.mixture]


def replayed_tasks(config: StudyConfig) -> list[str]:
    """Names of the tasks whose rows some arm replays, each once."""
    found = [r.task for arm in config.arms for r in arm.replay or () if r.share]
    return list(dict.fromkeys(found))


def read_replay(
    config: StudyConfig, tasks: Mapping[str, LoadedTask], encoder: Encoder
) -> tuple[dict[str, EncodedRows], dict[str, LoadedTask]]:
    """By task, the encoded rows that arms replay, and the tasks themselves.

    Raises:
        UserError: a task without training rows.
    """
    loaded = {
        name: tasks[name] if name in tasks else read(config, TaskConfig(name=name))
        for name in replayed_tasks(config)
    }
    for name, task in loaded.items():
        if not task.train:
            raise UserError(
                f"replay of {name!r}: the task has no training rows, only items to score; "
                "replay another one, or give it a file of rows ('train:')"
            )
    rows = {
        name: encode_rows(encoder, task.train, config.train.labels) for name, task in loaded.items()
    }
    return rows, loaded


def check_untrainable(config: StudyConfig, tasks: Mapping[str, LoadedTask]) -> None:
    """Raise UserError for a training task without training rows, with the ways out."""
    without = [task.name for task in config.tasks if not tasks[task.name].train]
    if not without:
        return
    name, spec = without[0], tasks[without[0]].spec
    ways = ["give it a file of them ('train:')"]
    if spec.folder is not None:
        ways = [f"put train.jsonl or train.parquet into {tasks[name].source}"]
    if spec.hub is not None and spec.hub.train is not None:
        ways[0] += f" (published rows: the split {spec.hub.train!r} of {spec.hub.label})"
    if len(without) < len(config.tasks):
        ways.append(f"leave it to be scored alone: {scored_alone(config, name, without)}")
    raise UserError(
        f"task {name!r} is trained on but has no training rows, only items to score "
        f"({tasks[name].source}): {', or '.join(ways)}"
    )


def scored_alone(config: StudyConfig, name: str, without: Collection[str]) -> str:
    """How to move a task from those trained on to those scored, and lose nothing of the others.

    Args:
        config: the study.
        name: the task to move.
        without: it and all others that cannot be trained on either.
    """
    crossed = config.evaluate.cross_domain
    is_scored = name in {task.name for task in (*config.evaluate.retention, *crossed)}
    # A list that is set anew holds names alone, so a task's own settings would be gone.
    touched = config.tasks if is_scored else [*config.tasks, *crossed]
    if any(task != TaskConfig(name=task.name) for task in touched):
        there = "" if is_scored else " to 'evaluate.cross_domain'"
        return f"in the study file, {'take' if is_scored else 'move'} it from 'tasks'{there}"
    rest = ",".join(task.name for task in config.tasks if task.name not in without)
    if is_scored:
        return f"--set tasks=[{rest}]"
    scored = ",".join([*(task.name for task in crossed), name])
    return f"--set tasks=[{rest}] --set evaluate.cross_domain=[{scored}]"


def replay_notes(config: StudyConfig) -> Iterator[str]:
    """What a reader must know of replayed rows: that their own task is no stranger any more."""
    retained = {task.name for task in config.evaluate.retention}
    transferred = {task.name for task in config.evaluate.cross_domain}
    for name in replayed_tasks(config):
        said = f"{name}: training rows of this task are replayed by some arms, so what those "
        if name in retained:
            yield f"{said}forget there is not what they would forget of a task they never see"
        if name in transferred:
            yield f"{said}gain there is no transfer: they are trained on it"
