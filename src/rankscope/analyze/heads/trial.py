"""The heads of one trained trial, whatever trained it, beside those of its base."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from rankscope.analyze.heads.ablation import AblationResult, ablate, single_heads, whole_layers
from rankscope.analyze.heads.change import Weights, adapter_changes, dense_changes
from rankscope.analyze.heads.entropy import attention_entropy
from rankscope.analyze.heads.importance import head_importance, normalized
from rankscope.analyze.heads.layout import PROJECTIONS, HeadLayout
from rankscope.analyze.heads.roles import head_roles
from rankscope.analyze.heads.trees import Floats, Tree, trees_of
from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import Encoder
from rankscope.data.tasks import LoadedTask
from rankscope.evaluate.context_window import EncodedSplit, fit_to_context
from rankscope.evaluate.evaluator import encode_split
from rankscope.evaluate.metrics import PRIMARY_METRIC, first_best
from rankscope.evaluate.scorers.loss import encode_losses
from rankscope.models.base import Base
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.peft_backend.tuner import PeftTuner
from rankscope.models.quantize import dense_weight
from rankscope.records import HeadAblation, HeadChange, HeadsRecord, LayerHeads

T = TypeVar("T")

LIKELIHOOD = "logprob_per_token"
"""Score of items that have no options: the gold answer's log-probability per token."""


@dataclass(frozen=True, slots=True)
class HeadTask:
    """The items of one task that heads are looked at on."""

    name: str
    metric: str
    trees: tuple[Tree, ...]

    def scores(self, values: Sequence[Floats]) -> Floats:
        """Headline score of every item from the log-probabilities of its continuations."""
        if self.metric == LIKELIHOOD:
            counts = [len(tree.targets) for tree in self.trees]
            return np.array([v[0] / n for v, n in zip(values, counts, strict=True)])
        hits = [
            first_best(v.tolist()) == tree.gold for v, tree in zip(values, self.trees, strict=True)
        ]
        return np.array(hits, dtype=np.float64)

    def gold(self, values: Sequence[Floats]) -> Floats:
        """Log-probability of every item's right answer, nats."""
        return np.array([v[tree.gold] for v, tree in zip(values, self.trees, strict=True)])


def head_task(
    context: int | None,
    encoder: Encoder,
    task: LoadedTask,
    most_items: int,
    settings: EvaluateConfig,
) -> HeadTask:
    """The first test items of a task, for a model that takes in ``context`` tokens.

    What is answered by generating is scored by likelihood, and so is a joined task whose parts are
    asked differently.

    Raises:
        UserError: items that cannot be scored, or are longer than ``context`` where that is refused.
    """
    first = replace(task, test=task.test[:most_items])
    has_answers_alike = any(item.contexts for item in first.test)
    specs = [part.spec for part in task.parts or (task,)]
    is_one_kind = len({(spec.scorer, spec.lists_options) for spec in specs}) == 1
    has_scorer = task.spec.scorer in ("option_text", "option_letter", "loss")
    if has_scorer and is_one_kind and not has_answers_alike:
        encoded = encode_split(encoder, first, "test", context, settings)
        metric = PRIMARY_METRIC[task.spec.scorer]
    else:
        encoded = EncodedSplit(first.test, rows=encode_losses(encoder, first.test))
        if context is not None:
            where = f"task {task.spec.name!r}, report"
            encoded = fit_to_context(encoded, context, settings, where, encoder.bos_ids)
        metric = LIKELIHOOD
    return HeadTask(task.spec.name, metric, tuple(trees_of(encoded)))


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's heads."""

    layers: tuple[LayerHeads, ...]
    ablations: Mapping[str, AblationResult]
    """By task."""


def measure(
    base: Base,
    layout: HeadLayout,
    adapter_name: str | None,
    task: HeadTask,
    ablated_on: Sequence[HeadTask],
    batch_tokens: int,
) -> Measured:
    """Importance and entropy on one task, and every head removed by itself on some, then all heads
    of every layer.

    Args:
        base: the base, with the adapter attached or the method on it.
        layout: of its heads.
        adapter_name: the adapter; None is the base, or whatever is on it.
        task: whose right answers importance and entropy are of.
        ablated_on: tasks to score again without each head, and without each layer's.
        batch_tokens: most tokens of a pass.
    """
    importance = head_importance(base, layout, task.trees, adapter_name, batch_tokens)
    entropy = attention_entropy(base, layout, task.trees, adapter_name, batch_tokens)
    groups = importance.raw_groups(layout)
    layers = tuple(
        LayerHeads(
            layer=layer.index,
            importance=tuple(normalized(raw).tolist()),
            group_importance=tuple(normalized(group).tolist()),
            entropy=of_layer,
        )
        for layer, raw, group, of_layer in zip(
            layout, importance.raw(), groups, entropy, strict=True
        )
    )
    every = [*single_heads(layout), *whole_layers(layout)]
    return Measured(
        layers,
        {
            other.name: ablate(base, layout, other.trees, every, adapter_name, batch_tokens)
            for other in ablated_on
        },
    )


def ablation_record(
    layout: HeadLayout, task: HeadTask, base: AblationResult, tuned: AblationResult
) -> HeadAblation:
    """Every head removed by itself, of the base and of a tuned model, on one task; then layers."""

    def by_layer(values: Sequence[T]) -> tuple[tuple[T, ...], ...]:
        ends = np.cumsum([layer.num_heads for layer in layout]).tolist()
        starts = [0, *ends[:-1]]
        return tuple(tuple(values[a:b]) for a, b in zip(starts, ends, strict=True))

    def changes(found: AblationResult) -> tuple[list[float], list[Floats]]:
        score, gold = task.scores(found.intact), task.gold(found.intact)
        return (
            [float((task.scores(v) - score).mean()) for v in found.ablated],
            [task.gold(v) - gold for v in found.ablated],
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


def changes_of(
    layout: HeadLayout,
    adapter_name: str | None,
    base: Base,
    tuned: Base,
    stored: Weights | None = None,
) -> tuple[HeadChange, ...]:
    """How far training moved each head: of an adapter, a method of PEFT's, or a whole model.

    ``stored`` gives W0 where it is not to be the base's as it runs.
    """
    if isinstance(tuner := tuned.multi_lora.injected_tuner, PeftTuner):
        return dense_changes(layout, tuner.base_weight, tuner.merged_weight, tuner.mergeable())
    linears = base.linears()

    def weights(name: str) -> torch.Tensor:
        return dense_weight(linears[name])

    before = stored or weights
    if adapter_name is not None:
        return adapter_changes(layout, before, tuned.multi_lora.adapters[adapter_name])
    return checkpoint_changes(layout, before, CheckpointReader.open(tuned.folder))


def checkpoint_changes(
    layout: HeadLayout, base: Weights, stored: CheckpointReader
) -> tuple[HeadChange, ...]:
    """How far the heads of a whole model moved, from its file: in memory it may be in bfloat16,
    whose rounding, up to a part in 512, can be as large as what training changed."""
    names = [layer.projection(module) for layer in layout for module in PROJECTIONS]
    return dense_changes(layout, base, stored.weight, names)


@dataclass(frozen=True, slots=True)
class HeadStudy:
    """What the heads of all trials of one training task are looked at on, and the base's.

    Attributes:
        layout: of the base's heads.
        task: of importance and entropy.
        ablated_on: tasks to score again without each head.
        items_asked: the most items of each.
        batch_tokens: most tokens of a pass.
        base: of the untouched base.
        related: tasks whose items are, in part, those of the training task: they are not among the
            others in which a head's role is looked for.
    """

    layout: HeadLayout
    task: HeadTask
    ablated_on: tuple[HeadTask, ...]
    items_asked: int
    batch_tokens: int
    base: Measured
    related: frozenset[str] = frozenset()

    def record(
        self,
        trial_id: str,
        trained_on: str,
        base: Base,
        tuned: Base,
        stored: Weights | None = None,
    ) -> HeadsRecord:
        """The heads of one trial.

        Args:
            trial_id: of the trial, and the adapter_name of its adapter where it has one.
            trained_on: its task.
            base: the frozen base.
            tuned: the base with the trial's weights on it, or a model of its own.
            stored: W0 of changes where it is not to be the base's as it runs.
        """
        begun = time.perf_counter()
        adapter_name = trial_id if trial_id in tuned.multi_lora.adapters else None
        found = measure(
            tuned, self.layout, adapter_name, self.task, self.ablated_on, self.batch_tokens
        )
        ablations = tuple(
            ablation_record(
                self.layout, task, self.base.ablations[task.name], found.ablations[task.name]
            )
            for task in self.ablated_on
        )
        own = [a for a in ablations if a.task == trained_on]
        others = [a for a in ablations if a.task != trained_on]
        strangers = [a for a in others if a.task not in self.related]
        return HeadsRecord(
            trial_id=trial_id,
            task=self.task.name,
            items=len(self.task.trees),
            items_asked=self.items_asked,
            dtype=base.record.dtype,
            changes=changes_of(self.layout, adapter_name, base, tuned, stored),
            base=self.base.layers,
            tuned=found.layers,
            ablations=(*own, *others),
            roles=head_roles(own[0], strangers) if own else (),
            seconds=time.perf_counter() - begun,
        )
