"""Files of other trainers, a Python file for each with a table beside it.

The table ``name.toml`` has the file's keys and their meaning in a study. The class ``Name`` +
``File`` in ``name.py`` reads its rows. Values mean what they mean to the trainer, and an absent key
has its default.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from rankscope.config.arm import MODULE_PATTERN, TARGET_GROUPS
from rankscope.errors import UserError
from rankscope.extensions.trainers.documents import TrainerDocument, read_document
from rankscope.registry import parts

__all__ = ["PLACES", "TrainerFile", "read_trainer_file"]

_TABLES = tomllib.loads(Path(__file__).with_name("places.toml").read_text("utf-8"))
PLACES: dict[str, str] = _TABLES["places"]
"""Maps a setting of a run to its place in a study file."""
SCHEDULES = ("linear", "cosine", "constant")
OBJECTS = {
    f"SFTTrainer.{name}"
    for name in "model args train_dataset eval_dataset peft_config tokenizer processing_class "
    "data_collator callbacks".split()
}
"""Arguments that other calls make."""


class TrainerFile:
    """A file of one trainer: its settings by their names in ``PLACES``, and its faults."""

    name: ClassVar[str]  # As its users write it
    marks: ClassVar[str]  # Regular expression; the beginning of some key of its files fits it
    data_keys: ClassVar[list[str]] = []  # Keys about rows, which ``data_sets`` reads
    unread: ClassVar[list[str]] = []  # Keys of a data set that choose rows as a study cannot
    keys: ClassVar[dict[str, str]] = {}  # Key -> setting
    defaults: ClassVar[dict[str, Any]] = {}  # Setting -> what the trainer takes without a key
    lost: ClassVar[dict[str, str]] = {}  # Key, a regular expression -> why a study has none
    calls: ClassVar[dict[str, list[str]]] = {}
    """Maps calls in Python that have such keys to the names of their positional arguments."""
    all_targets: ClassVar[str] = "all-linear"  # Its word for all linear layers, if any

    def __init_subclass__(cls) -> None:
        """Take the tables of name.toml; those of a base class are part of them."""
        file = Path(__file__).with_name(f"{cls.__module__.rpartition('.')[2]}.toml")
        for name, value in tomllib.loads(file.read_text("utf-8")).items():
            is_table = isinstance(value, dict)
            setattr(cls, name, {**getattr(cls, name), **value} if is_table else value)

    def __init__(self, document: TrainerDocument) -> None:
        self.document = document
        self.values = {k: v for k, v in document.values.items() if v not in (None, "", [], {})}
        self.facts: dict[str, Any] = dict(self.defaults)
        self.sources: dict[str, str] = {}  # Setting -> its key
        self.went: list[tuple[str, Any, str]] = []  # Key, value, place in the study file
        self.left: list[tuple[str, Any, str]] = []  # Key, value, why it has none
        self.unknown = list(document.unread)
        self.faults: list[str] = []
        for key, value in self.values.items():
            self._read(key, value)
        for key, value in document.values.items():
            if value is None and self.setting(key) == "max_length":
                self.faults.append(f"{key}: found None, expected a number of tokens")
        for key, expression in document.computed.items():
            if key in OBJECTS:
                continue
            if self.setting(key) or key.endswith("**"):
                self.faults.append(f"{key}: found {expression}, expected a value: code is not run")
            elif not self._why(key):
                self.unknown.append(f"{key} = {expression}")

    def setting(self, key: str) -> str | None:
        """Return the setting, or ``rows``, that a key is about."""
        plain = key.rpartition(".")[2]
        about_rows = "rows" if {key, plain} & {*self.data_keys} else None
        return self.keys.get(key) or self.keys.get(plain) or about_rows

    def _why(self, key: str) -> str | None:
        plain, reasons = key.rpartition(".")[2], {**self.lost, **_TABLES["not_in_a_study"]}
        return next((why for p, why in reasons.items() if re.fullmatch(p, plain)), None)

    def _read(self, key: str, value: Any) -> None:
        fact = self.setting(key)
        if key.rpartition(".")[2] == "trust_remote_code":
            if value is not False:
                rule = "false: no code of a model is run"
                self.faults.append(f"{key}: found {value}, expected {rule}")
        elif fact == "rows":
            self.went.append((key, value, "tasks"))
        elif fact is not None:
            try:
                self._take(fact, key, self.checked(fact, value))
            except (TypeError, ValueError) as error:
                self.faults.append(f"{key}: found {value!r}, expected {error}")
        elif (why := self._why(key)) is None:
            self.unknown.append(f"{key}: {value}")
        elif value and value not in ("none", "no", "None"):
            self.left.append((key, value, why))

    def _take(self, fact: str, key: str, value: Any) -> None:
        if fact in ("max_steps", "max_rows") and value <= 0:
            return  # transformers' -1
        if fact == "warmup" and fact in self.sources:  # its two keys: the positive one counts
            if value <= 0:
                return
            if self.facts[fact] <= 0:
                del self.sources[fact]
        if fact == "schedule" and value.removesuffix("_with_warmup") not in SCHEDULES:
            rule = f"a study has {', '.join(SCHEDULES)}, and takes linear"
            self.facts[fact] = "linear"
            self.left.append((key, value, rule))
        elif fact in self.sources and self.facts[fact] != value:
            other = f"{self.sources[fact]}, {self.facts[fact]}"
            self.faults.append(f"{key}: found {value}, expected the value of {other}")
        else:
            self.facts[fact] = value.removesuffix("_with_warmup") if fact == "schedule" else value
            self.sources[fact] = key
            self.went.append((key, self.values[key], PLACES[fact]))

    def checked(self, fact: str, value: Any) -> Any:
        """Convert a value for a study file. Raises ValueError: the message is the expected kind."""
        if fact == "targets":
            return self._targets(value)
        kinds = _TABLES["kinds"].items()
        kind = next((kind for kind, facts in kinds if fact in facts), "a number")
        if not kind.endswith("number") and isinstance(value, str if kind == "text" else bool):
            return value
        with suppress(TypeError, ValueError):
            number = float("nan" if isinstance(value, bool) else value)
            fits = math.isfinite(number) and (number > 0 or "positive" not in kind)
            if fits and not ("whole" in kind and number % 1):
                return int(number) if "whole" in kind else number
        raise ValueError(kind)

    def _targets(self, value: Any) -> str | list[str]:
        """Return names of modules, or a group if they are all of it."""
        names = value.split(",") if isinstance(value, str) else list(value)
        names = [name.strip() if isinstance(name, str) else "" for name in names]
        if names == [self.all_targets]:
            return "all-linear"
        if not all(re.fullmatch(MODULE_PATTERN, name) for name in names):
            raise ValueError("names of modules; a study has no patterns")
        groups = (group for group, of_it in TARGET_GROUPS.items() if set(of_it) == set(names))
        return next(groups, sorted(names))

    @property
    def methods(self) -> list[str]:
        """The methods that it names, or plain LoRA; a study trains one."""
        named = [method for method in ("rslora", "dora", "pissa") if self.facts.get(method)]
        return named + ["lora+"] * ("lr_ratio" in self.facts) or ["lora"]

    def unread_keys(self, given: Mapping[str, Any]) -> list[str]:
        """Return faults of a data set that the trainer takes a part of, or changes."""
        odd = [key for key in self.unread if given.get(key)]
        odd += ["split"] * (given.get("split", "train") != "train")
        rule = "expected none; store the rows in a file and give it with --data"
        return [f"rows: found {key} {given[key]}, {rule}" for key in odd]

    def conversations_in(self, column: str) -> dict[str, Any]:
        """Describe a data set of conversations."""
        is_known = column in ("messages", "conversations")
        return {} if is_known else {"keys": {"fields": {"messages": column}}}

    def path_of(self, name: str) -> Path | None:
        """Find a file or folder that it names: beside it, else in the current folder."""
        folders = (self.document.path.absolute().parent, Path.cwd())
        return next((p for f in folders if (p := f / Path(name).expanduser()).exists()), None)

    # --- what trainers differ in ------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Return why it cannot become a study: another stage, another adapter."""
        return []

    def data_sets(self) -> list[dict[str, Any]]:
        """Describe its data sets.

        Each has ``path`` (file, folder or hub id), and perhaps ``keys`` of the task, ``plain``
        without a chat template, ``notes`` and ``faults``. ``wordings`` are (prompt with an input,
        prompt without, column of the input).
        """
        return []

    def labels(self, row: Mapping[str, Any]) -> str:
        """Return the tokens that carry loss, for rows like the first one."""
        return "all" if self.facts.get("all_labels") else "completion"

    def is_plain(self, row: Mapping[str, Any]) -> bool:
        """Whether it puts no chat template around prompts, for rows like the first one."""
        return False

    def notes(self, row: Mapping[str, Any]) -> list[str]:
        """Say how the tokens of rows like the first one differ from the trainer's."""
        return []

    def changes(self, fact: str, value: Any) -> dict[str, Any]:
        """Translate a setting of a study into the keys and words of this file."""
        if isinstance(value, str) and fact == "targets":
            is_word = value == "all-linear" and self.all_targets
            value = self.all_targets if is_word else list(TARGET_GROUPS[value])
        return {self.sources.get(fact) or self.new_key(fact): value}

    def new_key(self, fact: str) -> str:
        """Return the key of a setting that the file does not have."""
        return next(key for key, name in self.keys.items() if name == fact)


def read_trainer_file(path: Path) -> TrainerFile:
    """Read a file as one of the trainer that knows its keys. Raises UserError: no trainer does."""
    kinds: list[type[TrainerFile]] = [*parts(TrainerFile, __name__).values()]
    calls = {call: names for kind in kinds for call, names in kind.calls.items()}
    document = read_document(path, calls)
    keys = {*document.values, *document.computed}
    files = [k(document) for k in kinds if any(re.match(k.marks, key) for key in keys)]
    if not files:
        expected = f"settings of {', '.join(kind.name for kind in kinds)}"
        raise UserError(path, "no key of a trainer that is known here", expected)
    return max(files, key=lambda file: len(file.went) + len(file.left) - len(file.unknown))
