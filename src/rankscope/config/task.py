"""A task of the study file, or of a task file."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rankscope.config.patterns import compile_pattern
from rankscope.config.section import (
    NAME_PATTERN,
    NAME_RULE,
    ConfigSection,
    Described,
    HubId,
    LocalPath,
    Name,
    PathText,
    PlainText,
    RegisteredName,
    Unfit,
    matches,
    short_repr,
)
from rankscope.evaluate.scorers import (
    PYTHON_PATTERN,
    PYTHON_PREFIX,
    primary_metric_names,
    scorer_names,
)
from rankscope.sources import Source, source_of, sources

MAX_FEWSHOT = 5
TASK_FILE_SUFFIXES = (".yaml", ".yml")


def _check_pattern(text: str) -> str:
    try:
        groups = compile_pattern(text).groups
    except ValueError as error:
        raise Unfit(f"{short_repr(text)}, which {error}", "a regular expression") from error
    if groups > 1:
        found, rule = f"{short_repr(text)} with {groups} groups", "at most one: the part to compare"
        raise Unfit(found, rule)
    return text


def is_task_file(text: object) -> bool:
    """Whether the value of a task, or its path, is the path of a task file."""
    is_file = isinstance(text, str) and text.lower().endswith(TASK_FILE_SUFFIXES)
    return is_file and source_of(str(text)) is None


def _check_name(name: str) -> str:
    """Check a task's name, which may be ``PREFIX:REST`` of a source."""
    _, colon, rest = name.partition(":")
    if not colon:
        return matches(NAME_PATTERN, NAME_RULE)(name)
    source, known = source_of(name), [s.name for s in sources().values() if s.has_tasks]
    if source is None or not source.has_tasks:
        rule = "the name of a task, as there is no source of such tasks"
        if known:
            rule = f"one of {', '.join(known)} before the colon"
        raise Unfit(f"the name {short_repr(name)}", rule)
    source.check_name(rest)
    return name


_SOURCED = Field(json_schema_extra={"pattern": rf"{NAME_PATTERN}|^[a-z_]+:[\w.+-]{{1,150}}$"})
TaskName = Annotated[str, AfterValidator(_check_name), _SOURCED]
ScorerName = Annotated[str, RegisteredName(scorer_names, PYTHON_PATTERN)]
MetricName = Annotated[str, RegisteredName(primary_metric_names)]
Fewshot = Annotated[
    Annotated[int, Field(ge=0, le=MAX_FEWSHOT)] | Literal["own"],
    Described(f"a number from 0 to {MAX_FEWSHOT}, or 'own'"),
]
StopText = Annotated[str, Field(min_length=1)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
ShapeField = Literal[
    "question", "choices", "answer", "subject", "prompt", "completion", "messages", "text", "label"
]


class TaskConfig(ConfigSection):
    """A data set with its prompt and scorer: a named task, or the user's own data."""

    name: TaskName
    """A named task (``gsm8k``, ``arc_easy``, ...), or a new name for your own data. ``SOURCE:NAME``
    is a task of another program, which a study without arms can score."""
    source_file: PathText = None
    """File of the task ``SOURCE:NAME``, if the source does not know it by its name."""
    path: PathText = None
    """Folder with {train,validation,test}.jsonl, .csv, ... of this task; or a task file (YAML)."""
    train: PathText = None
    """File with training rows (own data): JSONL, JSON, CSV, TSV, Parquet or text."""
    validation: PathText = None
    """File with the rows that choose the arm; cut from ``train`` if absent."""
    test: PathText = None
    """File with the rows whose scores are quoted; cut from ``train`` if absent."""
    hub: HubId | None = None
    """Hub data set id (own data)."""
    revision: PlainText | None = None
    """Revision of the hub data set."""
    fields: dict[ShapeField, str | list[str]] | None = None
    """Names in the rows for the fields of their shape: ``{question: Frage, choices: [a, b, c]}``.
    The ``subject`` groups the items; ``{subject: COLUMN}`` alone keeps all other names."""
    prompt: str | None = None
    """Prompt template over a row's fields, such as ``"Question: {question}\\nAnswer:"``."""
    scorer: Annotated[ScorerName | None, LocalPath(PYTHON_PREFIX)] = None
    """How answers are scored; by default chosen from the shape of the rows.
    ``python:FILE:FUNCTION`` is a function of your own; it needs ``--trust-task-code``."""
    primary_metric: MetricName | None = None
    """Metric that is quoted for a multiple-choice task; all metrics are recorded."""
    num_fewshot: Fewshot = 0
    """Answered questions before each evaluated one; training rows have none. ``own`` is the number
    that a task ``SOURCE:NAME`` sets itself, and its default."""
    stop: list[StopText] = []
    """Texts that end a generated answer; by default the start of the next question."""
    extract: Pattern | None = None
    """Regular expression for the part of a generated answer to compare: its group, or the whole
    match."""
    on_bad_rows: Literal["refuse", "drop"] | None = None
    """Treatment of unusable rows: ``refuse`` lists them, ``drop`` leaves them out and counts them.
    By default your own rows are refused; a named task may drop up to 10 %."""
    max_train_rows: int | None = Field(None, ge=1)
    """Use only the first rows of the seeded order."""
    mixture: list[Name] = []
    """Training tasks only: tasks, named or described elsewhere in the study, to train on together
    and to be evaluated on."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any]:
        """``- arc_easy`` means ``- {name: arc_easy}``, and a task file is its path."""
        return {"path" if is_task_file(text) else "name": text}

    @model_validator(mode="before")
    @classmethod
    def own_examples(cls, value: Any) -> Any:
        """Let a task of a source show its own number of examples by default."""
        fields = value if isinstance(value, dict) else {"name": value}
        source = source_of(name) if isinstance(name := fields.get("name"), str) else None
        return value if source is None else {"num_fewshot": "own"} | fields

    @model_validator(mode="before")
    @classmethod
    def name_from_path(cls, value: Any) -> Any:
        """Name a task without a name after the folder in its path."""
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("path"), str):
            return {"name": value["path"].rstrip("/").rsplit("/", 1)[-1], **value}
        return value

    @property
    def source(self) -> Source | None:
        """The source of a task ``SOURCE:NAME``; None for others."""
        return source_of(self.name)

    @model_validator(mode="after")
    def check_one_source(self) -> Self:
        others = [key for key in ("train", "validation", "test", "hub") if getattr(self, key)]
        if self.path is not None and others:
            raise Unfit(f"'path' and {others[0]!r}", "one source of the rows", "give one")
        return self

    @model_validator(mode="after")
    def check_mixture(self) -> Self:
        if not self.mixture:
            return self
        # Values, not keys: a dumped study states every default.
        others = {name: f.default for name, f in type(self).model_fields.items() if name != "name"}
        del others["mixture"], others["max_train_rows"]
        if given := [name for name, default in others.items() if getattr(self, name) != default]:
            found = f"{given[0]!r} beside 'mixture'"
            raise Unfit(found, "the rows and prompts of its tasks", "remove it")
        if len(self.mixture) < 2 or len(set(self.mixture)) < len(self.mixture):
            raise Unfit(f"mixture {short_repr(self.mixture)}", "at least two tasks, each once")
        if self.name in self.mixture:
            found = f"task {self.name!r} in its own mixture"
            raise Unfit(found, "other tasks", "give it a name of its own")
        return self
