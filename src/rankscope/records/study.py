"""What a study was made of, and everything known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rankscope.config.study import StudyConfig
from rankscope.records.heads import HeadsRecord
from rankscope.records.record import Record, Role, Status
from rankscope.records.scores import CurvePoint, EvalKey, EvalRecord, ItemScores
from rankscope.records.spectra import SpectraRecord
from rankscope.records.trials import TrainRecord, TrialSpec


class TaskRecord(Record):
    """One task as it was read and split."""

    name: str
    roles: tuple[Role, ...]
    trained_on: bool
    parts: tuple[str, ...] = ()
    """Of a joined task: names of the tasks whose rows it is trained on."""
    metric: str
    """Headline metric."""
    score_unit: Literal["accuracy", "log_probability"]
    """``accuracy``: share of 1; ``log_probability``: mean log p per token, nats."""
    chance: float | None
    """Score of guessing, where it is known."""
    rows: dict[str, int]
    """Rows per split: train, validation, report."""
    dropped: int
    """Rows left out on reading, counted."""
    contamination: dict[str, int]
    """Test rows also found in train, by kind: exact, ngram13."""
    num_fewshot: int = 0
    """Answered questions shown before each one."""
    fewshot_source: str = ""
    """Which rows those are, for people."""
    prompt_format: Literal["chat", "plain", ""] = ""
    """Whether prompts stand in the chat template; empty in records of earlier versions."""
    source: str
    """Where the rows came from, for people."""
    sha256: str
    """Of the rows used."""
    test_sha256: str = ""
    """Of the test items and how they are asked and scored, whatever is trained on; empty in
    records of earlier versions."""


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
    quantize: Literal["none", "4bit"] = "none"
    """How the weights are held; adapters and scores belong to the base so held."""
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


@dataclass(frozen=True, slots=True)
class TrialRecords:
    """Everything known of one trial."""

    spec: TrialSpec
    status: Status
    failure: str | None = None
    """Why it did not finish, one sentence."""
    train: TrainRecord | None = None
    spectra: SpectraRecord | None = None
    heads: HeadsRecord | None = None
    curve: tuple[CurvePoint, ...] = ()
    """Scores while it trained, by step; empty where the study asked for none."""


@dataclass(frozen=True, slots=True)
class StudyRecords:
    """Everything known of one study: the input of ``advise`` and ``report``."""

    name: str
    config: StudyConfig
    """The study file with every ``auto`` resolved."""
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


def trained_parts(study: StudyRecords, task: str) -> frozenset[str]:
    """Names of the tasks that are no other tasks to a model trained on ``task``.

    Itself, the parts it joins, and every joined task that has one of these as a part: what such a
    model scores there is neither forgetting nor transfer.
    """
    seen = {task, *(part for t in study.tasks if t.name == task for part in t.parts)}
    return frozenset(seen | {t.name for t in study.tasks if seen & set(t.parts)})
