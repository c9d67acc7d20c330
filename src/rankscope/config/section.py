"""What the sections of the study file have in common: strict values, short forms, safe text."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

# A name becomes a path component and a label in reports, so it may hold nothing that could leave
# the study's directory or confuse a terminal.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_RULE = "1 to 64 letters, digits, '_', '-' or '.', starting with a letter or digit"
# A hub id must not be readable as a path: no '..', no leading '.' or '/', at most one '/'.
HUB_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?$"


def as_list(value: Any) -> Any:
    """A single grid value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def shown(value: object, limit: int = 60) -> str:
    """A value for a message: one line, cut, with unprintable characters escaped."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(part: str | int) -> str:
    """One step of a place, safe for a terminal."""
    text = str(part)
    return text if text.isprintable() and len(text) <= 40 else shown(text, 40)


def matching(pattern: str, rule: str) -> Callable[[str], str]:
    """A validator that refuses text not matching ``pattern``; ``rule`` says it in words."""

    def check(value: str) -> str:
        if ".." in value or not re.fullmatch(pattern, value):
            raise ValueError(f"{shown(value)} cannot be used: expected {rule}")
        return value

    return check


def checked_text(value: str) -> str:
    """Refuse text that a terminal or a file system would take amiss."""
    if not value:
        raise ValueError("is empty text: remove the key or give a value")
    if not value.isprintable():
        raise ValueError(f"{shown(value)} holds characters that cannot be printed")
    if len(value) > 4096:
        raise ValueError(f"is {len(value)} characters long: expected at most 4096")
    return value


def checked_path(value: str) -> str:
    """Refuse a path into the home directory of a user that is not known."""
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{shown(value)}: there is no such home directory") from error
    return value


@dataclass(frozen=True)
class LocalPath:
    """Marks a field whose text names a local file or folder.

    ``load_study`` makes it absolute: against the study file's folder, or against the working
    directory where it came from ``--set``.
    """


Name = Annotated[
    str,
    AfterValidator(matching(NAME_PATTERN, NAME_RULE)),
    Field(json_schema_extra={"pattern": NAME_PATTERN}),
]
HubId = Annotated[
    str,
    AfterValidator(matching(HUB_PATTERN, "a hub id such as 'owner/name', not a path")),
]
PlainText = Annotated[str, AfterValidator(checked_text)]
PathText = Annotated[Annotated[PlainText, AfterValidator(checked_path)] | None, LocalPath()]


class Section(BaseModel):
    """Base of every section: unknown keys are errors and values do not change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any] | None:
        """The section that a single text stands for; None where there is no such form."""
        return None

    @model_validator(mode="before")
    @classmethod
    def expand(cls, value: Any) -> Any:
        """Expand short forms; a key without a value means its default."""
        if isinstance(value, str):
            return cls.from_short_form(value) or value
        if isinstance(value, dict):
            fields = cls.model_fields
            return {k: v for k, v in value.items() if v is not None or k not in fields}
        return {} if value is None else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.from_short_form("name") is not None:
            whole = handler.resolve_ref_schema(schema)
            long_form = dict(whole)
            whole.clear()
            whole["anyOf"] = [{"type": "string"}, long_form]
        return schema
