"""From a task of the study file to its spec: a named task with changes, or one's own data's."""

import difflib
from dataclasses import replace
from typing import Any

from rankscope.config.task import Scorer, TaskConfig
from rankscope.data.registry import (
    LETTERED_PROMPT,
    LIKELIHOODS,
    NAMED_TASKS,
    WRITTEN_SCORERS,
    WRITTEN_VERSION,
    TaskSpec,
)
from rankscope.data.rows import QUESTION_PROMPT, RowContent
from rankscope.errors import UserError


def known_task(config: TaskConfig) -> TaskSpec:
    if config.name in NAMED_TASKS:
        return NAMED_TASKS[config.name]
    close = difflib.get_close_matches(config.name, NAMED_TASKS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UserError(
        f"task {config.name!r} is not a named task{hint} Named tasks: {', '.join(NAMED_TASKS)}. "
        "For your own data give 'train:' (a JSONL or Parquet file) or 'hub:'"
    )


def own_spec(config: TaskConfig, content: RowContent) -> TaskSpec:
    """The spec of the user's own data: what the first row allows, unless the study file says."""
    scorer: Scorer = "loss"
    if content.choices:
        scorer = "option_text"
    elif content.reference and content.reference != content.completion.strip():
        scorer = "number"
    if config.name == "perplexity" and content.completion and not content.question:
        scorer = "perplexity"
    scorer = config.scorer or scorer
    default = LETTERED_PROMPT if scorer == "option_letter" else content.template
    if config.prompt is not None and content.messages:
        raise UserError(
            f"task {config.name!r}: 'prompt' does not apply to rows of messages, which the chat "
            "template renders; remove it"
        )
    return TaskSpec(
        config.name,
        "Own data.",
        scorer,
        config.prompt or default,
        version=WRITTEN_VERSION if scorer in WRITTEN_SCORERS else 1,
        **_settings(config),
    )


def _settings(config: TaskConfig) -> dict[str, Any]:
    """What a task of either kind takes from the study file as it stands there."""
    return {
        "num_fewshot": config.num_fewshot,
        "primary_metric": config.primary_metric,
        "stop": tuple(config.stop),
        "extract": config.extract,
    }


def named_spec(spec: TaskSpec, config: TaskConfig) -> TaskSpec:
    """A named task with the study file's changes; another scorer brings its own prompt."""
    prompt = config.prompt
    if config.scorer is not None and config.scorer != spec.scorer and spec.scorer_sets_prompt:
        prompt = prompt or (
            LETTERED_PROMPT if config.scorer == "option_letter" else QUESTION_PROMPT
        )
    hub = spec.hub
    if hub is not None and config.revision is not None:
        hub = replace(hub, revision=config.revision)
    changes = _settings(config)
    if config.scorer in (None, spec.scorer):
        changes["primary_metric"] = config.primary_metric or spec.primary_metric
    return replace(
        spec,
        scorer=config.scorer or spec.scorer,
        prompt=prompt or spec.prompt,
        hub=hub,
        **changes,
    )


def check_task_settings(spec: TaskSpec) -> None:
    """Raise UserError for settings that the task's scorer has no use for."""
    where = f"task {spec.name!r}, scorer {spec.scorer!r}"
    if spec.scorer == "option_letter" and not spec.lists_options:
        raise UserError(
            f"task {spec.name!r}: scorer 'option_letter' needs {{options}} in the prompt, so that "
            "the model sees which letter is which"
        )
    for key, value in (("stop", spec.stop), ("extract", spec.extract)):
        if value and spec.scorer not in WRITTEN_SCORERS:
            raise UserError(
                f"{where}: {key!r} is for answers that are generated; remove it, or choose the "
                "scorer 'number' or 'exact_match'"
            )
    known = metrics_of(spec)
    if spec.primary_metric is not None and spec.primary_metric not in known:
        raise UserError(
            f"{where}: 'primary_metric' is {spec.primary_metric!r}, which is not measured; "
            f"expected {' or '.join(map(repr, known)) or 'none'}"
        )
    if spec.num_fewshot and spec.scorer in LIKELIHOODS:
        raise UserError(f"{where}: 'num_fewshot' are for questions with answers; remove it")


def metrics_of(spec: TaskSpec) -> tuple[str, ...]:
    """The metrics of a multiple-choice task that may be its primary_metric; of other tasks none."""
    texts = ("acc", "acc_norm", "acc_bytes", "acc_token") if spec.scorer == "option_text" else ()
    letters = spec.scorer == "option_letter" or (bool(texts) and spec.lists_options)
    return (*texts, *(("letter",) if letters else ()))
