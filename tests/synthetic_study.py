"""Simulated studies with a known truth: records as a finished study leaves them.

Model of one answer: item i has a latent difficulty u_i ~ U(0, 1) which every model shares. A model
of true accuracy p answers item i right when v_i < p, where v_i is u_i with probability
``agreement`` and a fresh U(0, 1) draw otherwise. The marginal accuracy is p exactly, and two models
agree on items more than chance, as real ones do. A trial's p is its arm's truth plus a normal seed
effect. With ``metric="log_probability"`` an item's score is p + item effect + noise, in nats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from rankscope.config.schema import StudyConfig
from rankscope.records import (
    BASE,
    CurvePoint,
    EvalKey,
    EvalRecord,
    ItemScores,
    LossPoint,
    MatrixSpectrum,
    ModelRecord,
    Provenance,
    SpectraRecord,
    Split,
    Status,
    StudyRecords,
    TaskRecord,
    TrainRecord,
    TrialRecords,
    TrialSpec,
)

Curve = Callable[[int | None, float], float]
"""(rank or None for full fine-tuning, lr) -> a true value."""

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
HIDDEN = 64
LAYERS = 2


def saturating(rank: int | None, lr: float) -> float:
    """Accuracy that rises with log2(rank) to .9 at r = 16 and stays; full fine-tuning .9."""
    return 0.9 if rank is None else min(0.9, 0.5 + 0.1 * np.log2(rank))


def mild_forgetting(rank: int | None, lr: float) -> float:
    """Forgetting of .01 per doubling of the rank; full fine-tuning .05."""
    return 0.05 if rank is None else 0.01 * float(np.log2(rank))


def no_transfer(rank: int | None, lr: float) -> float:
    """Other tasks do not move."""
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of the simulated study; every field has a usable default."""

    ranks: tuple[int, ...] = (2, 8, 32)
    lrs: tuple[float, ...] = (1e-3,)
    full_lrs: tuple[float, ...] = (5e-4,)
    """Empty: no full fine-tuning arm."""
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = ("med",)
    """Training tasks."""
    cross: tuple[str, ...] = ("math",)
    retention: tuple[str, ...] = ("general",)
    num_items: int = 400
    """Items per task and split."""
    base_accuracy: float = 0.3
    """Of the base on the training tasks."""
    base_other: float = 0.8
    """Of the base on the other tasks."""
    chance: float | None = 0.25
    accuracy: Curve = saturating
    """True in-domain accuracy of an arm."""
    forgetting: Curve = mild_forgetting
    """True fall on every retention task."""
    transfer: Curve = no_transfer
    """True change on every other task that is not a retention task."""
    failed: Mapping[tuple[int | None, float, int], Status] = field(default_factory=dict)
    """(rank, lr, seed) -> how that trial failed, on every training task."""
    missing: frozenset[tuple[str, str]] = frozenset()
    """(trial label, task): evaluations that never happened."""
    leaks: int = 0
    """Report rows of each training task that are also in its training rows."""
    seed_spread: float = 0.01
    """Standard deviation of a trial's true accuracy around its arm's."""
    agreement: float = 0.8
    """Share of items on which models answer by the shared difficulty."""
    metric: Literal["accuracy", "log_probability"] = "accuracy"
    subjects: int = 5
    """Subjects that the items of every task are spread over; from ten on they are clusters."""
    curve_steps: tuple[int, ...] = ()
    """Steps of 40 at which every trial was scored while it trained; failed ones up to step 7."""
    curve_items: int = 20
    """Items of the selection split scored then."""
    objective: Mapping[str, float] = field(default_factory=dict)
    """Fields of the study file's ``objective`` section."""


def synthetic_study(truth: Truth | None = None, seed: int = 0) -> StudyRecords:
    """One study drawn from ``truth``; equal arguments give equal records."""
    truth = truth or Truth()
    rng = np.random.default_rng(seed)
    specs = _specs(truth)
    names = (*truth.tasks, *truth.cross, *truth.retention)
    evals: dict[EvalKey, EvalRecord] = {}
    items: dict[EvalKey, ItemScores] = {}
    splits: tuple[Split, ...] = ("selection", "report")
    for name in names:
        # A seed's effect belongs to the trial: both splits see the same true score.
        true_scores = [_true_score(rng, truth, spec, name) for spec in (None, *specs)]
        for split in splits:
            difficulty = rng.uniform(size=truth.num_items)
            for spec, true_score in zip((None, *specs), true_scores, strict=True):
                # The draws are made for failed trials too, so that a failure changes nothing else.
                scores = _scores(rng, truth, true_score, difficulty)
                key = (BASE if spec is None else spec.trial_id, name, split)
                found = _evaluation(rng, truth, key, scores)
                if spec is None or not _is_absent(truth, spec, name):
                    items[key], evals[key] = found
    trials = tuple(_trial(rng, truth, spec) for spec in specs)
    trials = tuple(replace(t, curve=_curve(truth, t.spec, items)) for t in trials)
    return StudyRecords(
        name="synthetic",
        config=_config(truth).model_dump(mode="json"),
        model=_MODEL,
        tasks=tuple(_task(truth, name) for name in names),
        trials=trials,
        evals=evals,
        items=items,
        provenance=_PROVENANCE,
        total_seconds=sum(t.train.seconds for t in trials if t.train is not None),
    )


def with_own_trials(study: StudyRecords, suffix: str) -> StudyRecords:
    """The same study, its trials no other study's: every id ends in ``suffix``."""

    def own(trial_id: str) -> str:
        return trial_id if trial_id == BASE else trial_id + suffix

    return replace(
        study,
        trials=tuple(
            replace(t, spec=t.spec.model_copy(update={"trial_id": own(t.spec.trial_id)}))
            for t in study.trials
        ),
        evals={(own(i), task, split): e for (i, task, split), e in study.evals.items()},
        items={(own(i), task, split): s for (i, task, split), s in study.items.items()},
    )


_MODEL = ModelRecord(
    label="synthetic base",
    sha256="0" * 64,
    architecture="LlamaForCausalLM",
    num_parameters=LAYERS * 4 * HIDDEN**2 + 332 * HIDDEN,
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    vocab_size=332,
    dtype="float32",
    device="cpu",
    prompt_format="plain",
)
_PROVENANCE = Provenance(
    created="2026-01-01T00:00:00+00:00",
    rankscope="0.1.0",
    python="3.11.0",
    platform="Linux",
    processor="simulated",
    num_threads=2,
    libraries={"torch": "2.13.0"},
)


def _config(truth: Truth) -> StudyConfig:
    arms: list[dict[str, object]] = []
    if truth.ranks:
        arms.append({"method": "lora", "rank": list(truth.ranks), "lr": list(truth.lrs)})
    if truth.full_lrs or not arms:
        arms.append({"method": "full", "lr": list(truth.full_lrs or (5e-4,))})
    return StudyConfig.model_validate(
        {
            "name": "synthetic",
            "model": "pocket",
            "tasks": list(truth.tasks),
            "arms": arms,
            "seeds": list(truth.seeds),
            "evaluate": {
                "cross_domain": list(truth.cross),
                "retention": list(truth.retention),
            },
            "objective": dict(truth.objective),
        }
    )


def _specs(truth: Truth) -> list[TrialSpec]:
    points: list[tuple[int | None, float]] = [(r, lr) for r in truth.ranks for lr in truth.lrs]
    points += [(None, lr) for lr in truth.full_lrs]
    return [
        TrialSpec(
            trial_id=f"{task}-{rank or 'full'}-{lr:g}-{seed}",
            task=task,
            method="full" if rank is None else "lora",
            rank=rank,
            alpha=None if rank is None else 2.0 * rank,
            lr=lr,
            targets=() if rank is None else ATTENTION,
            dropout=0.0,
            seed=seed,
        )
        for task in truth.tasks
        for rank, lr in points
        for seed in truth.seeds
    ]


def _status(truth: Truth, spec: TrialSpec) -> Status:
    return truth.failed.get((spec.rank, spec.lr, spec.seed), "done")


def _is_absent(truth: Truth, spec: TrialSpec, task: str) -> bool:
    return _status(truth, spec) != "done" or (spec.label, task) in truth.missing


def _true_score(rng: np.random.Generator, truth: Truth, spec: TrialSpec | None, task: str) -> float:
    base = truth.base_accuracy if task in truth.tasks else truth.base_other
    if spec is None:
        return base
    if task == spec.task:
        mean = truth.accuracy(spec.rank, spec.lr)
    elif task in truth.retention:
        mean = base - truth.forgetting(spec.rank, spec.lr)
    else:
        mean = base + truth.transfer(spec.rank, spec.lr)
    return mean + truth.seed_spread * float(rng.standard_normal())


def _scores(
    rng: np.random.Generator, truth: Truth, mean: float, difficulty: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    n = len(difficulty)
    if truth.metric == "log_probability":
        return mean - 2.0 + (difficulty - 0.5) + 0.2 * rng.standard_normal(n)
    own = rng.uniform(size=n)
    shared = rng.uniform(size=n) < truth.agreement
    return (np.where(shared, difficulty, own) < mean).astype(np.float64)


def _evaluation(
    rng: np.random.Generator, truth: Truth, key: EvalKey, scores: npt.NDArray[np.float64]
) -> tuple[ItemScores, EvalRecord]:
    trial_id, task, split = key
    n = len(scores)
    accuracy = truth.metric == "accuracy"
    gold = np.where(scores > 0.5, -0.4, -2.5) * rng.uniform(0.2, 1.0, n) if accuracy else scores
    item_scores = ItemScores(
        item_ids=_item_ids(task, split, n),
        scores=scores,
        gold_logprobs=gold,
        subjects=_subjects(n, truth.subjects),
    )
    metric = "acc" if accuracy else "log_probability"
    record = EvalRecord(
        trial_id=trial_id,
        task=task,
        split=split,
        metric=metric,
        score=float(scores.mean()),
        standard_error=float(scores.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        n=n,
        metrics={metric: float(scores.mean())},
        seconds=0.01 * n,
        num_tokens=20 * n,
    )
    return item_scores, record


@lru_cache(maxsize=64)
def _item_ids(task: str, split: Split, n: int) -> tuple[str, ...]:
    """Shared by all models, as the ledger's are."""
    return tuple(f"{task}-{split}-{i}" for i in range(n))


@lru_cache(maxsize=64)
def _subjects(n: int, subjects: int) -> tuple[str, ...]:
    return tuple(f"subject {i % subjects}" for i in range(n))


def _task(truth: Truth, name: str) -> TaskRecord:
    trained = name in truth.tasks
    roles = ("in_domain", "cross_domain") if trained else ("cross_domain",)
    return TaskRecord.model_validate(
        {
            "name": name,
            "roles": ("retention",) if name in truth.retention else roles,
            "trained_on": trained,
            "metric": "acc" if truth.metric == "accuracy" else "log_probability",
            "higher_is": truth.metric,
            "chance": truth.chance if truth.metric == "accuracy" else None,
            "rows": {
                "train": 200 if trained else 0,
                "selection": truth.num_items,
                "report": truth.num_items,
            },
            "dropped": 0,
            "leaks": {"exact": truth.leaks if trained else 0, "ngram13": 0},
            "source": "simulated",
            "sha256": "0" * 64,
        }
    )


def _trial(rng: np.random.Generator, truth: Truth, spec: TrialSpec) -> TrialRecords:
    status = _status(truth, spec)
    train, spectra = _train(rng, spec), _spectra(spec)
    if status != "done":
        return TrialRecords(spec, status, failure=f"simulated: {status} at step 7")
    return TrialRecords(spec, status, train=train, spectra=spectra)


def _curve(
    truth: Truth, spec: TrialSpec, items: Mapping[EvalKey, ItemScores]
) -> tuple[CurvePoint, ...]:
    """Straight from the base's scores, at step 0, to the arm's truth at the last of 40 steps."""
    points = []
    for step in truth.curve_steps:
        if step > 7 and _status(truth, spec) != "done":
            continue
        for task in (spec.task, *truth.retention):
            base = float(items[BASE, task, "selection"].scores[: truth.curve_items].mean())
            change = -truth.forgetting(spec.rank, spec.lr)
            if task == spec.task:
                change = truth.accuracy(spec.rank, spec.lr) - truth.base_accuracy
            points.append(
                CurvePoint(
                    trial_id=spec.trial_id,
                    task=task,
                    step=step,
                    metric="acc",
                    score=base + change * step / 40,
                    standard_error=0.1,
                    n=truth.curve_items,
                    seconds=0.1,
                    num_tokens=400,
                )
            )
    return tuple(points)


def _train(rng: np.random.Generator, spec: TrialSpec) -> TrainRecord:
    steps = 40
    falling = 0.2 + 1.2 * np.exp(-np.arange(steps) * spec.lr * 150)
    losses = falling * rng.uniform(0.9, 1.1, steps)
    parameters = _MODEL.num_parameters
    if spec.rank is not None:
        parameters = spec.rank * LAYERS * len(ATTENTION) * 2 * HIDDEN
    return TrainRecord(
        trial_id=spec.trial_id,
        pack_id=f"pack-{spec.task}" if spec.rank else f"full-{spec.trial_id}",
        pack_size=6 if spec.rank else 1,
        trainable_parameters=parameters,
        steps=steps,
        num_tokens=steps * 8 * 20,
        num_label_tokens=steps * 8,
        rows=200,
        rows_dropped=0,
        rows_truncated=0,
        seconds=10.0 + parameters / 2e4,
        peak_memory_bytes=300_000_000 + 16 * parameters,
        losses=tuple(
            LossPoint(
                step=i + 1,
                loss=float(loss),
                lr=spec.lr * (1 - i / steps),
                grad_norm=float(loss),
            )
            for i, loss in enumerate(losses)
        ),
        weights_sha256="0" * 64,
    )


def _spectra(spec: TrialSpec) -> SpectraRecord:
    rank = spec.rank or HIDDEN
    matrices = []
    for layer in range(LAYERS):
        for position, module in enumerate(ATTENTION):
            # Geometric spectrum: as many values as the rank allows, scaled by layer and module.
            sigma = (1 + layer + 0.2 * position) * 0.8 ** np.arange(min(rank, HIDDEN))
            share = sigma / sigma.sum()
            similarity = 1 / (1 + 0.05 * np.log2(rank + 1))
            matrices.append(
                MatrixSpectrum(
                    name=f"model.layers.{layer}.self_attn.{module}",
                    layer=layer,
                    module=module,
                    shape=(HIDDEN, HIDDEN),
                    frobenius=float(np.sqrt((sigma**2).sum())),
                    relative=float(np.sqrt((sigma**2).sum())) / 10,
                    singular_values=tuple(float(s) for s in sigma),
                    effective_rank=float(np.exp(-(share * np.log(share)).sum())),
                    stable_rank=float((sigma**2).sum() / sigma[0] ** 2),
                    top_k=HIDDEN // 4,
                    similarity_index=(similarity**3, similarity**3),
                    similarity_max=(similarity**2, similarity**2),
                    similarity_subspace=(similarity, similarity),
                    chance_subspace=(0.25, 0.25),
                    intruders=min(3, int(np.log2(rank))),
                    intruder_energy=0.1 * min(3, int(np.log2(rank))),
                )
            )
    return SpectraRecord(
        trial_id=spec.trial_id,
        intruder_k=10,
        intruder_epsilon=0.5,
        matrices=tuple(matrices),
        seconds=0.1,
    )
