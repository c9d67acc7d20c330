"""What one row says, and how its fields are read: text, messages, options, the right answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankscope.data.items import LETTERS, Message
from rankscope.data.sources import RawRow
from rankscope.errors import UserError

ROLES = ("system", "user", "assistant", "tool")


class NoCompletion(Exception):
    """The row has nothing to learn or to score: it is dropped and counted.

    Args:
        field: which of its fields holds nothing.
    """

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class FlawedRow(Exception):
    """A published row that cannot be asked as it is: it is dropped and counted."""


@dataclass(frozen=True, slots=True)
class RowContent:
    """What a row says, whatever its shape."""

    question: str
    """What is asked: the question, prompt or instruction; empty for plain text."""
    completion: str
    """The written answer; for multiple choice the right option's text."""
    choices: tuple[str, ...] = ()
    answer: int | None = None
    subject: str | None = None
    messages: tuple[Message, ...] = ()
    reference: str = ""
    """Gold answer where it is shorter than the completion."""
    contexts: tuple[str, ...] = ()
    """Where options stand inside the question: what precedes ``continuation``, by option."""
    continuation: str = ""
    """What follows any option then, and is scored after each."""
    template: str = "{question}"
    """Default prompt of the shape."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's own fields, for prompt templates."""


# --- fields -------------------------------------------------------------------------------------


def text_of(row: RawRow, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise UserError(f"{row.where}: field {name!r} holds {found}, expected text")
    return value


def completion_of(row: RawRow, name: str) -> str:
    """A text that may be missing or blank, in which case the row has no completion."""
    value = row.fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise NoCompletion(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text_of(row, name)


def subject_of(row: RawRow, name: str = "subject") -> str | None:
    value = row.fields.get(name)
    return None if value is None else str(value)


def messages_of(row: RawRow, name: str) -> tuple[Message, ...]:
    value = row.fields.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{row.where}: field {name!r} must be a list of messages")
    messages = []
    for position, message in enumerate(value, start=1):
        if not isinstance(message, Mapping):
            raise UserError(f"{row.where}: message {position} of {name!r} is not an object")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UserError(
                f"{row.where}: message {position} of {name!r} has role {role!r} and content of "
                f"type {type(content).__name__}; expected a role out of {', '.join(ROLES)} and text"
            )
        messages.append(Message(role, content))
    return tuple(messages)


def choice_texts(row: RawRow, values: object) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"{row.where}: choices must be a list of texts")
    texts = tuple(str(value) for value in values if isinstance(value, str | int | float))
    if len(texts) != len(values) or not 2 <= len(texts) <= len(LETTERS):
        raise UserError(
            f"{row.where}: found {len(texts)} usable choices out of {len(values)}; expected 2 to "
            f"{len(LETTERS)} texts"
        )
    return texts


def answer_index(row: RawRow, answer: object, choices: tuple[str, ...]) -> int:
    """Index of the right option: given as an index from 0, as a letter or as the option's text.

    Raises:
        UserError: where it names no option.
        NoCompletion: where there is none.
    """
    if answer is None or answer == "":
        raise NoCompletion("answer")
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return answer
    elif isinstance(answer, str):
        stripped = [choice.strip() for choice in choices]
        if answer.strip() in stripped:
            return stripped.index(answer.strip())
        letter = answer.strip().upper()
        if len(letter) == 1 and letter in LETTERS[: len(choices)]:
            return LETTERS.index(letter)
    raise UserError(
        f"{row.where}: answer {answer!r} names none of the {len(choices)} choices; expected an "
        f"index from 0 to {len(choices) - 1}, a letter from A to {LETTERS[len(choices) - 1]} or "
        "the text of a choice"
    )


def multiple_choice(
    row: RawRow,
    question: str,
    values: object,
    answer: object,
    strict: bool,
    template: str = "Question: {question}\nAnswer:",
) -> RowContent:
    choices = choice_texts(row, values)
    index = answer_index(row, answer, choices)
    stripped = [choice.strip() for choice in choices]
    repeated = [choice for choice in stripped if stripped.count(choice) > 1]
    if strict and repeated:
        raise UserError(
            f"{row.where}: the choice {repeated[0]!r} stands twice; choices must differ, "
            "otherwise the right one cannot be told"
        )
    if stripped[index] in repeated:
        raise FlawedRow(f"{row.where}: the right choice stands twice")
    return RowContent(
        question=question,
        completion=choices[index],
        choices=choices,
        answer=index,
        subject=subject_of(row),
        reference=choices[index],
        template=template,
        fields=row.fields,
    )
