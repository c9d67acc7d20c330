"""The shapes of rows, recognized by their fields, and a reader for each.

All rows of a file have the shape of its first row. Recognized shapes: chat (``messages``),
``prompt`` + ``completion`` (text or messages), ``text``, alpaca (``instruction``, ``input``,
``output``), multiple choice (``question``, ``choices``, ``answer``), question with a written
answer, and the shapes of published data sets (``hub_formats.py``).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankscope.data import hub_formats
from rankscope.data.items import Message
from rankscope.data.rows import (
    QUESTION_PROMPT,
    FlawedRow,
    NoCompletion,
    RowContent,
    completion_field,
    messages_field,
    multiple_choice,
    repeated_choices,
    subject_field,
    text_field,
)
from rankscope.data.sources import RawRow
from rankscope.errors import UserError, did_you_mean

CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
MAX_SHARE_WITHOUT_COMPLETION = 0.01

RowReader = Callable[[RawRow], RowContent]
"""Reads one row; may raise NoCompletion or FlawedRow. ``parse_rows`` fills in ``fields``."""


def read_chat(row: RawRow) -> RowContent:
    return conversation(messages_field(row, "messages"), "messages")


def conversation(messages: Sequence[Message], field: str) -> RowContent:
    """A conversation through its last answered assistant turn."""
    answered = [
        position
        for position, message in enumerate(messages)
        if message.role == "assistant" and message.content.strip()
    ]
    if not answered:
        raise NoCompletion(field)
    *earlier, last = messages[: answered[-1] + 1]
    return RowContent(
        question="\n".join(turn.content for turn in earlier if turn.role != "assistant"),
        completion=last.content,
        messages=(*earlier, last),
        reference=last.content.strip(),
    )


def read_prompt_completion(row: RawRow) -> RowContent:
    if isinstance(row.fields["prompt"], str):
        text = completion_field(row, "completion")
        return RowContent(text_field(row, "prompt"), text, reference=text.strip())
    if not row.fields.get("completion"):
        raise NoCompletion("completion")
    messages = messages_field(row, "prompt") + messages_field(row, "completion")
    return conversation(messages, "completion")


def read_plain_text(row: RawRow) -> RowContent:
    return RowContent(question="", completion=completion_field(row, "text"))


def read_alpaca(row: RawRow) -> RowContent:
    parts = [text_field(row, "instruction"), str(row.fields.get("input") or "")]
    question = "\n\n".join(part for part in parts if part.strip())
    output = completion_field(row, "output")
    return RowContent(question, output, reference=output.strip(), template="{question}\n\n")


def read_written_answer(row: RawRow) -> RowContent:
    """A question with a written answer, or a chain that ends in ``#### number`` (GSM8K)."""
    chain = CALCULATOR_MARK.sub("", completion_field(row, "answer"))
    _, mark, final = chain.rpartition("####")
    return RowContent(
        question=text_field(row, "question"),
        completion=chain,
        subject=subject_field(row),
        reference=final.strip().replace(",", "") if mark else chain.strip(),
        template=QUESTION_PROMPT,
    )


def read_multiple_choice(row: RawRow) -> RowContent:
    question, answer = text_field(row, "question"), row.fields.get("answer")
    return multiple_choice(row, question, row.fields["choices"], answer)


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape: the fields that mark it, and its reader."""

    name: str
    marks: frozenset[str]
    read: RowReader
    fits: Callable[[Mapping[str, Any]], bool] = lambda fields: True
    """Further condition on the fields."""


# The first match is taken, so narrower shapes come before wider ones.
SHAPES: tuple[Shape, ...] = (
    Shape("messages", frozenset({"messages"}), read_chat),
    Shape("prompt and completion", frozenset({"prompt"}), read_prompt_completion,
          lambda fields: "chosen" not in fields),
    Shape("alpaca", frozenset({"instruction"}), read_alpaca),
    Shape("medmcqa", frozenset({"question", "opa", "opb", "opc", "opd"}), hub_formats.read_medmcqa),
    Shape("piqa", frozenset({"goal", "sol1", "sol2"}), hub_formats.read_piqa),
    Shape("hellaswag", frozenset({"activity_label", "ctx_a", "ctx_b", "endings"}),
          hub_formats.read_hellaswag),
    Shape("winogrande", frozenset({"sentence", "option1", "option2"}), hub_formats.read_winogrande),
    Shape("casehold", frozenset({"context", "endings"}), hub_formats.read_casehold),
    Shape("mathqa", frozenset({"Problem", "options"}), hub_formats.read_mathqa),
    Shape("labelled choices", frozenset({"choices"}), hub_formats.read_labelled_choices,
          lambda fields: isinstance(fields["choices"], Mapping)),
    Shape("multiple choice", frozenset({"question", "choices"}), read_multiple_choice),
    Shape("yes or no", frozenset({"question", "answer"}), hub_formats.read_yes_no,
          lambda fields: isinstance(fields["answer"], bool)),
    Shape("question and answer", frozenset({"question"}), read_written_answer),
    Shape("text", frozenset({"text"}), read_plain_text),
)  # fmt: skip


def shape_of(row: RawRow, custom: Sequence[Shape] = ()) -> Shape:
    """The shape of one row; ``custom`` shapes take precedence over the built-in ones."""
    for shape in (*custom, *SHAPES):
        if shape.marks <= row.fields.keys() and shape.fits(row.fields):
            return shape
    raise UserError(
        f"{row.location}: the fields {', '.join(map(repr, row.fields)) or '(none)'} fit no known "
        "shape; expected messages | prompt, completion | text | instruction, input, output | "
        "question, choices, answer | question, answer"
    )


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The usable rows of one file with their content, and the number of dropped rows."""

    rows: tuple[tuple[RawRow, RowContent], ...]
    without_completion: int
    flawed: int


FieldNames = Mapping[str, str | list[str]]
"""Field of a shape -> the row's name for it, or the names of several fields that form a list."""


def rename_fields(row: RawRow, names: FieldNames) -> RawRow:
    """The mapped fields of a row under the names of its shape."""

    def value(name: str) -> Any:
        if name not in row.fields:
            hint = did_you_mean(name, row.fields)
            raise UserError(
                f"{row.location}: field {name!r}, named in 'fields:', is missing{hint}; the row "
                f"has {', '.join(row.fields) or 'no fields'}"
            )
        return row.fields[name]

    fields = {
        field: [value(one) for one in name] if isinstance(name, list) else value(name)
        for field, name in names.items()
    }
    return RawRow(row.location, row.number, fields)


def parse_rows(
    rows: Sequence[RawRow],
    *,
    strict: bool,
    names: FieldNames | None = None,
    shapes: Sequence[Shape] = (),
) -> ParsedFile:
    """Parse every row of one file; all must have the shape of the first.

    Args:
        rows: rows of one file, at least one.
        strict: the user's own data, in which a flawed row is an error; flawed rows of published
            data (right choice repeated, unreadable options) are counted and dropped.
        names: the rows' names for the fields of their shape; prompt templates may use both.
        shapes: further shapes, tried before the built-in ones.
    """
    renamed = rows if names is None else [rename_fields(row, names) for row in rows]
    expected = shape_of(renamed[0], shapes)
    parsed: list[tuple[RawRow, RowContent]] = []
    missing: list[tuple[RawRow, str]] = []
    flawed = 0
    for row, original in zip(renamed, rows, strict=True):
        shape = shape_of(row, shapes)
        if shape is not expected:
            raise UserError(
                f"{row.location}: found the shape {shape.name!r}, expected {expected.name!r} as in "
                f"{rows[0].location}; all rows of a file must have one shape"
            )
        try:
            content = shape.read(row)
            if strict and (repeated := repeated_choices(content.choices)):
                raise FlawedRow(f"the choice {repeated[0]!r} is repeated; choices must differ")
            fields = {**original.fields, **row.fields}
            parsed.append((row, replace(content, fields=fields)))
        except NoCompletion as error:
            missing.append((row, error.field))
        except FlawedRow as error:
            if strict:
                raise UserError(f"{row.location}: {error}") from None
            flawed += 1
    if len(missing) > MAX_SHARE_WITHOUT_COMPLETION * len(rows):
        row, field = missing[0]
        raise UserError(
            f"{row.location}: no completion in field {(names or {}).get(field, field)!r}; so are "
            f"{len(missing)} of {len(rows)} rows. Fill them in or remove them; up to 1 % may be "
            "missing, and are dropped and counted"
        )
    return ParsedFile(tuple(parsed), len(missing), flawed)
