"""The shapes a row may have, recognised by their fields, and what each says.

A file has one shape: that of its first row. Recognised are chat (``messages``),
``prompt`` + ``completion`` (text or messages), ``text``, alpaca (``instruction``, ``input``,
``output``), multiple choice (``question``, ``choices``, ``answer``) and question with a written
answer, besides the shapes in which the named tasks' data stand on the hub.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankscope.data import published
from rankscope.data.items import Message
from rankscope.data.rows import (
    FlawedRow,
    NoCompletion,
    RowContent,
    completion_of,
    messages_of,
    multiple_choice,
    subject_of,
    text_of,
)
from rankscope.data.sources import RawRow
from rankscope.errors import UserError

# Each reader takes a row and whether the data are the user's own (strict), and gives its content.


def _read_chat(row: RawRow, strict: bool) -> RowContent:
    return _conversation(row, messages_of(row, "messages"), "messages")


def _conversation(row: RawRow, messages: tuple[Message, ...], field: str) -> RowContent:
    """A conversation up to its last assistant turn, of ``field``: what follows has no answer."""
    answered = [
        position
        for position, message in enumerate(messages)
        if message.role == "assistant" and message.content.strip()
    ]
    if not answered:
        raise NoCompletion(field)
    messages = messages[: answered[-1] + 1]
    asked = [message.content for message in messages[:-1] if message.role != "assistant"]
    return RowContent(
        question="\n".join(asked),
        completion=messages[-1].content,
        messages=messages,
        reference=messages[-1].content.strip(),
        fields=row.fields,
    )


def _read_prompt_completion(row: RawRow, strict: bool) -> RowContent:
    completion = row.fields.get("completion")
    if isinstance(row.fields["prompt"], str):
        text = completion_of(row, "completion")
        return RowContent(
            question=text_of(row, "prompt"),
            completion=text,
            reference=text.strip(),
            fields=row.fields,
        )
    if not completion:
        raise NoCompletion("completion")
    messages = messages_of(row, "prompt") + messages_of(row, "completion")
    return _conversation(row, messages, "completion")


def _read_text(row: RawRow, strict: bool) -> RowContent:
    return RowContent(question="", completion=completion_of(row, "text"), fields=row.fields)


def _read_alpaca(row: RawRow, strict: bool) -> RowContent:
    parts = [text_of(row, "instruction"), row.fields.get("input") or ""]
    output = completion_of(row, "output")
    return RowContent(
        question="\n\n".join(str(part) for part in parts if str(part).strip()),
        completion=output,
        reference=output.strip(),
        template="{question}\n\n",
        fields=row.fields,
    )


CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


def _read_written_answer(row: RawRow, strict: bool) -> RowContent:
    """A question with an answer in words, or (GSM8K) a chain that ends ``#### number``."""
    answer = completion_of(row, "answer")
    chain = CALCULATOR_MARK.sub("", answer)
    _, mark, final = chain.rpartition("####")
    return RowContent(
        question=text_of(row, "question"),
        completion=chain,
        subject=subject_of(row),
        reference=final.strip().replace(",", "") if mark else chain.strip(),
        template="Question: {question}\nAnswer:",
        fields=row.fields,
    )


def _read_choices(row: RawRow, strict: bool) -> RowContent:
    return multiple_choice(
        row, text_of(row, "question"), row.fields["choices"], row.fields.get("answer"), strict
    )


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape: which fields mark it, and how such a row is read."""

    name: str
    marks: frozenset[str]
    read: Callable[[RawRow, bool], RowContent]
    fits: Callable[[Mapping[str, Any]], bool] = lambda fields: True
    """Further condition on the marked fields."""


# The first that fits is taken, so narrower shapes stand before wider ones.
SHAPES: tuple[Shape, ...] = (
    Shape("messages", frozenset({"messages"}), _read_chat),
    Shape("prompt and completion", frozenset({"prompt"}), _read_prompt_completion,
          lambda fields: "chosen" not in fields),
    Shape("alpaca", frozenset({"instruction"}), _read_alpaca),
    Shape("medmcqa", frozenset({"question", "opa", "opb", "opc", "opd"}), published.read_medmcqa),
    Shape("piqa", frozenset({"goal", "sol1", "sol2"}), published.read_piqa),
    Shape("hellaswag", frozenset({"activity_label", "ctx_a", "ctx_b", "endings"}),
          published.read_hellaswag),
    Shape("winogrande", frozenset({"sentence", "option1", "option2"}), published.read_winogrande),
    Shape("casehold", frozenset({"context", "endings"}), published.read_casehold),
    Shape("mathqa", frozenset({"Problem", "options"}), published.read_mathqa),
    Shape("labelled choices", frozenset({"choices"}), published.read_labelled_choices,
          lambda fields: isinstance(fields["choices"], Mapping)),
    Shape("multiple choice", frozenset({"question", "choices"}), _read_choices),
    Shape("yes or no", frozenset({"question", "answer"}), published.read_yes_no,
          lambda fields: isinstance(fields["answer"], bool)),
    Shape("question and answer", frozenset({"question"}), _read_written_answer),
    Shape("text", frozenset({"text"}), _read_text),
)  # fmt: skip


def shape_of(row: RawRow) -> Shape:
    """The shape of one row.

    Raises:
        UserError: where the fields fit none; the message lists the shapes.
    """
    for shape in SHAPES:
        if shape.marks <= row.fields.keys() and shape.fits(row.fields):
            return shape
    raise UserError(
        f"{row.where}: the fields {', '.join(map(repr, row.fields)) or '(none)'} fit no known "
        "shape; expected messages | prompt, completion | text | instruction, input, output | "
        "question, choices, answer | question, answer"
    )


@dataclass(frozen=True, slots=True)
class FileContents:
    """The readable rows of one file with what they say, and how many were left out."""

    rows: tuple[tuple[RawRow, RowContent], ...]
    without_completion: int
    flawed: int


MAX_SHARE_WITHOUT_COMPLETION = 0.01


FieldNames = Mapping[str, str | list[str]]
"""Field of a shape -> the row's own name for it, or names of several that make a list."""


def renamed(row: RawRow, names: FieldNames) -> RawRow:
    """The row as its shape knows it: the mapped fields alone, under the names of the shape.

    Raises:
        UserError: the row lacks a field that the mapping names.
    """

    def value(own: str) -> Any:
        if own not in row.fields:
            close = difflib.get_close_matches(own, list(row.fields), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"{row.where}: field {own!r}, which 'fields:' names, is missing{hint}; the row has "
                f"{', '.join(row.fields) or 'no fields'}"
            )
        return row.fields[own]

    fields = {
        name: [value(one) for one in own] if isinstance(own, list) else value(own)
        for name, own in names.items()
    }
    return RawRow(row.where, row.number, fields)


def read_contents(
    rows: Sequence[RawRow], *, strict: bool, names: FieldNames | None = None
) -> FileContents:
    """Every row of one file, all of the shape of the first.

    Args:
        rows: rows of one file, at least one.
        strict: the user's own data, where a flaw is an error; rows of a published data set that
            cannot be asked as they stand (the right choice twice, unreadable options) are counted
            and left out instead.
        names: what the rows call the fields of a shape, where they have names of their own; prompt
            templates may use both.

    Raises:
        UserError: at the first row of another shape or with a wrong value, and where more than
            1 % of the user's own rows have no completion.
    """
    given = rows if names is None else [renamed(row, names) for row in rows]
    shape = shape_of(given[0])
    read: list[tuple[RawRow, RowContent]] = []
    missing: list[tuple[RawRow, str]] = []
    flawed = 0
    for row, original in zip(given, rows, strict=True):
        found = shape_of(row)
        if found is not shape:
            raise UserError(
                f"{row.where}: found the shape {found.name!r}, expected {shape.name!r} as in "
                f"{rows[0].where}; a file holds rows of one shape"
            )
        try:
            content = shape.read(row, strict)
            if names is not None:
                content = replace(content, fields={**original.fields, **row.fields})
            read.append((row, content))
        except NoCompletion as error:
            missing.append((row, error.field))
        except FlawedRow:
            flawed += 1
    if len(missing) > MAX_SHARE_WITHOUT_COMPLETION * len(rows):
        row, field = missing[0]
        raise UserError(
            f"{row.where}: no completion in field {(names or {}).get(field, field)!r}; so are "
            f"{len(missing)} of {len(rows)} rows. Up to 1 % would be left out and counted; more is "
            "an error: fill them in or remove them"
        )
    return FileContents(tuple(read), len(missing), flawed)
