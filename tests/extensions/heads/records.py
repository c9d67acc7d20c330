"""Heads of models, trained in a simulated study or given."""

from dataclasses import replace

from rankscope.extensions.heads.record import HeadAblation, HeadChange, HeadsRecord, LayerHeads
from rankscope.records import StudyRecords, TrialRecords

LAYERS, HEADS, GROUPS = 2, 4, 2
Table = tuple[tuple[float, ...], ...]


def layer_heads(layer: int, size: float) -> LayerHeads:
    """Importance and entropy that grow with the head; the first layer's last entropy is unknown."""
    last = None if layer == 0 else size
    return LayerHeads(
        layer=layer,
        importance=tuple(size * (1 + h) for h in range(HEADS)),
        group_importance=tuple(size * (1 + g) for g in range(GROUPS)),
        entropy=(*(size / (1 + h) for h in range(HEADS - 1)), last),
    )


def ablation(task: str, factor: float) -> HeadAblation:
    """Head h of layer l costs (l + h) / 100 nats before and ``factor`` as much after."""
    before = tuple(tuple(-(at + h) / 100 for h in range(HEADS)) for at in range(LAYERS))
    update = {
        "tuned_change": tuple(tuple(2 * v for v in row) for row in before),
        "gold_difference_error": tuple((None, *(HEADS - 1) * (0.01,)) for _ in range(LAYERS)),
        "base_layer_gold_change": (-0.5, -0.25),
        "tuned_layer_gold_change": (-1.5, -0.75),
    }
    after = tuple(tuple(factor * v for v in row) for row in before)
    return ablation_of(task, before, after).model_copy(update=update)


def ablation_of(task: str, before: Table, after: Table) -> HeadAblation:
    """What each head of each layer costs before and after."""
    return HeadAblation(
        task=task,
        items=20,
        metric="acc",
        base_score=0.5,
        tuned_score=0.75,
        base_change=before,
        tuned_change=after,
        base_gold_change=before,
        tuned_gold_change=after,
        gold_difference_error=tuple((None,) * len(heads) for heads in before),
        base_layer_gold_change=tuple(map(sum, before)),
        tuned_layer_gold_change=tuple(map(sum, after)),
    )


def inspect_heads(found: StudyRecords, *ablations: HeadAblation) -> StudyRecords:
    """Heads for the first model alone."""
    record = HeadsRecord(
        trial_id=found.trials[0].spec.trial_id,
        task="trained",
        items=20,
        dtype="float32",
        changes=tuple(
            HeadChange(
                layer=at,
                module=module,
                frobenius=tuple(2.0 * (1 + at + h) for h in range(n)),
                relative=tuple(0.1 * (1 + at + h) for h in range(n)),
            )
            for at in range(LAYERS)
            for module, n in (("q_proj", HEADS), ("v_proj", GROUPS))
        ),
        base=tuple(layer_heads(at, 0.1) for at in range(LAYERS)),
        tuned=tuple(layer_heads(at, 0.2) for at in range(LAYERS)),
        ablations=ablations,
        skill=LAYERS * (tuple(0.1 * h for h in range(HEADS)),) if ablations else (),
        lost=LAYERS * (HEADS * (0.3,),) if ablations else (),
        seconds=1,
    )
    first, *rest = found.trials
    first = replace(first, analyses=(*first.analyses, record))
    return replace(found, trials=(first, *rest))


def heads_record(trial_id: str, task: str, size: float) -> HeadsRecord:
    """Three layers whose heads move more the larger ``size``, the layer and the head."""
    layers = range(3)
    return HeadsRecord(
        trial_id=trial_id,
        task=task,
        items=20,
        dtype="bfloat16",
        changes=tuple(
            HeadChange(layer=at, module=module, frobenius=values, relative=values)
            for at in layers
            for module, n in (("q_proj", HEADS), ("v_proj", GROUPS))
            for values in [tuple(size * (1 + at + h) for h in range(n))]
        ),
        base=tuple(layer_heads(at, 0.1) for at in layers),
        tuned=tuple(layer_heads(at, 0.1 + size / 10) for at in layers),
        skill=len(layers) * (tuple(size - 0.1 * h for h in range(HEADS)),),
        seconds=1.0,
    )


def with_heads(study: StudyRecords) -> StudyRecords:
    """The study with heads of every trial that ended well."""
    return replace(study, trials=tuple(map(trial_with_heads, study.trials)))


def trial_with_heads(trial: TrialRecords) -> TrialRecords:
    """Heads that move more the higher the rank, the layer and the head."""
    if trial.train is None:
        return trial
    size = 0.01 * (trial.spec.rank or 64) + 0.001 * trial.spec.seed
    heads = heads_record(trial.spec.trial_id, trial.spec.task, size)
    return replace(trial, analyses=(*trial.analyses, heads))
