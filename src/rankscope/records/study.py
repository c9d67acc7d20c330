"""Records of a study's parts, and everything known about the study."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from rankscope.config.study import StudyConfig
from rankscope.records.items import ItemResult
from rankscope.records.record import FAILED, AnalysisRecord, Record, Role, Status
from rankscope.records.scores import CurvePoint, EvalKey, EvalRecord, ItemScores
from rankscope.records.trials import TrainRecord, TrialSpec

Analyzed = TypeVar("Analyzed", bound=AnalysisRecord)

CONTAMINATION_LIMIT = 0.01
"""Share of test rows that training may have seen. It moves an accuracy by at most 1 point, half the
margin within which two arms count as equal."""


class TaskRecord(Record):
    """One task as it was read and split."""

    name: str
    roles: tuple[Role, ...]
    trained_on: bool
    parts: tuple[str, ...] = ()  # Tasks whose rows a mixture is trained on
    metric: str  # Primary metric
    score_unit: Literal["accuracy", "log_probability"] | None
    """``accuracy`` is a share of 1, ``log_probability`` mean nats per token; None is another
    unit."""
    chance: float | None  # Score of guessing; None if unknown, and for scores in nats
    rows: dict[str, int]  # Rows per split: train, validation, test
    row_shape: str = ""  # Such as ``alpaca``
    dropped: int  # Rows dropped while reading
    contamination: dict[str, int]  # Test rows in the training rows by kind: exact, ngram13
    num_fewshot: int = 0  # Answered questions shown before each one
    fewshot_source: str = ""  # Where those rows come from, in words
    prompt_format: Literal["chat", "plain", ""] = ""  # Whether prompts use the chat template
    system: str = ""  # First turn of every training row; empty if rows have none or different ones
    source: str  # Where the rows come from, in words
    from_hub: bool = False
    sha256: str  # Hash of the rows used
    validation_sha256: str = ""  # Hash of the validation items, their prompts and scoring alone
    test_sha256: str = ""  # Hash of the test items, alike
    contaminated_sha256: str = ""  # Hash of the ids of test items that training rows hold

    @property
    def is_contaminated(self) -> bool:
        """Whether so many test rows are in the training rows that a score cannot be trusted."""
        return sum(self.contamination.values()) > CONTAMINATION_LIMIT * self.rows.get("test", 0)


AS_STORED = "as stored"
"""Dtype of a base that no run loaded: its stored weights were read."""


class ModelRecord(Record):
    label: str
    sha256: str  # Hash of its weights and configuration
    architecture: str
    num_parameters: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    quantize: Literal["none", "4bit"] = "none"  # Adapters and scores belong to this form of it
    device: str
    prompt_format: Literal["chat", "plain"]


class Provenance(Record):
    created: str  # ISO 8601, UTC
    rankscope: str
    python: str
    platform: str
    processor: str
    num_threads: int
    libraries: dict[str, str]

    @property
    def versions(self) -> dict[str, str]:
        return {"rankscope": self.rankscope, **self.libraries}


@dataclass(frozen=True, slots=True)
class TrialRecords:
    spec: TrialSpec
    status: Status
    failure: str | None = None  # Why it did not finish, in a few words
    train: TrainRecord | None = None
    analyses: tuple[AnalysisRecord, ...] = ()  # At most one of each analysis
    curve: tuple[CurvePoint, ...] = ()  # By step; empty if the study asks for none

    def analysis(self, kind: type[Analyzed]) -> Analyzed | None:
        """Return the trial's record of one analysis; None if it was not analyzed."""
        return next((record for record in self.analyses if isinstance(record, kind)), None)


class RoundRecord(Record):
    """A search's decision on what to train next on one task, and its reason."""

    number: int  # Number of the round; the first design is 0
    task: str  # '' for the first design
    trial_ids: tuple[str, ...]
    labels: tuple[str, ...]  # Labels of the trials
    seconds: float  # Wall time of the study until then
    leader: str  # Arm of the highest expected net gain until then
    regret: float | None  # Expected regret of the answer until then; None before any score
    after: float | None  # Expected regret once the round is trained


def finished_trials(trials: Iterable[TrialRecords]) -> list[TrialRecords]:
    return [trial for trial in trials if trial.status == "done"]


@dataclass(frozen=True, slots=True)
class StudyRecords:
    """Everything known about one study: the input of ``advise`` and ``report``."""

    name: str
    config: StudyConfig  # The study file with every ``auto`` resolved
    model: ModelRecord
    tasks: tuple[TaskRecord, ...]
    trials: tuple[TrialRecords, ...]
    evals: Mapping[EvalKey, EvalRecord]
    items: Mapping[EvalKey, ItemScores]
    provenance: Provenance
    total_seconds: float  # Wall time spent on the study so far
    notes: tuple[str, ...] = field(default=())  # Facts for a reader, such as dropped rows
    rounds: tuple[RoundRecord, ...] = ()  # Rounds of a search, in order
    results: Mapping[EvalKey, Sequence[ItemResult]] = field(default_factory=dict)
    """The whole item tables behind ``items``, with prompts and answers; read on demand."""

    def task(self, name: str) -> TaskRecord:
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)

    def tokens_read(self, model: str, task: str) -> float | None:
        """Return the mean tokens that a model reads for an item; None if unknown.

        Validation items come first, because a search scores test items of some models only.
        """
        found = (self.evals.get((model, task, "validation")), self.evals.get((model, task, "test")))
        return next((r.num_read / r.n for r in found if r is not None and r.num_read), None)


def failures(study: StudyRecords) -> list[str]:
    """Write one sentence per trial that failed."""
    return [f"{t.spec.arm_label}: {t.failure}" for t in study.trials if t.status in FAILED]


def trained_parts(tasks: Sequence[TaskRecord], task: str) -> frozenset[str]:
    """Return the tasks whose items a model trained on ``task`` has seen in training.

    They are the task itself, the parts of its mixture, and every mixture that shares a part with
    it. Scores on them are neither forgetting nor transfer.
    """
    seen = {task, *(part for t in tasks if t.name == task for part in t.parts)}
    return frozenset(seen | {t.name for t in tasks if seen & set(t.parts)})
