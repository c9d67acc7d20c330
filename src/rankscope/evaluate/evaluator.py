"""One task, many models: the scorer the task names, run for every adapter and the base at once."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PretrainedConfig

from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.registry import CHOICE_SCORERS, TaskSpec
from rankscope.data.tasks import LoadedTask
from rankscope.errors import IntegrityError, UserError
from rankscope.evaluate.context_window import EncodedSplit, fit_to_context
from rankscope.evaluate.metrics import ModelScores, primary_metric, standard_error
from rankscope.evaluate.mixtures import evaluate_parts, without_contamination
from rankscope.evaluate.rescore import as_asked
from rankscope.evaluate.scorers.choice import encode_choices, score_choices
from rankscope.evaluate.scorers.contexts import encode_contexts, score_contexts
from rankscope.evaluate.scorers.generation import (
    GenerationLimits,
    encode_prompts,
    score_generations,
    stop_strings,
)
from rankscope.evaluate.scorers.loss import encode_losses, score_losses
from rankscope.evaluate.scorers.perplexity import encode_texts, score_texts
from rankscope.models.base import Base
from rankscope.records import EvalRecord, ItemResult, Split

Evaluation = tuple[EvalRecord, list[ItemResult]]
NO_LIKELIHOOD = "the model gives no item a finite likelihood"


def split_items(task: LoadedTask, split: Split) -> tuple[Item, ...]:
    """The items that are scored."""
    return task.validation if split == "validation" else task.test


def encode_split(
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    context: int | None,
    settings: EvaluateConfig,
) -> EncodedSplit:
    """The items of one split as the task's scorer needs them; no model is involved.

    Args:
        encoder: of the model that will be scored.
        task: with its scorer and items.
        split: which items.
        context: most tokens the model takes in, :func:`context_length`; None is no bound.
        settings: ``too_long`` says what happens to items beyond it.

    Raises:
        UserError: no items, items that cannot be scored, or items longer than ``context``. To cut
            them unasked would score another question than was asked.
    """
    items, spec = split_items(task, split), task.spec
    if not items:
        raise UserError(f"task {spec.name!r}: no {split} items to score")
    if spec.scorer == "option_text" and items[0].contexts:
        encoded = EncodedSplit(items, questions=encode_contexts(encoder, items))
    elif spec.scorer in CHOICE_SCORERS:
        encoded = EncodedSplit(items, questions=encode_choices(encoder, items, spec))
    elif spec.scorer == "perplexity":
        encoded = EncodedSplit(items, windows=encode_texts(encoder, items, context))
    elif spec.scorer == "loss":
        encoded = EncodedSplit(items, rows=encode_losses(encoder, items))
    else:
        encoded = EncodedSplit(items, prompts=encode_prompts(encoder, items))
    if context is None:
        return encoded
    where = f"task {spec.name!r}, {split}"
    return fit_to_context(encoded, context, settings, where, encoder.bos_ids)


def truncation_notes(
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    context: int | None,
    settings: EvaluateConfig,
) -> list[str]:
    """What a reader must know of a split whose items are not all scored whole, one sentence each.

    Their first tokens alone (scorer ``loss``), or without their beginning (``too_long``).

    Raises:
        UserError: what could not be scored later, as :func:`encode_split` tells it.
    """
    encoded = encode_split(encoder, task, split, context, settings)
    of_all = f"of {len(encoded.items)} {split} items"
    notes = []
    if encoded.cut_left:
        notes.append(
            f"{task.spec.name}: {len(encoded.cut_left)} {of_all} do not fit the context of "
            f"{context} tokens and are cut at their beginning"
        )
    if encoded.cut_right:
        notes.append(
            f"{task.spec.name}: {len(encoded.cut_right)} {of_all} are longer than max_length = "
            f"{encoder.max_length} tokens and scored up to there"
        )
    return notes


def context_length(config: PretrainedConfig) -> int | None:
    """Positions the model was made for; None where its configuration names no bound."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


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
        base: the base with the adapters attached to its multi_lora; a fully fine-tuned model is a base of
            its own.
        encoder: made for the base's tokenizer.
        task: with its scorer and items.
        split: which items.
        models: adapter_name -> trial id for the records; adapter_name None is the bare base.
        settings: ``batch_tokens`` and ``max_new_tokens``; ``max_items`` was applied on loading.

    Returns:
        Per adapter_name its record and the items' results, in item order.

    Raises:
        UserError: items that cannot be scored (see :func:`encode_split`).
        IntegrityError: a model without finite likelihoods, for scorer ``loss``.
        ValueError: a adapter_name that no attached adapter has.
    """
    missing = [
        adapter_name
        for adapter_name in models
        if adapter_name is not None and adapter_name not in base.multi_lora.adapters
    ]
    if missing:
        raise ValueError(f"no adapter is attached under the name {missing[0]!r}")
    if task.parts:
        return evaluate_parts(
            task, split, lambda part: evaluate_task(base, encoder, part, split, models, settings)
        )
    context = context_length(base.model.config)
    encoded = encode_split(encoder, task, split, context, settings)
    was_training, base.multi_lora.training = base.multi_lora.training, False
    try:
        with torch.inference_mode():
            scores = run_scorer(base, encoder, task.spec, encoded, list(models), settings)
    finally:
        base.multi_lora.training = was_training
    asked = {
        adapter_name: as_asked(found, encoded.items, task.spec)
        for adapter_name, found in scores.items()
    }
    return {
        adapter_name: (
            make_record(found, task, split, models[adapter_name]).model_copy(
                update={"truncated": encoded.truncated}
            ),
            found.items,
        )
        for adapter_name, found in asked.items()
    }


def evaluate_with_failures(
    base: Base,
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    models: Mapping[str | None, str],
    settings: EvaluateConfig,
) -> tuple[dict[str | None, Evaluation], dict[str | None, str]]:
    """As :func:`evaluate_task`, but a model whose likelihoods are not finite stops no other.

    Returns:
        Per adapter_name its evaluation, or why it could not be scored, one sentence.
    """
    if not models:
        return {}, {}
    try:
        found = evaluate_task(base, encoder, task, split, models, settings)
    except IntegrityError as error:
        if len(models) == 1:
            return {}, dict.fromkeys(models, str(error).splitlines()[0])
    else:
        dead = {
            adapter_name: NO_LIKELIHOOD
            for adapter_name, (record, _) in found.items()
            if record.metrics.get("not_finite") == 1
        }
        return {
            adapter_name: result
            for adapter_name, result in found.items()
            if adapter_name not in dead
        }, dead
    # One of several: score each by itself to tell which.
    results: dict[str | None, Evaluation] = {}
    reasons: dict[str | None, str] = {}
    for adapter_name, trial_id in models.items():
        of_one, failed = evaluate_with_failures(
            base, encoder, task, split, {adapter_name: trial_id}, settings
        )
        results |= of_one
        reasons |= failed
    return results, reasons


def run_scorer(
    base: Base,
    encoder: Encoder,
    spec: TaskSpec,
    encoded: EncodedSplit,
    adapter_names: Sequence[str | None],
    settings: EvaluateConfig,
) -> dict[str | None, ModelScores]:
    """Scores of every adapter_name by the scorer the task names."""
    items = encoded.items
    if encoded.questions and items[0].contexts:
        return score_contexts(
            base, items, encoded.questions, spec, adapter_names, settings.batch_tokens
        )
    if encoded.windows:
        return score_texts(base, items, encoded.windows, adapter_names, settings.batch_tokens)
    if encoded.questions:
        return score_choices(
            base, items, encoded.questions, spec, adapter_names, settings.batch_tokens
        )
    if encoded.rows:
        return score_losses(base, items, encoded.rows, adapter_names, settings.batch_tokens)
    longest = max(map(len, encoded.prompts))
    limits = GenerationLimits(
        max_new_tokens=settings.max_new_tokens,
        context=context_length(base.model.config) or longest + settings.max_new_tokens,
        batch_tokens=settings.batch_tokens,
        stop_ids=encoder.stop_ids,
        stop_strings=spec.stop or stop_strings(encoder, spec, items),
    )
    return score_generations(base, items, encoded.prompts, spec.scorer, adapter_names, limits)


def make_record(scores: ModelScores, task: LoadedTask, split: Split, trial_id: str) -> EvalRecord:
    """The record of one model on one split; of test items also without contaminated ones."""
    metric = primary_metric(task.spec)
    of_items = [item.score for item in scores.items]
    return EvalRecord(
        trial_id=trial_id,
        task=task.spec.name,
        split=split,
        metric=metric,
        score=scores.metrics[metric],
        standard_error=standard_error(of_items),
        n=len(scores.items),
        metrics=scores.metrics,
        without_contamination=without_contamination(task, split, scores.items),
        seconds=scores.seconds,
        num_tokens=scores.num_tokens,
    )
