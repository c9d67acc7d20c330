"""Scoring of one split of one task under many models: the base and any number of adapters.

A mixture of tasks is scored part by part, each part with its own prompts and scorer.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from rankscope.config.study import EvaluateConfig, StudyConfig
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.data.study_data import StudyData
from rankscope.data.tasks import LoadedTask, items_sha256
from rankscope.errors import UserError
from rankscope.evaluate.context_window import (
    EncodedSplit,
    context_length,
    fit_to_context,
    length_notes,
)
from rankscope.evaluate.engines import OWN
from rankscope.evaluate.engines.engine import OWN_ENGINE, Engine
from rankscope.evaluate.metrics import ModelScores, is_mean, standard_error
from rankscope.evaluate.scorers import get_scorer
from rankscope.evaluate.scorers.scorer import ItemTokens, Scorer
from rankscope.hashing import sha256_json, tokenizer_sha256
from rankscope.models.base import Base
from rankscope.models.study_base import StudyBase
from rankscope.records import (
    BASE,
    EvalRecord,
    ItemResult,
    Role,
    ScoredModel,
    Split,
    TaskRecord,
    Variant,
    WithoutContamination,
    trial_of,
)

Evaluation = tuple[EvalRecord, list[ItemResult]]
"""The record of one model on one split, and its items in order."""

NOT_FINITE = "the model: found no item of a finite likelihood, expected one"


def evaluate_task(
    base: Base,
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    models: Mapping[str | None, ScoredModel],
    settings: EvaluateConfig,
    engine: Engine = OWN_ENGINE,
) -> tuple[dict[str | None, Evaluation], dict[str | None, str]]:
    """Score one split of one task under the base and any number of attached adapters.

    Args:
        models: maps adapter names to models. None is ``base``, which may be a fully fine-tuned
            model.

    Raises UserError for items that cannot be scored. ``max_items`` was applied when the task was
    loaded.

    Returns:
        The evaluations by adapter name. Also, for each model that gives no item a finite
        likelihood, a sentence on why. For loss and perplexity one item without it is enough.
    """
    if not models:
        return {}, {}
    if task.parts:
        kept = {item.item_id for item in task.items(split)}
        parts, of_engine = [], set[str]()
        for whole in task.parts:
            if (part := _with_items(whole, split, kept)).items(split):
                parts.append(evaluate_task(base, encoder, part, split, models, settings, engine))
                of_engine |= {name for n in models for name in engine.metrics(n)}
        failures = {name: why for _, of_part in parts for name, why in of_part.items()}
        return {
            n: _merged_evaluation(task, split, [p[n] for p, _ in parts], of_engine)
            for n in models
            if n not in failures
        }, failures
    context = context_length(base.model.config)
    encoded = replace(encode_split(encoder, task, split, context, settings), engine=engine)
    lacks_base = any(item.base_margin is None for item in encoded.items)
    if encoded.scorer.compares_with_base and lacks_base and set(models.values()) != {BASE}:
        found, rule = "items without the base's log-probabilities", "a study, which computes them"
        raise UserError(f"task {task.spec.name!r}, scorer {task.spec.scorer!r}", found, rule)
    with base.multi_lora.dropout_off(), torch.inference_mode():
        scores = encoded.scorer.run(base, encoded, list(models))
    prompts = [item.prompt or item.question for item in encoded.items]
    pairs = zip(encoded.items, encoded.encoded, strict=True)
    read = sum(encoded.scorer.item_tokens(encoder, i, ids, 0).read for i, ids in pairs)
    evaluations, failures = {}, {}
    for name, of_model in scores.items():
        if of_model.failure or of_model.metrics.get("not_finite") == 1:
            failures[name] = of_model.failure or NOT_FINITE
            continue
        items = of_model.items
        if models[name] == BASE:
            items = [replace(i, prompt=p) for i, p in zip(items, prompts, strict=True)]
        of_model.num_read = read
        record = _make_record(of_model, task, split, models[name], encoded.truncated)
        evaluations[name] = record, items
    return evaluations, failures


def encode_split(
    encoder: Encoder,
    task: LoadedTask,
    split: Split,
    max_tokens: int | None,
    settings: EvaluateConfig,
    scorer: Scorer[Any] | None = None,
) -> EncodedSplit:
    """Encode the items of one split as token ids, within a context of ``max_tokens``."""
    items, spec = task.items(split), task.spec
    if not items:
        raise UserError(f"task {spec.name!r}", f"no {split} items to score", "one or more")
    scorer = scorer or Scorer.of(spec.scorer)
    ids = scorer.encode(encoder, items, spec, max_tokens)
    encoded = EncodedSplit(scorer, encoder, spec, settings, items, ids, max_tokens or 0)
    return fit_to_context(encoded, f"task {spec.name!r}, {split}")


def scored_items(
    config: StudyConfig, base: StudyBase, data: StudyData
) -> tuple[tuple[TaskRecord, ...], dict[tuple[str, Split], list[ItemTokens]], list[str]]:
    """Encode the scored items of a study, before anything runs.

    Returns:
        The stored records of its tasks; a model's work for each item, by task and scored split; and
        notes on items and answers that are too long.
    """
    encoder, settings = data.encoder, config.evaluate
    max_tokens, tokenizer = context_length(base.config), tokenizer_sha256(base.folder)
    records = tuple(_task_record(config, encoder, t, tokenizer) for t in data.tasks.values())
    found: dict[tuple[str, Split], list[ItemTokens]] = {}
    of_task = defaultdict[str, dict[Split, EncodedSplit]](dict)
    for name, split in wanted_splits(settings.split, records, None):
        task, counts = data.tasks[name], list[tuple[str, ItemTokens]]()
        for part in task.parts or (task,):
            encoded = encode_split(encoder, part, split, max_tokens, settings)
            of_task[part.spec.name][split] = encoded
            for item, ids in zip(encoded.items, encoded.encoded, strict=True):
                taken = encoded.scorer.item_tokens(encoder, item, ids, settings.max_new_tokens)
                counts.append((item.item_id, taken))
        found[task.spec.name, split] = [taken for _, taken in counts]
        if task.parts:  # in the order and number of the mixture's own items
            by_id = dict(counts)
            items = task.items(split)
            found[task.spec.name, split] = [by_id[item.item_id] for item in items]
    notes = [note for splits in of_task.values() for note in length_notes([*splits.values()])]
    return records, found, notes


def wanted_splits(
    test: Split | None, tasks: Iterable[TaskRecord], trained_on: str | None
) -> list[tuple[str, Split]]:
    """List the splits that a model trained on a task is scored on; for the base, pass None.

    Every task is scored on the split ``test``. The tasks that arms are chosen by are also scored on
    validation: the model's own training task and the retention tasks. For the base these are all
    training tasks.
    """
    wanted: dict[tuple[str, Split], None] = {}
    for task in tasks:
        chooses = task.trained_on and trained_on in (None, task.name)
        if chooses or "retention" in task.roles:
            wanted[task.name, "validation"] = None
        wanted[task.name, test or "test"] = None
    return list(wanted)


def _make_record(
    scores: ModelScores, task: LoadedTask, split: Split, model: ScoredModel, truncated: int
) -> EvalRecord:
    metric = primary_metric(task)
    score, items = scores.metrics[metric], [item.score for item in scores.items]
    return EvalRecord(
        trial_id=trial_of(model),
        variant=model if isinstance(model, Variant) else None,
        task=task.spec.name,
        split=split,
        metric=metric,
        score=score,
        standard_error=standard_error(items) if is_mean(score, items) else None,
        n=len(scores.items),
        metrics=scores.metrics,
        without_contamination=without_contamination(task, split, scores.items),
        truncated=truncated,
        seconds=scores.seconds,
        num_tokens=scores.num_tokens,
        num_read=scores.num_read,
    )


def primary_metric(task: LoadedTask) -> str:
    """Return the metric of a task's score; ``acc`` if the parts of a mixture differ."""
    names = {
        part.spec.primary_metric or get_scorer(part.spec.scorer).default_metric
        for part in task.parts or (task,)
    }
    return names.pop() if len(names) == 1 else "acc"


def without_contamination(
    task: LoadedTask, split: Split, results: Sequence[ItemResult]
) -> WithoutContamination | None:
    """Return the score over test items that no training row holds; None if all are, or none is."""
    contaminated = task.contaminated_ids if split == "test" else frozenset[str]()
    clean = [item.score for item in results if item.item_id not in contaminated]
    if not clean or len(clean) == len(results):
        return None
    return WithoutContamination(
        contaminated=len(results) - len(clean),
        score=fmean(clean),
        standard_error=standard_error(clean),
        n=len(clean),
    )


def _with_items(task: LoadedTask, split: Split, item_ids: Collection[str]) -> LoadedTask:
    """Return the task with only some items of a split."""
    kept = tuple(item for item in task.items(split) if item.item_id in item_ids)
    return replace(task, test=kept) if split == "test" else replace(task, validation=kept)


def _merged_evaluation(
    task: LoadedTask, split: Split, parts: Sequence[Evaluation], of_engine: Collection[str]
) -> Evaluation:
    by_id = {result.item_id: result for _, results in parts for result in results}
    results = [by_id[item.item_id] for item in task.items(split)]
    records = [record for record, _ in parts]
    metric = primary_metric(task)
    metrics = {metric: fmean([result.score for result in results])}
    metrics |= {f"{record.task}.{record.metric}": record.score for record in records}
    metrics |= {name: of for r in records for name, of in r.metrics.items() if name in of_engine}
    scores = ModelScores(
        results,
        metrics,
        seconds=sum(record.seconds for record in records),
        num_tokens=sum(record.num_tokens for record in records),
        num_read=sum(record.num_read for record in records),
    )
    truncated = sum(record.truncated for record in records)
    return _make_record(scores, task, split, records[0].key[0], truncated), results


# --- the stored form of a task ------------------------------------------------------------------


EVALUATION_VERSION = 4  # In every task's hash: raise it when code changes scores


def _task_record(
    config: StudyConfig, encoder: Encoder, task: LoadedTask, tokenizer_hash: str
) -> TaskRecord:
    name = task.spec.name
    hashed = partial(_task_sha256, task, encoder, tokenizer_hash, config.evaluate)
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
        system=_system_text(task.train),
        source=task.source,
        from_hub=task.from_hub,
        sha256=hashed(task.sha256),
        validation_sha256=hashed(items_sha256(task.validation)),
        test_sha256=hashed(items_sha256(task.test)),
        contaminated_sha256=sha256_json(sorted(task.contaminated_ids)),
    )


def _system_text(rows: Sequence[Item]) -> str:
    """Return the system turn that all rows begin with; empty if they do not."""
    turns = {row.messages[0] if row.messages else None for row in rows}
    turn = turns.pop() if len(turns) == 1 else None
    return turn.content if turn is not None and turn.role == "system" else ""


def _task_sha256(
    task: LoadedTask,
    encoder: Encoder,
    tokenizer_hash: str,
    settings: EvaluateConfig,
    items: str,
) -> str:
    """Hash everything that scores depend on, except the model.

    ``items`` is the hash of the scored items, which hold their prompts and examples.
    """
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
    scorer = Scorer[Any].of(spec.scorer)
    return {
        "scorer": spec.scorer,
        "version": spec.version,
        "primary_metric": spec.primary_metric,
        "stop": spec.stop,
        "extract": spec.extract,
        "batch_tokens": settings.batch_tokens,
        "max_new_tokens": settings.max_new_tokens,
        "too_long": settings.too_long,
        **({"engine": settings.engine} if scorer.generates and settings.engine != OWN else {}),
        **scorer.encoder_settings(encoder),
    }


def _task_roles(config: StudyConfig, name: str) -> tuple[Role, ...]:
    """Return the roles of a task in the study; a training task is cross-domain for the others."""
    trained = [task.name for task in config.tasks]
    is_trained = name in trained
    is_cross_domain = name in [task.name for task in config.evaluate.cross_domain]
    has_role: dict[Role, bool] = {
        "in_domain": is_trained,
        "cross_domain": is_cross_domain or (is_trained and len(trained) > 1),
        "retention": name in [task.name for task in config.evaluate.retention],
    }
    return tuple(role for role, holds in has_role.items() if holds)
