"""Versioned, typed results: the only thing that passes from one stage to the next.

A stage writes records, the ledger stores them, and ``advise`` and ``report`` read nothing else.
Scores are shares of 1 (higher is better) unless a field says otherwise; times are seconds, sizes
bytes, losses nats per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
BASE = "base"
"""Stands in place of a trial id for the untuned base model."""

Split = Literal["selection", "report"]
Role = Literal["in_domain", "cross_domain", "retention"]
Status = Literal["planned", "trained", "done", "diverged", "oom", "failed"]
FAILED: frozenset[Status] = frozenset({"diverged", "oom", "failed"})


class Record(BaseModel):
    """Base of every stored result: frozen, no unknown fields, with its version."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION


class TrialSpec(Record):
    """One method, one point of the grid, one seed, one training task."""

    trial_id: str
    """Content id: canonical settings + base weights + data + code version."""
    task: str
    """Training task."""
    method: Literal["lora", "rslora", "full"]
    rank: int | None
    """None for full fine-tuning."""
    alpha: float | None
    lr: float
    targets: tuple[str, ...]
    dropout: float
    seed: int

    @property
    def scaling(self) -> float:
        """s in W = W0 + s B A."""
        if self.rank is None or self.alpha is None:
            return 1.0
        return self.alpha / (self.rank**0.5 if self.method == "rslora" else self.rank)

    @property
    def arm(self) -> tuple[str, str, int | None, float | None, float, tuple[str, ...], float]:
        """Everything but the seed: trials of one arm point are replicates."""
        return (
            self.task,
            self.method,
            self.rank,
            self.alpha,
            self.lr,
            self.targets,
            self.dropout,
        )

    @property
    def arm_label(self) -> str:
        """Short name for tables, such as ``r=32 lr=0.0002``; the task is not part of it.

        Two arms of one task never share a label: what differs from the default is spelled out.
        """
        if self.rank is None:
            return f"full lr={self.lr:.12g}"
        method = "" if self.method == "lora" else f"{self.method} "
        alpha = "" if self.alpha == 2 * self.rank else f" alpha={self.alpha:g}"
        dropout = f" dropout={self.dropout:g}" if self.dropout else ""
        targets = ""
        if set(self.targets) != {"q_proj", "k_proj", "v_proj", "o_proj"}:
            targets = " on " + ",".join(t.removesuffix("_proj") for t in sorted(self.targets))
        return f"{method}r={self.rank}{alpha} lr={self.lr:.12g}{dropout}{targets}"

    @property
    def label(self) -> str:
        """Name of the trial for logs, such as ``arc_easy r=32 lr=0.0002 seed=0``."""
        return f"{self.task} {self.arm_label} seed={self.seed}"


class LossPoint(Record):
    """One optimizer step of one trial."""

    step: int
    loss: float
    """Mean over the step's labelled tokens, nats."""
    lr: float
    grad_norm: float
    """Before clipping."""


class TrainRecord(Record):
    """What training one trial gave."""

    trial_id: str
    pack_id: str
    """Trials trained together share it."""
    pack_size: int
    trainable_parameters: int
    steps: int
    num_tokens: int
    """Valid input tokens seen, padding not counted."""
    num_label_tokens: int
    rows: int
    """Training rows used."""
    rows_dropped: int
    """Rows left out: no completion, or prompt longer than max_length."""
    rows_truncated: int
    """Rows whose completion was cut at max_length."""
    seconds: float
    """This trial's share of its pack's wall time, by tokens."""
    peak_memory_bytes: int
    """Peak of the process while the pack trained."""
    losses: tuple[LossPoint, ...]
    weights_sha256: str
    """Of the stored adapter or full model weights."""


class EvalRecord(Record):
    """One model (the base or a trial) scored on one split of one task."""

    trial_id: str
    """``base`` for the untuned model."""
    task: str
    split: Split
    metric: str
    """Headline metric: one of the keys of ``metrics``."""
    score: float
    """Value of the headline metric: mean over items."""
    standard_error: float | None
    """Of the score, over items; None where n < 2."""
    n: int
    metrics: dict[str, float]
    """Every metric recorded, such as ``acc``, ``acc_norm``, ``letter``, ``exact_match``."""
    seconds: float
    num_tokens: int


class MatrixSpectrum(Record):
    """What one weight matrix became: science.md section 1."""

    name: str
    """Module path in the base, such as ``model.layers.3.self_attn.q_proj``."""
    layer: int | None
    module: str
    """Last part of the name, such as ``q_proj``."""
    shape: tuple[int, int]
    """(out, in)."""
    frobenius: float
    """|dW|_F."""
    relative: float
    """|dW|_F / |W0|_F."""
    singular_values: tuple[float, ...]
    """Leading singular values of dW, largest first, at most 128."""
    effective_rank: float
    """exp of the entropy of sigma / sum(sigma)."""
    stable_rank: float
    """|dW|_F^2 / sigma_1^2."""
    top_k: int
    """Vectors compared by the similarities below."""
    similarity_index: tuple[float, float]
    """Index-matched mean |C_ii| of left and right vectors."""
    similarity_max: tuple[float, float]
    """Mean over tuned vectors of max |C_ij|, left and right."""
    similarity_subspace: tuple[float, float]
    """|C|_F^2 / k, left and right."""
    chance_subspace: tuple[float, float]
    """Expected subspace similarity of unrelated vectors, k/d, left and right."""
    intruders: int
    """Leading left vectors of W whose largest |cosine| to a base vector is below epsilon."""
    intruder_energy: float
    """Their share of the squared singular values of the leading vectors examined."""


class SpectraRecord(Record):
    """Spectra of one trial."""

    trial_id: str
    intruder_k: int
    intruder_epsilon: float
    matrices: tuple[MatrixSpectrum, ...]
    seconds: float

    @property
    def frobenius(self) -> float:
        """|dW|_F over all analyzed matrices together."""
        return float(np.sqrt(sum(m.frobenius**2 for m in self.matrices)))

    @property
    def intruders(self) -> int:
        """Summed over matrices."""
        return sum(m.intruders for m in self.matrices)


class TaskRecord(Record):
    """One task as it was read and split."""

    name: str
    roles: tuple[Role, ...]
    trained_on: bool
    metric: str
    """Headline metric."""
    higher_is: Literal["accuracy", "log_probability"]
    """``accuracy``: share of 1; ``log_probability``: mean log p per token, nats."""
    chance: float | None
    """Score of guessing, where it is known."""
    rows: dict[str, int]
    """Rows per split: train, selection, report."""
    dropped: int
    """Rows left out on reading, counted."""
    leaks: dict[str, int]
    """Report rows also found in train, by kind: exact, ngram13."""
    source: str
    """Where the rows came from, for people."""
    sha256: str
    """Of the rows used."""


class ModelRecord(Record):
    """The base model."""

    label: str
    sha256: str
    """Of its weights and configuration."""
    architecture: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    device: str
    prompt_format: Literal["chat", "plain"]


class Provenance(Record):
    """What ran where."""

    created: str
    """ISO 8601, UTC."""
    rankscope: str
    python: str
    platform: str
    processor: str
    num_threads: int
    libraries: dict[str, str]


ITEM_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("subject", pa.string()),
        ("score", pa.float64()),
        ("gold", pa.string()),
        ("prediction", pa.string()),
        ("gold_logprob", pa.float64()),
        ("option_logprobs", pa.list_(pa.float64())),
        ("option_tokens", pa.list_(pa.int32())),
        ("letter_logprobs", pa.list_(pa.float64())),
        ("generated", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One item scored by one model; the row of the per-item Parquet table."""

    item_id: str
    subject: str | None
    score: float
    """Headline metric of this item: 1 right, 0 wrong (or log p per token)."""
    gold: str
    prediction: str
    gold_logprob: float | None = None
    """Summed over the gold answer's tokens, nats."""
    option_logprobs: tuple[float, ...] | None = None
    """Summed log p of each option's text."""
    option_tokens: tuple[int, ...] | None = None
    letter_logprobs: tuple[float, ...] | None = None
    generated: str | None = None


def write_items(path: Path, items: list[ItemResult]) -> None:
    """Write per-item results as one Parquet file; floats are stored as they are."""
    columns = {name: [getattr(item, name) for item in items] for name in ITEM_SCHEMA.names}
    pq.write_table(pa.table(columns, schema=ITEM_SCHEMA), path)


def read_items(path: Path) -> list[ItemResult]:
    """Read what ``write_items`` wrote."""
    rows: list[dict[str, Any]] = pq.read_table(path, schema=ITEM_SCHEMA).to_pylist()
    for row in rows:
        for name in ("option_logprobs", "option_tokens", "letter_logprobs"):
            if row[name] is not None:
                row[name] = tuple(row[name])
    return [ItemResult(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Per-item headline scores of one model on one split: the material of every statistic."""

    item_ids: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    """Shape (items,)."""
    gold_logprobs: npt.NDArray[np.float64]
    """Shape (items,); NaN where unknown."""
    subjects: tuple[str | None, ...]


EvalKey = tuple[str, str, Split]
"""(trial id or ``base``, task, split)."""


@dataclass(frozen=True, slots=True)
class TrialRecords:
    """Everything known of one trial."""

    spec: TrialSpec
    status: Status
    failure: str | None = None
    """Why it did not finish, one sentence."""
    train: TrainRecord | None = None
    spectra: SpectraRecord | None = None


@dataclass(frozen=True, slots=True)
class StudyRecords:
    """Everything known of one study: the input of ``advise`` and ``report``."""

    name: str
    config: Mapping[str, object]
    """The study file as resolved, JSON-compatible."""
    model: ModelRecord
    tasks: tuple[TaskRecord, ...]
    trials: tuple[TrialRecords, ...]
    evals: Mapping[EvalKey, EvalRecord]
    items: Mapping[EvalKey, ItemScores]
    provenance: Provenance
    total_seconds: float
    """Wall time spent on the study so far."""
    notes: tuple[str, ...] = field(default=())
    """What a reader of the results must know, such as rows dropped."""

    def task(self, name: str) -> TaskRecord:
        """The task called ``name``; KeyError where there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)


class Estimate(Record):
    """A difference or a mean with its uncertainty."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None where it cannot be known."""
    high: float | None
    p: float | None = None
    """Two-sided p value where a test was made."""
    n: int
    """Items."""
    seeds: int


class ArmSummary(Record):
    """One arm point over its seeds, as the advice sees it (report split unless said)."""

    label: str
    task: str
    method: str
    rank: int | None
    alpha: float | None
    lr: float
    seeds: int
    failed: int
    """Trials that did not finish."""
    selection_score: float | None
    """In-domain, selection split: what choosing looks at."""
    selection_forgetting: float | None
    """Mean fall over retention tasks against the base, selection split; positive = forgot."""
    score: Estimate | None
    """In-domain."""
    gain: Estimate | None
    """In-domain minus base."""
    forgetting: Estimate | None
    """Base minus tuned, mean over retention tasks; positive = forgot."""
    transfer: dict[str, Estimate]
    """Other tasks: tuned minus base."""
    retention: dict[str, Estimate]
    """Retention tasks one by one: tuned minus base."""
    trainable_parameters: int
    seconds: float | None
    """Mean training time of one trial."""
    on_pareto_front: bool = False


class Reason(Record):
    """One sentence of the advice with the numbers behind it."""

    kind: Literal["gain", "full", "forgetting", "transfer", "cost", "choice", "sign", "limit"]
    text: str
    values: dict[str, float] = {}


Decision = Literal["use", "do_not_fine_tune", "use_full", "not_decided"]


class TaskAdvice(Record):
    """The recommendation for one training task."""

    task: str
    decision: Decision
    confidence: Literal["firm", "tentative", "none"]
    headline: str
    """The answer in one sentence."""
    chosen: ArmSummary | None
    reasons: tuple[Reason, ...]
    arms: tuple[ArmSummary, ...]
    subject_label: str | None = None
    """Of the arm that headline and reasons speak of; None where they speak of none."""
    best_full_label: str | None = None
    """Of full fine-tuning at the rate of the highest utility on the selection split."""
    best_lora_label: str | None = None
    """Of the LoRA arm of the highest utility on the selection split."""


class Recommendation(Record):
    """``recommendation.json``: one answer per training task."""

    study: str
    advice: tuple[TaskAdvice, ...]
    method: str
    """How the choice was made, one paragraph."""
