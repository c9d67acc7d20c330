"""The stored form of a task, with a hash of everything that its scores depend on."""

from functools import partial
from typing import Any

from rankscope.config.study import EvaluateConfig, StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.registry import TaskSpec
from rankscope.data.tasks import LoadedTask, items_sha256
from rankscope.evaluate.evaluator import primary_metric
from rankscope.evaluate.scorers import get_scorer
from rankscope.hashing import sha256_json
from rankscope.records import Role, TaskRecord

EVALUATION_VERSION = 4  # In every task's hash: raise it when code changes scores


def task_record(
    config: StudyConfig, encoder: Encoder, task: LoadedTask, tokenizer_hash: str
) -> TaskRecord:
    name = task.spec.name
    hashed = partial(task_sha256, task, encoder, tokenizer_hash, config.evaluate)
    return TaskRecord(
        name=name,
        roles=_task_roles(config, name),
        trained_on=any(name == trained.name for trained in config.tasks),
        parts=tuple(part.spec.name for part in task.parts),
        metric=primary_metric(task),
        score_unit=task.spec.score_unit,
        chance=task.spec.chance,
        rows={"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        row_shape=task.row_shape,
        dropped=task.dropped,
        contamination=task.contamination,
        num_fewshot=task.spec.num_fewshot,
        fewshot_source=task.fewshot_source,
        prompt_format=encoder.prompt_format,
        source=task.source,
        sha256=hashed(task.sha256),
        validation_sha256=hashed(items_sha256(task.validation)),
        test_sha256=hashed(items_sha256(task.test)),
        contaminated_sha256=sha256_json(sorted(task.contaminated_ids)),
    )


def task_sha256(
    task: LoadedTask,
    encoder: Encoder,
    tokenizer_hash: str,
    settings: EvaluateConfig,
    items: str,
) -> str:
    """Hash of everything that scores depend on, the model excepted. ``items`` is the hash of those
    that are scored, which hold their prompts and examples."""
    return sha256_json(
        {
            "items": items,
            "scoring": [
                _scoring_settings(part.spec, settings, encoder) for part in task.parts or (task,)
            ],
            "prompt_format": encoder.prompt_format,
            "tokenizer": tokenizer_hash,
            "evaluation_version": EVALUATION_VERSION,
        }
    )


def _scoring_settings(spec: TaskSpec, settings: EvaluateConfig, encoder: Encoder) -> dict[str, Any]:
    return {
        "scorer": spec.scorer,
        "version": spec.version,
        "primary_metric": spec.primary_metric,
        "stop": spec.stop,
        "extract": spec.extract,
        "batch_tokens": settings.batch_tokens,
        "max_new_tokens": settings.max_new_tokens,
        "too_long": settings.too_long,
        **get_scorer(spec.scorer).encoder_settings(encoder),
    }


def _task_roles(config: StudyConfig, name: str) -> tuple[Role, ...]:
    """The roles of a task in the study; a training task is cross-domain for the others."""
    trained = [task.name for task in config.tasks]
    is_trained = name in trained
    is_cross_domain = name in [task.name for task in config.evaluate.cross_domain]
    has_role: dict[Role, bool] = {
        "in_domain": is_trained,
        "cross_domain": is_cross_domain or (is_trained and len(trained) > 1),
        "retention": name in [task.name for task in config.evaluate.retention],
    }
    return tuple(role for role, holds in has_role.items() if holds)
