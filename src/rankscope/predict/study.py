"""What the base tells of a rank before training, and the truncation screen of finished studies."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rankscope.advise.arms import retention_tasks
from rankscope.advise.mitigation import gain_and_forgetting
from rankscope.config.loader import load_study_file
from rankscope.config.study import StudyConfig
from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import RowSampler
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import evaluate_task
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.load import load_base
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.methods.eva_directions import (
    InputDirections,
    shared_inputs,
    update_directions,
)
from rankscope.models.multi_lora import target_linears
from rankscope.models.parameters import lora_parameters
from rankscope.predict.predictors import (
    best_rank,
    chosen_by_rank,
    mean_score,
    predict_ranks,
    score_predictors,
    screened,
)
from rankscope.records import (
    BASE,
    Backtest,
    BacktestTask,
    PredictorFeatures,
    RankScore,
    Split,
    StudyRecords,
    TaskPrediction,
    TrialRecords,
    TrialSpec,
)
from rankscope.run.prepare import prepare_study
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger, adapter_path
from rankscope.store.history import check_same_model, check_same_tasks
from rankscope.train.loss import mean_losses
from rankscope.train.regularizers import label_positions

PROBE_TOKENS = 2048
"""Tokens of a batch that the base is looked at with, or twice the directions if that is more."""
PROBE_BATCHES = 8
PROBE_ITEMS = 200


def predict_study(config: StudyConfig) -> tuple[TaskPrediction, ...]:
    """What each predictor says of every training task; nothing is trained.

    Raises:
        UserError: the study cannot be read, or no arm has a rank.
    """
    inputs = prepare_study(config)
    return predictions(inputs, open_base(inputs))


def open_base(inputs: PreparedStudy) -> Base:
    """The study's base, as a run loads it."""
    config = inputs.config
    return load_base(config.model, inputs.device, inputs.dtype, quantize=config.quantize)


def predictions(inputs: PreparedStudy, base: Base) -> tuple[TaskPrediction, ...]:
    """Of every training task, among the ranks of the study's LoRA trials."""
    found = []
    for task in inputs.config.tasks:
        trials = [t for t in inputs.trials if t.task == task.name and t.rank and t.alpha]
        if not trials:
            raise UserError("predict: no arm of the study has a rank to predict")
        ranks = tuple(sorted({t.rank for t in trials if t.rank is not None}))
        features = features_of(inputs, base, trials[0], ranks)
        found.append(
            TaskPrediction(
                task=task.name,
                ranks=ranks,
                features=features,
                predictions=predict_ranks(features, ranks),
            )
        )
    return tuple(found)


def features_of(
    inputs: PreparedStudy, base: Base, trial: TrialSpec, ranks: Sequence[int]
) -> PredictorFeatures:
    """Figures of one training task on a few batches of its rows, in the order of seed 0.

    trial: one of the task's, whose target modules are looked at.
    """
    rows = inputs.rows[trial.task].rows
    order = RowSampler(len(rows), 1, 1, 0).epoch(0)
    size = max(PROBE_TOKENS, 2 * max(ranks))
    batches = list(cut([rows[i] for i in order], size))[:PROBE_BATCHES]
    targets = target_linears(base.model, trial.targets)
    loss, gradients = loss_and_gradients(base, targets, batches)
    spectra = [torch.linalg.svdvals(g.float()) for g in gradients]
    shares = [s[s > 0] / s.sum() for s in spectra]
    effective = [float(torch.exp(-(p * p.log()).sum())) for p in shares]
    stable = [float(s.square().sum() / s[0].square()) for s in spectra]
    task = inputs.tasks[trial.task]
    few = replace(task, validation=task.validation[:PROBE_ITEMS])
    scored = evaluate_task(
        base, inputs.encoder, few, "validation", {None: BASE}, inputs.config.evaluate
    )
    return PredictorFeatures(
        task=trial.task,
        num_rows=len(rows),
        num_label_tokens=sum(sum(row.is_label) for row in rows),
        lora_parameters={r: lora_parameters(inputs.shapes, r, trial.targets) for r in ranks},
        rows_seen=sum(map(len, batches)),
        base_loss=loss,
        base_score=scored[None][0].score,
        base_items=scored[None][0].n,
        chance=task.spec.chance,
        gradient_effective_rank=sum(effective) / len(effective) if effective else None,
        gradient_stable_rank=sum(stable) / len(stable) if stable else None,
        input_variance=input_variance(base, targets, batches, ranks),
    )


def cut(rows: Sequence[EncodedRow], size: int) -> Iterator[list[EncodedRow]]:
    """Rows in batches of at least ``size`` tokens, the last one of what is left."""
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
    """Mean loss over the label tokens of all batches, and its gradient by target matrix; no
    gradients of a base held in 4 bits."""
    weights = [layer.weight for layer in targets.values() if layer.weight.is_floating_point()]
    total = sum(sum(row.is_label) for batch in batches for row in batch)
    loss = 0.0
    with trainable(weights):
        for batch in batches:
            kept = [label_positions(row) for row in batch]
            logits = base.logits(
                RowBatch.of(
                    [Row(row.input_ids, keep) for row, keep in zip(batch, kept, strict=True)],
                    base.device,
                )
            )
            ids = [
                row.input_ids[t + 1] for row, keep in zip(batch, kept, strict=True) for t in keep
            ]
            found = mean_losses(logits, torch.tensor(ids, device=base.device), [len(ids)], [total])
            loss += float(found.detach().sum())
            if weights:
                found.sum().backward()
        gradients = [w.grad.detach().clone() for w in weights if w.grad is not None]
    return loss, gradients


@contextmanager
def trainable(weights: Sequence[Tensor]) -> Iterator[None]:
    """Frozen weights that take a gradient inside, and are frozen again afterwards."""
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
    targets; as EVA takes it (Paischer et al., 2410.07170).

    Batches too small to tell ``max(ranks)`` directions apart are left out.
    """
    rows = [[Row(row.input_ids, [len(row.input_ids) - 1]) for row in batch] for batch in batches]
    passes = [RowBatch.of(batch, base.device) for batch in rows]
    leaders = shared_inputs(base, targets, passes[0])
    seen = {}
    for leader in dict.fromkeys(leaders.values()):
        most = min(max(ranks), targets[leader].in_features, sum(passes[0].lengths))
        seen[leader] = InputDirections.of(targets[leader], most)
    for batch in passes:
        update_directions(
            base, batch, {leader: (targets[leader], inputs) for leader, inputs in seen.items()}
        )
    shares = {leader: inputs.pca.explained_variance_ratio_ for leader, inputs in seen.items()}
    return {
        rank: sum(float(shares[leader][:rank].sum()) for leader in leaders.values()) / len(leaders)
        for rank in ranks
    }


# --- the truncation screen


def truncated_adapter(adapter: Adapter, rank: int, adapter_name: str) -> Adapter:
    """A plain LoRA adapter cut to ``rank`` at the least error of B A, ready to score."""
    parts = {
        name: LowRankUpdate(to_float64(a), to_float64(adapter.b[name])).truncated(rank)
        for name, a in adapter.a.items()
    }

    def kept(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.float(), requires_grad=False)

    return Adapter(
        name=adapter_name,
        rank=rank,
        alpha=adapter.alpha,
        scaling=adapter.scaling,
        targets=adapter.targets,
        a={name: kept(part.A) for name, part in parts.items()},
        b={name: kept(part.B) for name, part in parts.items()},
    )


def screen(
    inputs: PreparedStudy,
    ledger: Ledger,
    base: Base,
    trials: Sequence[TrialRecords],
    ranks: Sequence[int],
) -> dict[tuple[int, str, Split], list[float]]:
    """Scores of trained adapters truncated to each rank: (rank, task, split) -> one per trial.

    trials: seeds of one arm. Scored on its training task and the retention tasks.
    """
    task = trials[0].spec.task
    names = [task, *(t.name for t in inputs.config.evaluate.retention if t.name != task)]
    scores: dict[tuple[int, str, Split], list[float]] = {}
    for trial in trials:
        folder = ledger.checked_path(adapter_path(trial.spec.trial_id))
        adapter = load_adapter(folder, trial.spec.trial_id, base.record).to(base.device)
        adapter_names: dict[str | None, str] = {}
        try:
            for rank in ranks:
                cut = truncated_adapter(adapter, rank, f"cut to {rank}")
                base.multi_lora.attach(cut)
                adapter_names[cut.name] = cut.name
            for name in names:
                for split in ("validation", "test"):
                    found = evaluate_task(
                        base,
                        inputs.encoder,
                        inputs.tasks[name],
                        split,
                        adapter_names,
                        inputs.config.evaluate,
                    )
                    for rank, adapter_name in zip(ranks, adapter_names, strict=True):
                        key: tuple[int, str, Split] = (rank, name, split)
                        scores.setdefault(key, []).append(found[adapter_name][0].score)
        finally:
            base.multi_lora.clear()
    return scores


# --- the backtest


def backtest(folders: Sequence[Path]) -> Backtest:
    """Every predictor against finished studies: what it would have said, and what came out.

    Raises:
        UserError: a folder holds no study, or one whose model or rows are not what they were; or no
            study has two ranks of one task trained.
    """
    found = {folder: backtest_study(folder) for folder in folders}
    tasks = [task for of_study in found.values() for task in of_study]
    if not tasks:
        raise UserError(
            "predict --backtest: no study has finished LoRA trials at two ranks or more of one "
            "training task; expected folders that 'rankscope run' wrote"
        )
    skipped = tuple(str(folder) for folder, of_study in found.items() if not of_study)
    return Backtest(tasks=tuple(tasks), scores=score_predictors(tasks), skipped=skipped)


def backtest_study(folder: Path) -> list[BacktestTask]:
    """The training tasks of one finished study that have at least two ranks; maybe none.

    Raises:
        UserError: no study there, or its model or rows are not those of the stored results.
    """
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
        if not any(len(chosen_by_rank(study, task.name)) > 1 for task in study.tasks):
            return []
        inputs = prepare_study(load_study_file(folder / "study.resolved.yaml"))
        check_same_tasks(folder, {task.name: task for task in study.tasks}, inputs.records)
        base = open_base(inputs)
        check_same_model(folder, study.model, base.record)
        margin = study.config.objective.margin
        found = []
        for made in predictions(inputs, base):
            chosen = chosen_by_rank(study, made.task)
            trained = {
                r: mean_score(study, group, made.task, "test") for r, group in chosen.items()
            }
            known = {rank: score for rank, score in trained.items() if score is not None}
            if len(known) < 2:
                continue
            ranks = tuple(sorted(known))
            named = predict_ranks(made.features, ranks)
            whole = max(ranks)
            scores = screen(inputs, ledger, base, chosen[whole], ranks)
            curve = tuple(
                rank_score(study, made.task, rank, known[rank], chosen[rank], scores)
                for rank in ranks
            )
            cut = {p.rank: p.truncated_validation or 0.0 for p in curve}
            found.append(
                BacktestTask(
                    study=study.name,
                    task=made.task,
                    prediction=made.model_copy(
                        update={
                            "ranks": ranks,
                            "predictions": (*named, screened(cut, margin, whole)),
                        }
                    ),
                    curve=curve,
                    best_rank=best_rank(known, margin),
                    screened_rank=whole,
                )
            )
    return found


def rank_score(
    study: StudyRecords,
    task: str,
    rank: int,
    trained: float,
    trials: Sequence[TrialRecords],
    scores: Mapping[tuple[int, str, Split], Sequence[float]],
) -> RankScore:
    """One rank of the curve: trained at it, and truncated to it."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    of_unit = retention_tasks(study, task)
    falls = [
        base.score - mean(scores[rank, t.name, "test"])
        for t in of_unit
        if (base := study.evals.get((BASE, t.name, "test"))) is not None
    ]
    spots = [gain_and_forgetting(study, task, t.spec.trial_id, "test") for t in trials]
    forgotten = [found[1] for found in spots if found is not None]
    return RankScore(
        rank=rank,
        trained=trained,
        truncated=mean(scores[rank, task, "test"]),
        truncated_validation=mean(scores[rank, task, "validation"]),
        truncated_forgetting=mean(falls) if falls else None,
        trained_forgetting=mean(forgotten) if forgotten else None,
    )
