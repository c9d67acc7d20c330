"""What the base and the rows say about the rank, and from there to what predictors say."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rankscope.config.study import StudyConfig
from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import RowSampler
from rankscope.errors import NotFiniteError, UserError
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.input_directions import InputDirections, run_watched, shared_inputs
from rankscope.models.load import load_base
from rankscope.models.multi_lora import target_linears
from rankscope.models.parameters import lora_parameters
from rankscope.predict.predictors import Evidence, predict_ranks
from rankscope.predict.screens import measured_curves, run_subset
from rankscope.progress import ProgressReporter
from rankscope.records import BASE, PredictorFeatures, StudyRecords, TaskPrediction, TrialSpec
from rankscope.run.prepare import prepare
from rankscope.run.prepared import PreparedStudy
from rankscope.train.loss import mean_losses

PROBE_TOKENS = 2048  # Tokens per batch, or twice the number of directions if that is more
PROBE_BATCHES = 8
PROBE_ITEMS = 200


def predict_study(
    config: StudyConfig, screen: Path | None = None, reporter: ProgressReporter | None = None
) -> tuple[TaskPrediction, ...]:
    """screen: folder of the subset study, which is run or continued; by default none is."""
    inputs = prepare(config, reporter)
    if not any(trial.rank and trial.alpha for trial in inputs.trials):
        raise UserError("predict", "no arm with a rank", "an arm with a rank to predict")
    subset = None if screen is None else run_subset(inputs, screen, reporter)
    return predict_tasks(inputs, open_base(inputs), subset, reporter=reporter)


def open_base(inputs: PreparedStudy) -> Base:
    config = inputs.config
    return load_base(
        config.model,
        inputs.device,
        inputs.dtype,
        quantize=config.quantize,
        tokenizer=inputs.data.encoder.tokenizer,
    )


def predict_tasks(
    inputs: PreparedStudy,
    base: Base,
    subset: StudyRecords | None = None,
    study: StudyRecords | None = None,
    reporter: ProgressReporter | None = None,
) -> tuple[TaskPrediction, ...]:
    """subset: the study on a tenth of its rows. study: the finished study itself."""
    predicted, reporter = [], reporter or ProgressReporter()
    for task in inputs.config.tasks:
        trials = [t for t in inputs.trials if t.task == task.name and t.rank and t.alpha]
        ranks = tuple(sorted({t.rank for t in trials if t.rank is not None}))
        curves = {} if study is None else measured_curves(study, task.name)
        if subset is not None:
            of_subset = measured_curves(subset, task.name)
            curves |= {f"subset_{kind}": curve for kind, curve in of_subset.items()}
        reporter.stage(f"{task.name}: gradients, scores and inputs of the base", 1)
        most = max(trials, key=lambda trial: len(inputs.data.rows_of(trial).rows))
        features = features_of(inputs, base, most, ranks)
        reporter.finish()
        evidence = Evidence(features, ranks, inputs.config.objective.margin, curves)
        predicted.append(
            TaskPrediction(
                task=task.name, ranks=ranks, features=features, predictions=predict_ranks(evidence)
            )
        )
    return tuple(predicted)


def features_of(
    inputs: PreparedStudy, base: Base, trial: TrialSpec, ranks: Sequence[int]
) -> PredictorFeatures:
    """Measure a trial's task and targets by a few batches, in the order of seed 0."""
    rows = inputs.data.rows_of(trial).rows
    order = RowSampler(len(rows), 1, 1, 0).epoch(0)
    size = max(PROBE_TOKENS, 2 * max(ranks))
    batches = list(token_batches([rows[i] for i in order], size))[:PROBE_BATCHES]
    targets = target_linears(base.model, trial.targets)
    loss, gradients = loss_and_gradients(base, targets, batches)
    spectra = [torch.linalg.svdvals(g.float()) for g in gradients]
    shares = [s[s > 0] / s.sum() for s in spectra]
    effective = [float(torch.exp(-(p * p.log()).sum())) for p in shares]
    stable = [float(s.square().sum() / s[0].square()) for s in spectra]
    task = inputs.data.tasks[trial.task]
    few = replace(task, validation=task.validation[:PROBE_ITEMS])
    evaluations, failures = evaluate_task(
        base, inputs.data.encoder, few, "validation", {None: BASE}, inputs.config.evaluate
    )
    for reason in failures.values():
        raise NotFiniteError(f"task {trial.task!r}", reason)
    record, _ = evaluations[None]
    return PredictorFeatures(
        task=trial.task,
        num_rows=len(rows),
        num_label_tokens=sum(sum(row.is_label) for row in rows),
        lora_parameters={r: lora_parameters(inputs.base.shapes, r, trial.targets) for r in ranks},
        rows_seen=sum(map(len, batches)),
        base_loss=loss,
        base_score=record.score,
        base_items=record.n,
        chance=task.spec.chance,
        gradient_effective_rank=sum(effective) / len(effective) if effective else None,
        gradient_stable_rank=sum(stable) / len(stable) if stable else None,
        input_variance=input_variance(base, targets, batches, ranks),
    )


def token_batches(rows: Sequence[EncodedRow], size: int) -> Iterator[list[EncodedRow]]:
    """Rows in batches of at least ``size`` tokens; the last batch may be smaller."""
    batch: list[EncodedRow] = []
    for row in rows:
        batch.append(row)
        if sum(len(other.input_ids) for other in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def loss_and_gradients(
    base: Base, targets: Mapping[str, nn.Linear], batches: Sequence[Sequence[EncodedRow]]
) -> tuple[float, list[Tensor]]:
    """Mean loss of all label tokens, and its gradient by matrix (none in 4 bits)."""
    weights = [layer.weight for layer in targets.values() if layer.weight.is_floating_point()]
    total = sum(sum(row.is_label) for batch in batches for row in batch)
    loss = 0.0
    with trainable(weights):
        for batch in batches:
            rows = [Row(row.input_ids, row.label_positions) for row in batch]
            logits = base.logits(RowBatch.of(rows, base.device))
            ids = [row.ids[t + 1] for row in rows for t in row.keep]
            losses = mean_losses(logits, torch.tensor(ids, device=base.device), [len(ids)], [total])
            loss += float(losses.detach().sum())
            if weights:
                losses.sum().backward()
        gradients = [w.grad.detach().clone() for w in weights if w.grad is not None]
    return loss, gradients


@contextmanager
def trainable(weights: Sequence[Tensor]) -> Iterator[None]:
    """Frozen weights that require a gradient inside the context."""
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in weights:
            weight.grad = None
            weight.requires_grad_(False)


def input_variance(
    base: Base,
    targets: Mapping[str, nn.Linear],
    batches: Sequence[Sequence[EncodedRow]],
    ranks: Sequence[int],
) -> dict[int, float]:
    """Rank -> share of the variance of a target's inputs in its leading directions, mean over
    targets, measured as for EVA (Paischer et al., 2410.07170).

    Batches with fewer tokens than ``max(ranks)`` directions are skipped.
    """
    rows = [[Row(row.input_ids, [len(row.input_ids) - 1]) for row in batch] for batch in batches]
    passes = [RowBatch.of(batch, base.device) for batch in rows]
    leaders = shared_inputs(base, targets, passes[0])
    seen = {}
    for leader in dict.fromkeys(leaders.values()):
        most = min(max(ranks), targets[leader].in_features, sum(passes[0].lengths))
        seen[leader] = InputDirections(targets[leader], most)
    for batch in passes:
        run_watched(base, batch, {targets[name]: inputs.update for name, inputs in seen.items()})
    shares = {leader: inputs.pca.explained_variance_ratio_ for leader, inputs in seen.items()}
    return {
        rank: sum(float(shares[leader][:rank].sum()) for leader in leaders.values()) / len(leaders)
        for rank in ranks
    }
