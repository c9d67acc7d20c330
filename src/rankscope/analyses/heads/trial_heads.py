"""The heads of one trained trial, whatever method trained it, beside those of its base."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import numpy as np
from torch import Tensor

from rankscope.analyses.heads.ablation import AblationResult, ablate, single_heads, whole_layers
from rankscope.analyses.heads.change import Weights, adapter_changes, dense_changes
from rankscope.analyses.heads.entropy import attention_entropy
from rankscope.analyses.heads.importance import head_importance, raw_importance, unit_length
from rankscope.analyses.heads.layout import PROJECTIONS, AttentionLayer, HeadLayout, HeadModel
from rankscope.analyses.heads.record import (
    HeadAblation,
    HeadChange,
    HeadRole,
    HeadsRecord,
    LayerHeads,
)
from rankscope.analyses.heads.tasks import HeadTask
from rankscope.evaluate.token_trees import Floats
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.quantize import dense_weight

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _HeadMeasurements:
    layers: tuple[LayerHeads, ...]
    ablations: Mapping[str, AblationResult]  # By task


def _measure_heads(
    model: HeadModel, task: HeadTask, ablated_on: Sequence[HeadTask]
) -> _HeadMeasurements:
    """Importance and entropy of every head on ``task``, and ablations of every head, and of every
    layer, on the tasks of ``ablated_on``."""
    signed = head_importance(model, task.trees)
    entropy = attention_entropy(model, task.trees)
    layout = model.layout

    def unit(layer: AttentionLayer, num_heads: int) -> tuple[float, ...]:
        return tuple(unit_length(raw_importance(signed[layer.index], num_heads)).tolist())

    layers = tuple(
        LayerHeads(
            layer=layer.index,
            importance=unit(layer, layer.num_heads),
            group_importance=unit(layer, layer.num_kv_heads),
            entropy=entropy[layer.index],
        )
        for layer in layout
    )
    ablations = [*single_heads(layout), *whole_layers(layout)]
    results = {other.name: ablate(model, other.trees, ablations) for other in ablated_on}
    return _HeadMeasurements(layers, results)


def _ablation_record(
    layout: HeadLayout, task: HeadTask, base: AblationResult, tuned: AblationResult
) -> HeadAblation:
    """What removing each head, then each layer, does to the base and to a tuned model."""

    def by_layer(values: Sequence[_T]) -> tuple[tuple[_T, ...], ...]:
        remaining = iter(values)
        return tuple(tuple(islice(remaining, layer.num_heads)) for layer in layout)

    def changes(result: AblationResult) -> tuple[list[float], list[Floats]]:
        score, gold = task.scores(result.intact), task.gold(result.intact)
        return (
            [float((task.scores(v) - score).mean()) for v in result.ablated],
            [task.gold(v) - gold for v in result.ablated],
        )

    base_score, base_gold = changes(base)
    tuned_score, tuned_gold = changes(tuned)
    heads, n = layout.num_heads, len(task.trees)
    pairs = zip(base_gold[:heads], tuned_gold[:heads], strict=True)
    errors = [float((t - b).std(ddof=1) / np.sqrt(n)) if n > 1 else None for b, t in pairs]
    base_mean, tuned_mean = ([float(d.mean()) for d in gold] for gold in (base_gold, tuned_gold))
    return HeadAblation(
        task=task.name,
        items=n,
        metric=task.metric,
        base_score=float(task.scores(base.intact).mean()),
        tuned_score=float(task.scores(tuned.intact).mean()),
        base_change=by_layer(base_score),
        tuned_change=by_layer(tuned_score),
        base_gold_change=by_layer(base_mean),
        tuned_gold_change=by_layer(tuned_mean),
        gold_difference_error=by_layer(errors),
        base_layer_gold_change=tuple(base_mean[heads:]),
        tuned_layer_gold_change=tuple(tuned_mean[heads:]),
    )


def _trial_changes(
    model: HeadModel, base: Base, stored_base: Weights | None = None
) -> tuple[HeadChange, ...]:
    """How far training moved each head; W0 is from ``stored_base``, or as loaded."""
    layout, tuned = model.layout, model.base
    if (tuner := tuned.multi_lora.injected_tuner) is not None:
        return dense_changes(layout, tuner.base_weight, tuner.merged_weight, tuner.mergeable())
    linears = base.linears()

    def loaded_base(name: str) -> Tensor:
        return dense_weight(linears[name])

    before = stored_base or loaded_base
    if model.adapter_name is not None:
        return adapter_changes(layout, before, tuned.multi_lora.adapters[model.adapter_name])
    # Read a full model from its file: in memory it may be bfloat16, which rounds by up to 1 part in
    # 512, as much as training may have changed.
    names = [layer.projection(module) for layer in layout for module in PROJECTIONS]
    return dense_changes(layout, before, CheckpointReader.open(tuned.folder).weight, names)


@dataclass(slots=True)
class HeadAnalysis:
    """What the trials of one training task share: the items, and the heads of the base.

    Tasks ``related`` to the training task share items with it, so they show nothing of what heads
    lost on *other* tasks.
    """

    model: HeadModel  # the untouched base
    task: HeadTask  # gives importance and entropy
    ablated_on: tuple[HeadTask, ...]
    items_asked: int  # most items of each task
    related: frozenset[str] = frozenset()
    base: _HeadMeasurements = field(init=False)

    def __post_init__(self) -> None:
        self.base = _measure_heads(self.model, self.task, self.ablated_on)

    def record(
        self, trial_id: str, trained_on: str, tuned: Base, stored_base: Weights | None = None
    ) -> HeadsRecord:
        """Measure the heads of one trial, whose id is its adapter's name if it has one."""
        started = time.perf_counter()
        adapter_name = trial_id if trial_id in tuned.multi_lora.adapters else None
        model = replace(self.model, base=tuned, adapter_name=adapter_name)
        heads = _measure_heads(model, self.task, self.ablated_on)
        ablations = [
            _ablation_record(
                model.layout, task, self.base.ablations[task.name], heads.ablations[task.name]
            )
            for task in self.ablated_on
        ]
        ablations.sort(key=lambda ablation: ablation.task != trained_on)
        roles: tuple[HeadRole, ...] = ()
        if ablations and ablations[0].task == trained_on:
            unrelated = [a for a in ablations[1:] if a.task not in self.related]
            roles = head_roles(ablations[0], unrelated)
        return HeadsRecord(
            trial_id=trial_id,
            task=self.task.name,
            items=len(self.task.trees),
            items_asked=self.items_asked,
            dtype=self.model.base.record.dtype,
            changes=_trial_changes(model, self.model.base, stored_base),
            base=self.base.layers,
            tuned=heads.layers,
            ablations=tuple(ablations),
            roles=roles,
            seconds=time.perf_counter() - started,
        )


def head_roles(trained: HeadAblation, others: Sequence[HeadAblation]) -> tuple[HeadRole, ...]:
    """Roles of every head, layer by layer, from ablations on the trained task and on others,
    equally weighted.

    Removing a head costs a model c = -(change of the gold answer's log-probability). On the trained
    task c_tuned - c_base is the head's *skill*, on others c_base - c_tuned what it *lost*. Costs do
    not add up over heads, and small ones are noise: see ``HeadAblation.gold_difference_error``.
    """
    shape = [len(heads) for heads in trained.base_gold_change]
    for ablation in (trained, *others):
        for changes in (ablation.base_gold_change, ablation.tuned_gold_change):
            if [len(heads) for heads in changes] != shape:
                raise ValueError(f"{ablation.task}: other heads than {trained.task}'s")
    skill = _added_cost(trained)
    added_elsewhere = [_added_cost(other) for other in others]
    return tuple(
        HeadRole(
            layer=layer,
            head=head,
            skill=skill[layer][head],
            lost=-sum(task[layer][head] for task in added_elsewhere) / len(others)
            if others
            else None,
        )
        for layer, heads in enumerate(shape)
        for head in range(heads)
    )


def _added_cost(ablation: HeadAblation) -> list[list[float]]:
    """By layer and head: c_tuned - c_base, nats."""
    pairs = zip(ablation.base_gold_change, ablation.tuned_gold_change, strict=True)
    return [[b - t for b, t in zip(base, tuned, strict=True)] for base, tuned in pairs]
