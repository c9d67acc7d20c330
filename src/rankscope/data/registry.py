"""The registry of named tasks: source, prompt and scorer of each.

``tasks.toml`` lists them. A ``TaskSpec`` of an extension or of another package is one, too; it may
bring its own row reader (``shapes``) and its own source (``read``).

Questions with everyday words for options (ARC, OpenBookQA, BoolQ, PIQA) are asked without their
options, and the most probable option is the model's answer: even the smallest models do better
than chance there. Exam questions, whose options only make sense side by side, list them by letter.
``scorer`` in the study file turns one form into the other.
"""

import gzip
import json
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from rankscope.data import hub
from rankscope.data.formats import Shape
from rankscope.data.hub import HubSource
from rankscope.data.rows import QUESTION_PROMPT
from rankscope.data.sources import SplitRows, numbered
from rankscope.evaluate.scorers import ScoreUnit, get_scorer
from rankscope.registry import by_name, objects

LETTERED_PROMPT = "Question: {question}\n{options}\nAnswer:"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    name: str
    description: str  # One sentence for people
    scorer: str  # Name of the scorer that computes the primary metric
    prompt: str
    """Template over a row's fields; ``{options}`` becomes the lettered choices, one per line."""
    version: int = 1
    hub: HubSource | None = None
    from_hub: Callable[[SplitRows], SplitRows] | None = None
    """Function that selects the task's rows from the hub data set's."""
    folder: str | None = None  # Folder inside ``data_dir``
    read: Callable[[], tuple[SplitRows, str]] | None = None
    """Function that returns the rows and a label of their source, in place of hub and folder."""
    shapes: tuple[Shape, ...] = ()
    """Shapes of the task's own, with their readers, tried before the built-in ones."""
    scorer_sets_prompt: bool = True  # Another scorer in the study file brings its own prompt
    chance: float | None = None
    """Score of guessing; ``load_task`` sets the exact value for the test rows."""
    license: str = ""
    overlaps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Maps another task to its subjects that are left out if a study trains on this task."""
    num_fewshot: int = 0  # Answered questions shown before each evaluated one
    fewshot_by_subject: bool = False  # The examples have the question's own subject
    primary_metric: str | None = None
    """The metric that is quoted, if it differs from the scorer's default."""
    stop: tuple[str, ...] = ()
    """Texts that end a written answer, in place of those of the prompt's template."""
    extract: str | None = None  # Regular expression of the part of a written answer to compare

    @property
    def lists_options(self) -> bool:
        """Whether the prompt shows the lettered options, so that letters can be scored."""
        return "{options}" in self.prompt

    @property
    def score_unit(self) -> ScoreUnit | None:
        """``accuracy`` (fraction of 1), ``log_probability`` (mean log p per token, nats), or None
        for a metric of another unit."""
        return get_scorer(self.scorer).unit


@cache
def _built_in_rows() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Rows by task and split, made by ``scripts/built_in_rows.py``."""
    packed = Path(__file__).with_name("built_in_rows.json.gz")
    rows: dict[str, Any] = json.loads(gzip.decompress(packed.read_bytes()))
    return rows


def _read_built_in(task: str, source: str) -> tuple[SplitRows, str]:
    """Return the rows of a task that the package brings, and the label of their source."""
    splits = _built_in_rows()[task].items()
    return {split: numbered(rows, f"{task}, {split}") for split, rows in splits}, source


def _named_task(name: str, entry: dict[str, Any]) -> TaskSpec:
    """Make the spec of an entry of ``tasks.toml``, where comments explain the keys."""
    spec = TaskSpec(name, entry.pop("description"), "option_text", QUESTION_PROMPT)
    if "built_in" in entry:
        spec = replace(spec, read=partial(_read_built_in, name, entry.pop("built_in")))
    elif "hub" in entry or entry.get("scorer") == "perplexity":
        spec = replace(spec, folder=name)
    if "hub" in entry:
        source: dict[str, Any] = {key: value or None for key, value in entry["hub"].items()}
        entry["hub"] = HubSource(**source)
    if "from_hub" in entry:
        entry["from_hub"] = getattr(hub, entry["from_hub"])
    if entry.get("scorer") == "option_letter":
        spec = replace(spec, prompt=LETTERED_PROMPT)
    return replace(spec, **entry)


@cache
def named_tasks() -> dict[str, TaskSpec]:
    """Return all named tasks: those of ``tasks.toml``, then the ``TaskSpec`` objects of extensions
    and other packages. Raises UserError: two have one name."""
    table = tomllib.loads(Path(__file__).with_name("tasks.toml").read_text("utf-8"))
    own = [_named_task(name, entry) for name, entry in table.items()]
    return by_name("task", [(spec.name, spec) for spec in (*own, *objects(TaskSpec))])


def overlapping_subjects(task: str, trained_on: Collection[str]) -> tuple[str, ...]:
    """Return the subjects of ``task`` to leave out, because a training task has their questions."""
    subjects: list[str] = []
    for name in sorted(trained_on):
        spec = named_tasks().get(name)
        if spec is not None and name != task:
            subjects += spec.overlaps.get(task, ())
    return tuple(dict.fromkeys(subjects))
