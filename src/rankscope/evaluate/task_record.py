"""The stored form of a task: what it is in the study, and a hash of all its scores depend on."""

from rankscope.config.schema import Scorer, StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import LoadedTask
from rankscope.evaluate.joined import headline
from rankscope.provenance import sha256_json
from rankscope.records import Role, TaskRecord

EVALUATION_VERSION = 3
"""Part of every task's hash: raise it when a change of the code changes scores."""


def task_record(
    config: StudyConfig, encoder: Encoder, task: LoadedTask, tokenizer_hash: str
) -> TaskRecord:
    """The stored form of a loaded task, with a hash of everything its scores depend on."""
    name = task.spec.name
    return TaskRecord(
        name=name,
        roles=roles(config, name),
        trained_on=any(name == trained.name for trained in config.tasks),
        metric=headline(task),
        higher_is=task.spec.higher_is,
        chance=task.spec.chance,
        rows={
            "train": len(task.train),
            "selection": len(task.selection),
            "report": len(task.report),
        },
        dropped=task.dropped,
        leaks=task.leaks,
        source=task.source,
        sha256=sha256_json(
            {
                "items": task.sha256,
                "scorer": task.spec.scorer,
                "version": task.spec.version,
                **({"parts": [part.spec.scorer for part in task.parts]} if task.parts else {}),
                "prompt_format": encoder.prompt_format,
                "tokenizer": tokenizer_hash,
                "settings": scoring_settings(config, task.spec.scorer),
                "evaluation_version": EVALUATION_VERSION,
            }
        ),
    )


def scoring_settings(config: StudyConfig, scorer: Scorer) -> dict[str, int]:
    """The settings that can move a score; likelihoods are of rows cut at ``max_length``."""
    settings = {
        "batch_tokens": config.evaluate.batch_tokens,
        "max_new_tokens": config.evaluate.max_new_tokens,
    }
    if scorer == "loss":
        settings["max_length"] = config.train.max_length
    return settings


def roles(config: StudyConfig, name: str) -> tuple[Role, ...]:
    """What a task is in the study; a training task is cross-domain for the other ones."""
    trained = [task.name for task in config.tasks]
    found: list[Role] = []
    if name in trained:
        found.append("in_domain")
    if (name in trained and len(trained) > 1) or name in [
        task.name for task in config.evaluate.cross_domain
    ]:
        found.append("cross_domain")
    if name in [task.name for task in config.evaluate.retention]:
        found.append("retention")
    return tuple(found)
