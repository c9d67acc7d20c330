"""Tasks of lm-evaluation-harness in the engine alone: read first, scored beside the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankscope.data.tasks import LoadedTask
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import NOT_FINITE
from rankscope.evaluate.lm_eval.bridge import (
    Evaluation,
    LmEvalSettings,
    LmEvalTask,
    is_lm_eval_task,
    read_lm_eval_task,
)
from rankscope.evaluate.task_record import EVALUATION_VERSION
from rankscope.provenance import sha256_json
from rankscope.records import Split
from rankscope.tools.evaluate.request import EvalRequest

SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match"})
"""Headlines of the harness that are shares of right answers."""
CONTEXT = 2048
"""Most tokens, where the model's configuration names no bound."""


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a score says of its task."""

    name: str
    sha256: str
    """Of all that its scores depend on but the model."""
    chance: float | None
    score_unit: Literal["accuracy", "log_probability"] | None
    num_fewshot: int
    scorer: str
    source: str


def facts_of(task: LoadedTask, sha256: str) -> TaskFacts:
    """Of a task of Rankscope's own."""
    spec = task.spec
    return TaskFacts(
        spec.name, sha256, spec.chance, spec.score_unit, spec.num_fewshot, spec.scorer, task.source
    )


def read_lm_eval_tasks(
    asked: EvalRequest, split: Split, context: int | None, prompt_format: str
) -> list[LmEvalTask]:
    """Every harness task among those asked for, with its documents.

    Raises:
        UserError: the package is missing; no such task; one that is refused or cannot be read; one
            that stands twice; or the validation split, which the harness does not have.
    """
    sources = [text for text in asked.tasks if is_lm_eval_task(text)]
    if sources and split != "test":
        raise UserError(
            f"task {sources[0]!r}: the harness scores a task's test split, or its validation split "
            "where it has no other; expected --split test"
        )
    settings = LmEvalSettings(
        batch_tokens=asked.settings.batch_tokens,
        context=context or CONTEXT,
        num_fewshot=asked.num_fewshot,
        max_items=asked.settings.max_items,
        chat=prompt_format == "chat",
        allow_functions=asked.trust_task_code,
    )
    tasks = [read_lm_eval_task(source, settings) for source in sources]
    names = [name for task in tasks for name in task.names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"task {repeated[0]!r} stands twice in --tasks; give it once")
    return tasks


def harness_facts(task: LmEvalTask, tokenizer_hash: str) -> list[TaskFacts]:
    """Of every task of a harness task, group or tag."""
    versions = {"tokenizer": tokenizer_hash, "evaluation_version": EVALUATION_VERSION}
    return [
        TaskFacts(
            name=name,
            sha256=sha256_json({"task": task.sha256, "name": name, **versions}),
            chance=None,
            score_unit=None,  # the metric tells
            num_fewshot=int(task.config(name, "num_fewshot")),
            scorer=str(task.config(name, "output_type")),
            source=f"{task.source}, {task.config(name, 'dataset_path')}",
        )
        for name in task.names
    ]


def without_dead(
    found: Mapping[str | None, Sequence[Evaluation]],
) -> tuple[dict[str | None, list[Evaluation]], dict[tuple[str | None, str], str]]:
    """(evaluations whose likelihoods are finite, why not by adapter_name and task)."""
    alive: dict[str | None, list[Evaluation]] = {}
    reasons: dict[tuple[str | None, str], str] = {}
    for adapter_name, evaluations in found.items():
        alive[adapter_name] = []
        for record, items in evaluations:
            logprobs = [value for item in items for value in item.option_logprobs or ()]
            finite = np.isfinite([record.score, *record.metrics.values(), *logprobs])
            if finite.all():
                alive[adapter_name].append((record, items))
            else:
                reasons[adapter_name, record.task] = NOT_FINITE
    return alive, reasons
