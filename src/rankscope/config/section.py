"""Base class of every section of a study file, and the types of its fields."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from rankscope.errors import UserError, did_you_mean

# A name becomes a path component and a label in reports: it must not leave the study's folder or
# confuse a terminal.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_RULE = "1 to 64 letters, digits, '_', '-' or '.', starting with a letter or digit"
# A hub id must not read as a path: no '..', no leading '.' or '/', at most one '/'.
HUB_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?$"
MAX_TEXT_LENGTH = 4096
MAX_FILE_NAME = 255  # Bytes, in all common file systems
MAX_SEED = 2**32 - 1  # Largest seed that both NumPy's and PyTorch's generators accept

Location = tuple[str | int, ...]
"""Keys and list positions that lead to a value of a file, such as ``("arms", 0, "rank")``."""


class Unfit(UserError, ValueError):
    """A value that cannot be used. Pydantic catches it, and the loader adds its place."""

    def __init__(self, found: str, expected: str, do: str = "") -> None:
        super().__init__("", found, expected, do)


def short_repr(value: object, limit: int = 60) -> str:
    """Write a value for an error message: one line, shortened, unprintable characters escaped."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def dotted(location: Location) -> str:
    """Return a location as written on the command line, safe to print."""
    parts = map(str, location)
    return ".".join(p if p.isprintable() and len(p) <= 40 else short_repr(p, 40) for p in parts)


def matches(pattern: str, rule: str) -> Callable[[str], str]:
    """Make a validator of text that matches ``pattern``; ``rule`` says the pattern in words."""

    def check(value: str) -> str:
        if ".." in value or not re.fullmatch(pattern, value):
            raise Unfit(short_repr(value), rule)
        return value

    return check


def _check_text(value: str) -> str:
    if not value:
        raise Unfit("an empty text", "a name", "remove the key or fill it in")
    if not value.isprintable():
        found = f"{short_repr(value)}, with characters that cannot be printed"
        raise Unfit(found, "a name without them", "rename it")
    if len(value) > MAX_TEXT_LENGTH:
        raise Unfit(f"{len(value)} characters", f"at most {MAX_TEXT_LENGTH}")
    return value


def _check_path(value: str) -> str:
    if any(len(part.encode()) > MAX_FILE_NAME for part in Path(value).parts):
        raise Unfit(short_repr(value), f"names of at most {MAX_FILE_NAME} bytes")
    return value


class LocalPath:
    """Marks a field that names a local file or folder, and makes its path absolute.

    A path from a file is relative to the file's folder, one from ``--set`` to the working
    directory. With a prefix, such as ``python:``, only values that begin with it hold a path, after
    the prefix.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def absolute(self, value: Any) -> Any:
        """Make a path absolute, without ``..`` and with the home directory in place of ``~``."""
        folder = getattr(value, "folder", None)
        if folder is None or not value.isprintable() or not value.removeprefix(self.prefix):
            return value
        if not value.startswith(self.prefix):
            return value
        try:
            path = folder / Path(value.removeprefix(self.prefix)).expanduser()
        except RuntimeError as error:
            found = f"{short_repr(value)}, in a home folder that does not exist"
            raise Unfit(found, "a path") from error
        # normpath rather than resolve: a linked data folder keeps the name that its owner chose.
        return self.prefix + os.path.normpath(path)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.absolute, handler(source))


class Described:
    """Marks a field whose faults all have one rule."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="described", custom_error_message=self.rule
        )


class _SingleValueAsList:
    """Marks a list that may be written as a single value: ``rank: 8`` means ``rank: [8]``."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: value if isinstance(value, list) else [value], handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        as_list = handler(schema)
        item = as_list["items"]
        return {"anyOf": [*item.get("anyOf", [item]), as_list]}


class RegisteredName:
    """Marks a text that must be a registered name or match ``pattern``; the JSON schema lists the
    names."""

    def __init__(self, names: Callable[[], Collection[str]], pattern: str | None = None) -> None:
        self.names = names
        self.pattern = pattern

    def check(self, name: str) -> str:
        names = self.names()
        if name in names or (self.pattern is not None and re.fullmatch(self.pattern, name)):
            return name
        hint = did_you_mean(name, names)
        raise Unfit(short_repr(name), f"one of {', '.join(names)}", hint)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        listed = {"enum": list(self.names()), "type": "string"}
        if self.pattern is None:
            return listed
        return {"anyOf": [listed, {"type": "string", "pattern": f"^{self.pattern}$"}]}


def _seed_list(value: object) -> object:
    """Refuse a number above 0: it may be meant as the number of seeds."""
    if isinstance(value, int) and value > 0 and not isinstance(value, bool):
        raise Unfit(str(value), f"a list: [{value}] is that seed alone, [0, 1, 2] are three")
    return value if isinstance(value, list) else [value]


_Value = TypeVar("_Value")
OneOrMore = Annotated[list[_Value], Field(min_length=1), _SingleValueAsList()]
ZeroOrMore = Annotated[list[_Value], _SingleValueAsList()]
Name = Annotated[
    str,
    AfterValidator(matches(NAME_PATTERN, NAME_RULE)),
    Field(json_schema_extra={"pattern": NAME_PATTERN}),
]
HubId = Annotated[
    str, AfterValidator(matches(HUB_PATTERN, "a hub id such as 'owner/name', not a path"))
]
PlainText = Annotated[str, AfterValidator(_check_text)]
PathText = Annotated[Annotated[PlainText, AfterValidator(_check_path)] | None, LocalPath()]
Interval = Annotated[
    Annotated[int, Field(ge=1)] | Literal["epoch"] | None,
    Described("a number of optimizer steps or 'epoch'"),
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
_SeedList = Annotated[list[Seed], Field(min_length=1)]
Seeds = Annotated[
    _SeedList, BeforeValidator(_seed_list, json_schema_input_type=_SeedList | Literal[0])
]


class ConfigSection(BaseModel):
    """Base class of every section: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def from_short_form(cls, text: str) -> dict[str, Any] | None:
        """Expand a text that stands for the whole section; return None if it has no short form."""
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
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        long_form = handler(schema)
        if cls.from_short_form("name") is not None:
            definition = handler.resolve_ref_schema(long_form)
            expanded = dict(definition)
            definition.clear()
            definition["anyOf"] = [{"type": "string"}, expanded]
        return long_form


def section_at(location: Location, model: type[ConfigSection]) -> type[ConfigSection] | None:
    """Return the section class at a location, such as ``("arms", 0)`` in a file of ``model``."""
    annotation: Any = model
    for part in location:
        if isinstance(part, int):
            annotation = get_args(annotation)[0] if get_origin(annotation) is list else None
        else:
            section = _as_section(annotation)
            field = section.model_fields.get(part) if section else None
            annotation = _without_none(field.annotation) if field else None
    return _as_section(annotation)


def key_paths(key: str, model: type[ConfigSection], outer: str = "") -> Iterator[str]:
    """Yield every place where a file of ``model`` may have a key, such as ``arms.0.rank``."""
    for name in model.model_fields:
        if name == key:
            yield outer + name
        for place in ((name,), (name, 0)):
            if section := section_at(place, model):
                yield from key_paths(key, section, f"{outer}{dotted(place)}.")


def _without_none(annotation: Any) -> Any:
    """Return ``X`` for ``X | None``, without constraints, and other annotations unchanged."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) in (Union, UnionType) and len(parts) == 1:
        return get_args(parts[0])[0] if get_origin(parts[0]) is Annotated else parts[0]
    return annotation


def _as_section(annotation: Any) -> type[ConfigSection] | None:
    is_section = isinstance(annotation, type) and issubclass(annotation, ConfigSection)
    return annotation if is_section else None
