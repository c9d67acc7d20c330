"""The content of one row, and how its fields are read: texts, messages, options, the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankscope.data.items import LETTERS, Message
from rankscope.data.sources import RawRow
from rankscope.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
QUESTION_PROMPT = "Question: {question}\nAnswer:"


class NoCompletion(Exception):
    """The row has nothing to learn or to score: it is dropped and counted."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field
        """The empty field."""


class FlawedRow(Exception):
    """The row is unusable: dropped and counted in published data, an error in the user's own."""


@dataclass(frozen=True, slots=True)
class RowContent:
    """The content of a row, whatever its shape."""

    question: str
    """The question, prompt or instruction; empty for plain text."""
    completion: str
    """The written answer; for multiple choice the text of the right option."""
    choices: tuple[str, ...] = ()
    answer: int | None = None
    subject: str | None = None
    messages: tuple[Message, ...] = ()
    reference: str = ""
    """Gold answer, if it is shorter than the completion."""
    contexts: tuple[str, ...] = ()
    """If the options are inside the question: the text before ``continuation``, per option."""
    continuation: str = ""
    """The text after any option, scored after each of the ``contexts``."""
    template: str = "{question}"
    """Default prompt of the shape."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's own fields, for prompt templates."""


def text_field(row: RawRow, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise UserError(f"{row.location}: field {name!r} holds {found}, expected text")
    return value


def completion_field(row: RawRow, name: str) -> str:
    """A text or number; NoCompletion if it is missing or blank."""
    value = row.fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise NoCompletion(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return text_field(row, name)


def index_field(row: RawRow, name: str) -> int:
    """An index from 0, as a number or in digits; -1 and empty text mean that it is withheld."""
    value = row.fields.get(name)
    if value is None or value in (-1, "", "-1"):
        raise NoCompletion(name)
    if isinstance(value, bool) or not str(value).isdecimal():
        raise UserError(f"{row.location}: field {name!r} is {value!r}, expected an index from 0")
    return int(value)


def subject_field(row: RawRow) -> str | None:
    value = row.fields.get("subject")
    return None if value is None else str(value)


def messages_field(row: RawRow, name: str) -> tuple[Message, ...]:
    value = row.fields.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{row.location}: field {name!r} must be a list of messages")
    messages = []
    for position, message in enumerate(value, start=1):
        where = f"{row.location}: message {position} of {name!r}"
        if not isinstance(message, Mapping):
            raise UserError(f"{where} is not an object")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UserError(
                f"{where} has role {role!r} and content of type {type(content).__name__}; "
                f"expected text, and one of the roles {', '.join(ROLES)}"
            )
        messages.append(Message(role, content))
    return tuple(messages)


def choice_texts(row: RawRow, values: object) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"{row.location}: choices must be a list of texts")
    texts = tuple(str(value) for value in values if isinstance(value, str | int | float))
    if len(texts) != len(values) or not 2 <= len(texts) <= len(LETTERS):
        raise UserError(
            f"{row.location}: found {len(texts)} usable choices out of {len(values)}; expected 2 "
            f"to {len(LETTERS)} texts"
        )
    return texts


def answer_index(row: RawRow, answer: object, choices: Sequence[str]) -> int:
    """Index of the right option, given as an index from 0, a letter or the option's text."""
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
        f"{row.location}: answer {answer!r} is not one of the {len(choices)} choices; expected an "
        f"index from 0 to {len(choices) - 1}, a letter from A to {LETTERS[len(choices) - 1]} or "
        "the text of a choice"
    )


def repeated_choices(choices: Sequence[str]) -> list[str]:
    stripped = [choice.strip() for choice in choices]
    return [choice for choice in stripped if stripped.count(choice) > 1]


def multiple_choice(
    row: RawRow, question: str, values: object, answer: object, template: str = QUESTION_PROMPT
) -> RowContent:
    choices = choice_texts(row, values)
    index = answer_index(row, answer, choices)
    right = choices[index].strip()
    if right in repeated_choices(choices):
        raise FlawedRow(f"the choice {right!r} is repeated; choices must differ")
    return RowContent(
        question=question,
        completion=choices[index],
        choices=choices,
        answer=index,
        subject=subject_field(row),
        reference=choices[index],
        template=template,
    )
