"""From a task of the study file to its spec: a named task with changes, or one's own data's."""

import difflib
from dataclasses import replace
from typing import Any

from rankscope.config.task import TaskConfig
from rankscope.data.registry import LETTERED_PROMPT, NAMED_TASKS, TaskSpec
from rankscope.data.rows import QUESTION_PROMPT, RowContent
from rankscope.errors import UserError
from rankscope.evaluate.scorers import get_scorer


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
    name = "loss"
    if content.choices:
        name = "option_text"
    elif content.reference and content.reference != content.completion.strip():
        name = "number"
    if config.name == "perplexity" and content.completion and not content.question:
        name = "perplexity"
    scorer = get_scorer(config.scorer or name)
    default = LETTERED_PROMPT if scorer.needs_listed_options else content.template
    if config.prompt is not None and content.messages:
        raise UserError(
            f"task {config.name!r}: 'prompt' does not apply to rows of messages, which the chat "
            "template renders; remove it"
        )
    return TaskSpec(
        config.name,
        "Own data.",
        scorer.name,
        config.prompt or default,
        version=scorer.version,
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
        lists_options = get_scorer(config.scorer).needs_listed_options
        prompt = prompt or (LETTERED_PROMPT if lists_options else QUESTION_PROMPT)
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
