"""The stored form of a task: what it is in the study, and a hash of all its scores depend on."""

from typing import Any

from rankscope.config.study import EvaluateConfig, StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.registry import TaskSpec
from rankscope.data.tasks import LoadedTask
from rankscope.evaluate.metrics import primary_metric
from rankscope.evaluate.scorers import get_scorer
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
        parts=tuple(part.spec.name for part in task.parts),
        metric=primary_metric(task),
        score_unit=task.spec.score_unit,
        chance=task.spec.chance,
        rows={
            "train": len(task.train),
            "validation": len(task.validation),
            "test": len(task.test),
        },
        dropped=task.dropped,
        contamination=task.contamination,
        num_fewshot=task.spec.num_fewshot,
        fewshot_source=task.fewshot_source,
        prompt_format=encoder.prompt_format,
        source=task.source,
        sha256=task_sha256(task, encoder, tokenizer_hash, config.evaluate),
        test_sha256=task_sha256(task, encoder, tokenizer_hash, config.evaluate, task.test_sha256),
    )


def task_sha256(
    task: LoadedTask,
    encoder: Encoder,
    tokenizer_hash: str,
    evaluate: EvaluateConfig,
    items: str | None = None,
) -> str:
    """Hash of everything a task's scores depend on but the model. Items hold prompts and shots.

    items: hash of those to speak of; None is all of the task's rows.
    """
    parts = [
        [
            part.spec.scorer,
            part.spec.version,
            part.spec.primary_metric,
            scoring_settings(part.spec, evaluate, encoder),
        ]
        for part in task.parts
    ]
    return sha256_json(
        {
            "items": task.sha256 if items is None else items,
            "scorer": task.spec.scorer,
            "version": task.spec.version,
            **({"parts": parts} if parts else {}),
            "prompt_format": encoder.prompt_format,
            "tokenizer": tokenizer_hash,
            "settings": scoring_settings(task.spec, evaluate, encoder),
            "evaluation_version": EVALUATION_VERSION,
        }
    )


def scoring_settings(spec: TaskSpec, evaluate: EvaluateConfig, encoder: Encoder) -> dict[str, Any]:
    """The settings that can move a score; likelihoods are of rows, or windows, of a length."""
    settings: dict[str, Any] = {
        "batch_tokens": evaluate.batch_tokens,
        "max_new_tokens": evaluate.max_new_tokens,
    }
    settings |= get_scorer(spec.scorer).encoder_settings(encoder)
    if evaluate.too_long != "refuse":
        settings["too_long"] = evaluate.too_long
    own = {"primary_metric": spec.primary_metric, "stop": spec.stop, "extract": spec.extract}
    return settings | {key: value for key, value in own.items() if value}


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
