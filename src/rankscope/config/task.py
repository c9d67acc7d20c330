"""A task as the study file, or a file of its own, describes it."""

import difflib
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from rankscope.config.section import (
    ConfigSection,
    HubId,
    Name,
    PathText,
    PlainText,
    short_repr,
)
from rankscope.evaluate.scorers import primary_metric_names, scorer_names

ShapeField = Literal[
    "question", "choices", "answer", "subject", "prompt", "completion", "messages", "text"
]
MAX_FEWSHOT = 5

TASK_FILES = (".yaml", ".yml")
"""Endings of a path that names a task file."""


LM_EVAL_PREFIX = "lm_eval:"
"""Before the name of a task of lm-evaluation-harness, or the path of its YAML file."""


def checked_pattern(text: str) -> str:
    """Refuse what is no regular expression, or has more than one group."""
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"{short_repr(text)} is no regular expression: {error}") from error
    if groups > 1:
        raise ValueError(
            f"{short_repr(text)} has {groups} groups: expected at most one, what to compare"
        )
    return text


def checked_stop(text: str) -> str:
    """Refuse an empty stop string, at which every answer would end before it began."""
    if not text:
        raise ValueError("is empty text, at which every answer would end: remove it")
    return text


def is_task_file(text: object) -> bool:
    """Whether a task, or the path of one, is the path of a task file."""
    is_file = isinstance(text, str) and text.lower().endswith(TASK_FILES)
    return is_file and not str(text).startswith(LM_EVAL_PREFIX)


def name_of_path(path: str) -> str:
    """What a folder's task is called where it has no name: the folder's own."""
    return path.rstrip("/").rsplit("/", 1)[-1]


class RegisteredName:
    """Marks a field that takes one of the names of a registry; the JSON schema lists them."""

    def __init__(self, names: Callable[[], Collection[str]]) -> None:
        self.names = names

    def check(self, name: str) -> str:
        names = self.names()
        if name in names:
            return name
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.55)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"found {short_repr(name)}; {hint}expected one of {', '.join(names)}")

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": list(self.names()), "type": "string"}


ScorerName = Annotated[str, RegisteredName(scorer_names)]
MetricName = Annotated[str, RegisteredName(primary_metric_names)]


class TaskConfig(ConfigSection):
    """A data set with its prompt and scorer: a named task, or the user's own files."""

    name: Name
    """A named task (``gsm8k``, ``arc_easy``, ...) or a new name for one's own data."""
    path: PathText = None
    """Folder with {train,validation,test}.jsonl or .parquet of this task; or a task file (YAML)."""
    train: PathText = None
    """JSONL or Parquet file with training rows (own data)."""
    validation: PathText = None
    """File with the rows that choose; cut from ``train`` where absent."""
    test: PathText = None
    """File with the rows that are reported; cut from ``train`` where absent."""
    hub: HubId | None = None
    """Hub data set id (own data)."""
    revision: PlainText | None = None
    """Revision of the hub data set."""
    fields: dict[ShapeField, str | list[str]] | None = None
    """What the rows call the fields of their shape: ``{question: Frage, choices: [a, b, c]}``."""
    prompt: str | None = None
    """Prompt template over a row's fields, such as ``"Question: {question}\\nAnswer:"``."""
    scorer: ScorerName | None = None
    """How answers are scored; by default what the rows allow."""
    primary_metric: MetricName | None = None
    """Metric of a multiple-choice task that is reported; all are recorded."""
    num_fewshot: int = Field(0, ge=0, le=MAX_FEWSHOT)
    """Answered questions shown before each one that is scored; training rows carry none."""
    stop: list[Annotated[str, AfterValidator(checked_stop)]] = []
    """Texts at which a generated answer ends; by default where the next question would begin."""
    extract: Annotated[str, AfterValidator(checked_pattern)] | None = None
    """Regular expression of the part of a generated answer that is compared: its group, or all."""
    max_train_rows: int | None = Field(None, ge=1)
    """Use only the first rows of the seeded order."""
    mixture: list[Name] = []
    """Of a training task alone: the rows of these tasks together, which the study describes
    elsewhere or which are named ones; scored on the items of all of them."""

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any]:
        """``- arc_easy`` stands for ``- {name: arc_easy}``."""
        return {"name": text}

    @model_validator(mode="before")
    @classmethod
    def is_no_harness_task(cls, value: Any) -> Any:
        """The harness's tasks have no rows to train on, choose by or compare with training rows."""
        places = [value.get("name"), value.get("path")] if isinstance(value, dict) else [value]
        for text in places:
            if isinstance(text, str) and text.startswith(LM_EVAL_PREFIX):
                raise ValueError(
                    f"{short_repr(text)} is a task of lm-evaluation-harness, which a study cannot "
                    f"use: score its trained adapters with 'rankscope eval --tasks {text}'"
                )
        return value

    @model_validator(mode="before")
    @classmethod
    def name_from_path(cls, value: Any) -> Any:
        """A task with a path alone is called as the folder is."""
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("path"), str):
            return {"name": name_of_path(value["path"]), **value}
        return value

    @model_validator(mode="after")
    def one_source(self) -> Self:
        """Rows come from one place."""
        beside = [key for key in ("train", "validation", "test", "hub") if getattr(self, key)]
        if self.path is not None and beside:
            raise ValueError(f"'path' and {beside[0]!r} both say where the rows are: give one")
        return self

    @model_validator(mode="after")
    def joins_others(self) -> Self:
        """A joined task is made of other tasks and of nothing else."""
        if not self.mixture:
            return self
        allowed = {"name", "mixture", "max_train_rows"}
        given = sorted(self.model_fields_set - allowed)
        if given:
            raise ValueError(
                f"'mixture' takes rows and prompts from its tasks: remove {given[0]!r}"
            )
        if len(set(self.mixture)) < 2 or len(set(self.mixture)) < len(self.mixture):
            raise ValueError(
                f"'mixture' {short_repr(self.mixture)}: expected at least two tasks, each once"
            )
        if self.name in self.mixture:
            raise ValueError(f"task {self.name!r} joins itself: give it a name of its own")
        return self
