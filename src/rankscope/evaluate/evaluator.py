"""Score one split of one task under many models: the base and any number of adapters."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import LoadedTask
from rankscope.errors import IntegrityError, UserError
from rankscope.evaluate.context_window import (
    ContextWindow,
    EncodedSplit,
    context_length,
    fit_to_context,
)
from rankscope.evaluate.metrics import ModelScores, standard_error
from rankscope.evaluate.mixtures import (
    Evaluation,
    evaluate_mixture,
    primary_metric,
    split_items,
    without_contamination,
)
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import Scorer, ScoringJob
from rankscope.models.base import Base
from rankscope.records import EvalRecord, Split

NOT_FINITE = "the model gives no item a finite likelihood"


def evaluate_task(
    base: Base,
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    models: Mapping[str | None, str],
    settings: EvaluateConfig,
) -> dict[str | None, Evaluation]:
    """Score one split of one task under the base and any number of adapters.

    Args:
        base: with the adapters attached; a fully fine-tuned model is a base of its own.
        encoder: made for the base's tokenizer.
        task: with its scorer and items.
        split: which items.
        models: adapter name -> trial id for the records; the name None is the bare base.
        settings: ``batch_tokens``, ``max_new_tokens`` and ``too_long``; loading the task applied
            ``max_items``.

    Returns:
        Per adapter name its record and its items in order.

    Raises:
        UserError: items that cannot be scored.
        IntegrityError: a model without finite likelihoods, for scorers of likelihood.
        ValueError: a name that no attached adapter has.
    """
    missing = [name for name in models if name is not None and name not in base.multi_lora.adapters]
    if missing:
        raise ValueError(f"no adapter is attached under the name {missing[0]!r}")
    if task.parts:
        return evaluate_mixture(
            task, split, lambda part: evaluate_task(base, encoder, part, split, models, settings)
        )
    context = context_length(base.model.config)
    encoded = encode_split(encoder, task, split, context, settings)
    job = ScoringJob(base, encoder, task.spec, encoded, list(models), settings)
    with base.multi_lora.dropout_off(), torch.inference_mode():
        scores = encoded.scorer.run(job)
    return {
        name: (make_record(of_model, task, split, models[name], encoded.truncated), of_model.items)
        for name, of_model in scores.items()
    }


def encode_split(
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    context: int | None,
    settings: EvaluateConfig,
    scorer: Scorer[Any] | None = None,
) -> EncodedSplit:
    """The items of one split as token ids, every one within the model's context.

    Args:
        encoder: of the model that will be scored.
        task: with its scorer and items.
        split: which items.
        context: most tokens that the model accepts, :func:`context_length`; None is no limit.
        settings: ``too_long`` decides about longer items.
        scorer: in place of the task's own.
    """
    items, spec = split_items(task, split), task.spec
    if not items:
        raise UserError(f"task {spec.name!r}: no {split} items to score")
    scorer = scorer or get_scorer(spec.scorer)
    encoded = EncodedSplit(scorer, items, scorer.encode(encoder, items, spec, context))
    if context is None:
        return encoded
    window = ContextWindow(context, encoder.bos_ids, settings.max_new_tokens)
    return fit_to_context(encoded, window, settings.too_long, f"task {spec.name!r}, {split}")


def truncation_notes(
    encoder: Encoder, task: LoadedTask, split: Split, context: int | None, settings: EvaluateConfig
) -> list[str]:
    """One sentence per reason why items of a split are not scored whole."""
    encoded = encode_split(encoder, task, split, context, settings)
    total = f"of {len(encoded.items)} {split} items"
    notes = []
    if encoded.cut_left:
        notes.append(
            f"{task.spec.name}: {len(encoded.cut_left)} {total} do not fit the context of "
            f"{context} tokens and are cut at their beginning"
        )
    if encoded.cut_right:
        notes.append(
            f"{task.spec.name}: {len(encoded.cut_right)} {total} are longer than max_length = "
            f"{encoder.max_length} tokens and scored up to there"
        )
    return notes


def context_notes(
    encoder: Encoder, tasks: Iterable[LoadedTask], context: int | None, settings: EvaluateConfig
) -> list[str]:
    """:func:`truncation_notes` of both splits of all tasks, mixtures part by part."""
    splits: tuple[Split, ...] = ("validation", "test")
    return [
        note
        for task in tasks
        for part in task.parts or (task,)
        for split in splits
        for note in truncation_notes(encoder, part, split, context, settings)
    ]


def evaluate_with_failures(
    base: Base,
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    models: Mapping[str | None, str],
    settings: EvaluateConfig,
) -> tuple[dict[str | None, Evaluation], dict[str | None, str]]:
    """As :func:`evaluate_task`, but models without finite likelihoods do not stop the others.

    Returns:
        Per adapter name its evaluation, or one sentence why it could not be scored.
    """
    if not models:
        return {}, {}
    try:
        evaluations = evaluate_task(base, encoder, task, split, models, settings)
    except IntegrityError as error:
        if len(models) == 1:
            return {}, dict.fromkeys(models, str(error).splitlines()[0])
    else:
        failures = {
            name: NOT_FINITE
            for name, (record, _) in evaluations.items()
            if record.metrics.get("not_finite") == 1
        }
        return {n: value for n, value in evaluations.items() if n not in failures}, failures
    # At least one of several failed: score each by itself to find out which.
    evaluations, failures = {}, {}
    for name, trial_id in models.items():
        alone = evaluate_with_failures(base, encoder, task, split, {name: trial_id}, settings)
        evaluations |= alone[0]
        failures |= alone[1]
    return evaluations, failures


def make_record(
    scores: ModelScores, task: LoadedTask, split: Split, trial_id: str, truncated: int
) -> EvalRecord:
    metric = primary_metric(task)
    return EvalRecord(
        trial_id=trial_id,
        task=task.spec.name,
        split=split,
        metric=metric,
        score=scores.metrics[metric],
        standard_error=standard_error([item.score for item in scores.items]),
        n=len(scores.items),
        metrics=scores.metrics,
        without_contamination=without_contamination(task, split, scores.items),
        truncated=truncated,
        seconds=scores.seconds,
        num_tokens=scores.num_tokens,
    )
