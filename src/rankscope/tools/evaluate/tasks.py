"""The tasks on the command line: read and checked first, then scored one after another."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import ValidationError

from rankscope.config.loader import load_task_file
from rankscope.config.task import LM_EVAL_PREFIX, TaskConfig, is_task_file
from rankscope.data.encode import Encoder
from rankscope.data.tasks import LoadedTask, load_task
from rankscope.errors import UserError, reason_of
from rankscope.evaluate.evaluator import (
    NOT_FINITE,
    Evaluation,
    encode_split,
    evaluate_with_failures,
    truncation_notes,
)
from rankscope.evaluate.lm_eval.bridge import (
    LmEvalSettings,
    LmEvalTask,
    read_lm_eval_task,
    score_lm_eval_task,
)
from rankscope.evaluate.task_record import EVALUATION_VERSION, task_sha256
from rankscope.filesystem import user_path
from rankscope.hashing import sha256_json
from rankscope.models.base import Base
from rankscope.tools.evaluate.request import EvalRequest
from rankscope.tools.evaluate.results_folder import TaskInfo

DEFAULT_CONTEXT = 2048  # Most tokens of lm_eval tasks if the model's configuration gives no limit

Models = Mapping[str | None, str]
"""Adapter name -> label of the model; the name None is the base itself."""
Results = list[tuple[str, Evaluation]]  # Label of the model, and its evaluation


@dataclass(frozen=True, slots=True)
class EvalTask:
    """One entry of ``--tasks``: a task, or a group of lm-evaluation-harness."""

    source: str  # As messages name it
    infos: Mapping[str, TaskInfo]  # By name of the task
    notes: Sequence[str]
    evaluate: Callable[[Base, Models], tuple[Results, list[str]]]
    """Results, and one sentence per model and task without finite likelihoods."""


def _evaluate_own(
    task: LoadedTask, encoder: Encoder, request: EvalRequest, base: Base, models: Models
) -> tuple[Results, list[str]]:
    evaluations, failures = evaluate_with_failures(
        base, encoder, task, request.split, models, request.settings
    )
    return (
        [(models[name], evaluation) for name, evaluation in evaluations.items()],
        [f"{models[name]}: {task.spec.name}: {reason}" for name, reason in failures.items()],
    )


def evaluate_lm_eval(task: LmEvalTask, base: Base, models: Models) -> tuple[Results, list[str]]:
    results: Results = []
    failures = []
    for name, evaluations in score_lm_eval_task(base, task, models).items():
        for evaluation in evaluations:
            record, items = evaluation
            logprobs = [value for item in items for value in item.option_logprobs or ()]
            if np.isfinite([record.score, *record.metrics.values(), *logprobs]).all():
                results.append((models[name], evaluation))
            else:
                failures.append(f"{models[name]}: {record.task}: {NOT_FINITE}")
    return results, failures


def read_tasks(
    request: EvalRequest, encoder: Encoder, tokenizer_hash: str, context: int | None
) -> list[EvalTask]:
    """Every task of a request, Rankscope's own first. Raises UserError: no tasks, one that is given
    twice, rows or items that cannot be used."""
    if not request.tasks:
        raise UserError("no tasks were given; expected names such as --tasks arc_easy,mmlu")
    own = [text for text in request.tasks if not text.startswith(LM_EVAL_PREFIX)]
    configs = [task_config(text, request.num_fewshot) for text in own]
    _check_given_once([config.name for config in configs])
    tasks: list[EvalTask] = [
        _own_task(request, text, config, encoder, tokenizer_hash, context)
        for text, config in zip(own, configs, strict=True)
    ]
    sources = [text for text in request.tasks if text.startswith(LM_EVAL_PREFIX)]
    if sources and request.split != "test":
        raise UserError(
            f"task {sources[0]!r}: lm-evaluation-harness scores a task's test split, or its "
            "validation split if it has no other; expected --split test"
        )
    settings = LmEvalSettings(
        batch_tokens=request.settings.batch_tokens,
        context=context or DEFAULT_CONTEXT,
        num_fewshot=request.num_fewshot,
        max_items=request.settings.max_items,
        chat=encoder.prompt_format == "chat",
        allow_functions=request.trust_task_code,
    )
    tasks += [lm_eval_task(read_lm_eval_task(text, settings), tokenizer_hash) for text in sources]
    _check_given_once([name for task in tasks for name in task.infos])
    return tasks


def _check_given_once(names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"task {repeated[0]!r} is given twice in --tasks; give it once")


def task_config(text: str, num_fewshot: int | None) -> TaskConfig:
    """One of ``--tasks`` that is a named task, a task file, a file of rows, or a folder of them.

    Named tasks contain neither a slash nor a dot, so any text with one is a path. Raises UserError:
    there is no such file.
    """
    path = user_path(text)
    changes: dict[str, object] = {} if num_fewshot is None else {"num_fewshot": num_fewshot}
    if is_task_file(text):
        config = load_task_file(path)
        if config.mixture:
            raise UserError(
                f"task {text}: 'mixture' is for training tasks of a study; give its tasks to "
                f"--tasks: {', '.join(config.mixture)}"
            )
        return config.model_copy(update=changes)
    try:
        if not text.startswith("~") and not set(text) & {"/", os.sep, "."}:
            return TaskConfig.model_validate({"name": text, **changes})
        if not path.exists():
            raise UserError(
                f"task {text}: no such file or folder; to use a data set of the hub, name it in a "
                "task file ('hub: owner/name')"
            )
        key = "path" if path.is_dir() else "test"
        name = path.resolve().name if path.is_dir() else path.stem
        return TaskConfig.model_validate({"name": name, key: str(path), **changes})
    except ValidationError as error:
        raise UserError(f"task {text!r}: {reason_of(error)}") from error


def _own_task(
    request: EvalRequest,
    text: str,
    config: TaskConfig,
    encoder: Encoder,
    tokenizer_hash: str,
    context: int | None,
) -> EvalTask:
    is_rows_file = config.test is not None and not is_task_file(text)
    if request.split == "validation" and is_rows_file:
        raise UserError(
            f"task {text}: a file of rows is scored whole and has no validation split; leave out "
            "--split, or name the rows in a task file ('validation: rows.jsonl')"
        )
    task = load_task(
        config,
        request.data_dir,
        request.data_seed,
        request.settings.max_items,
        keep_test_whole=is_rows_file,
    )
    spec = task.spec
    info = TaskInfo(
        task_sha256=task_sha256(task, encoder, tokenizer_hash, request.settings, task.sha256),
        chance=spec.chance,
        score_unit=spec.score_unit,
        num_fewshot=spec.num_fewshot,
        scorer=spec.scorer,
        source=task.source,
    )
    encoded = encode_split(encoder, task, request.split, context, request.settings)
    notes = truncation_notes(encoded, task, request.split, context, encoder)
    evaluate = partial(_evaluate_own, task, encoder, request)
    return EvalTask(spec.name, {spec.name: info}, [*task.notes, *notes], evaluate)


def lm_eval_task(task: LmEvalTask, tokenizer_hash: str) -> EvalTask:
    versions = {"tokenizer": tokenizer_hash, "evaluation_version": EVALUATION_VERSION}
    infos = {
        name: TaskInfo(
            task_sha256=sha256_json({"task": task.sha256, "name": name, **versions}),
            chance=None,
            score_unit=None,  # known from the metric, once there is one
            num_fewshot=int(task.config(name, "num_fewshot")),
            scorer=str(task.config(name, "output_type")),
            source=f"{task.source}, {task.config(name, 'dataset_path')}",
        )
        for name in task.names
    }
    return EvalTask(task.source, infos, (), partial(evaluate_lm_eval, task))
