"""Rows as read, readers of their fields, and rows that cannot be used.

All bad rows of a task are found in one pass, and refused or dropped together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from rankscope.config.section import short_repr
from rankscope.data.items import LETTERS, Item, Message
from rankscope.errors import RankscopeError, UserError
from rankscope.formatting import count

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
"""Maps the role in a data set to the role of the chat template."""
TOOL_CALLS = ("tool_calls", "function_call")  # Keys of a message that calls a tool
QUESTION_PROMPT = "Question: {question}\nAnswer:"

MAX_SHARE_WITHOUT_COMPLETION = 0.01
"""Share of the user's own rows (at least one row) that may lack a completion and be dropped."""
MAX_PUBLISHED_SHARE = 0.1
"""Share of bad rows that a named task may have: more of them are a wrong file, no flaws."""
MAX_SHOWN = 20
MAX_SHOWN_IN_NOTE = 3

BadRowPolicy = Literal["refuse", "drop"] | None
"""``on_bad_rows`` of the study file; None refuses bad own rows, and drops bad published ones."""


class BadRow(UserError):
    """A row that cannot be used. Its reader says why, and the caller sets its place."""

    number = 0  # Row number in its file

    def __init__(self, found: str, expected: str, do: str = "") -> None:
        super().__init__("", found, expected, do)

    def at(self, row: "RawRow") -> Self:
        self.where, self.number = row.location, row.number
        return self


class NoCompletion(BadRow):
    """A row without anything to learn or to score."""

    def __init__(self, field: str) -> None:
        super().__init__(f"no completion in field {field!r}", "a text, or which choice is right")
        self.field = field
        """``field`` is the name of the empty field."""


@dataclass(frozen=True, slots=True)
class RawRow:
    location: str  # For messages, such as ``data/train.jsonl, row 3``
    number: int  # Row number from 1; the line number in a JSONL file
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: BadRow | None = None  # Why the row could not be read; it then has no fields


# --- fields -------------------------------------------------------------------------------------


def text_field(row: RawRow, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise BadRow(f"{found} in field {name!r}", "text")
    return value


def is_missing(value: object) -> bool:
    """Whether a value is None, blank text or a float that is not finite, as in a table's empty
    cell."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, str) and not value.strip())


def completion_field(row: RawRow, *names: str) -> str:
    """Return the text or number in the first of these fields that the row has.

    Raises NoCompletion: it is missing, blank, or no finite number.
    """
    name = next((name for name in names if name in row.fields), names[0])
    value = row.fields.get(name)
    if is_missing(value):
        raise NoCompletion(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(_whole(value))
    return text_field(row, name)


def _whole(value: object) -> object:
    """Turn a float without a fraction into an integer; an empty cell makes a column's integers
    floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def index_field(row: RawRow, name: str) -> int:
    """Return an index from 0, given as a number or in digits; -1 and empty text withhold it."""
    value = _whole(row.fields.get(name))
    if is_missing(value) or value in (-1, "-1"):
        raise NoCompletion(name)
    if isinstance(value, str) and value.isdecimal() and len(value) < 4:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRow(f"{short_repr(value)} in field {name!r}", "an index from 0")
    return value


def subject_field(row: RawRow) -> str | None:
    value = row.fields.get("subject")
    return None if is_missing(value) else str(value)


def messages_field(row: RawRow, name: str) -> tuple[Message, ...]:
    """Read a conversation with ``role`` and ``content``, or ``from`` and ``value`` (ShareGPT)."""
    value = row.fields.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow(f"{type(value).__name__} in field {name!r}", "a list of messages")
    messages = []
    for position, message in enumerate(value, start=1):
        where = f"message {position} of {name!r}"
        if not isinstance(message, Mapping):
            raise BadRow(f"{type(message).__name__} as {where}", "an object")
        if any(message.get(key) for key in TOOL_CALLS):
            rule = "text: Rankscope trains on written answers alone"
            raise BadRow(f"a tool call in {where}", rule)
        role = message.get("role", message.get("from"))
        content = _message_text(message.get("content", message.get("value")))
        if not isinstance(role, str) or role not in ROLES or content is None:
            text = "no text" if content is None else "text"
            found = f"{text} by the role {short_repr(role)} in {where}"
            raise BadRow(found, f"text by one of {', '.join(ROLES)}")
        messages.append(Message(ROLES[role], content))
    return tuple(messages)


def _message_text(content: object) -> str | None:
    """Return the text of a turn, given as text or a list of text parts; None for anything else."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return content if isinstance(content, str) else None
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts and len(texts) == len(content) else None


def _choice_texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise BadRow(f"{type(values).__name__} as choices", "a list of texts")
    texts = tuple(
        str(value)
        for value in values
        if isinstance(value, str | int | float) and not is_missing(value)
    )
    if len(texts) != len(values) or not 2 <= len(texts) <= len(LETTERS):
        found = f"{len(texts)} usable choices out of {len(values)}"
        raise BadRow(found, f"2 to {len(LETTERS)} texts")
    return texts


def _answer_index(answer: object, choices: Sequence[str]) -> int:
    """Return the index of the right option, given as an index from 0, a letter or a text."""
    answer = _whole(answer)
    if is_missing(answer):
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
        is_index = letter.isdecimal() and not any(text.isdecimal() for text in stripped)
        if is_index and len(letter) < 4 and int(letter) < len(choices):
            return int(letter)
    last = len(choices) - 1
    raise BadRow(
        f"answer {short_repr(answer)}, which is none of the {len(choices)} choices",
        f"an index from 0 to {last}, a letter from A to {LETTERS[last]} or the text of a choice",
    )


def duplicate_choice(choices: Sequence[str]) -> str | None:
    """Return the first choice that repeats an earlier one."""
    stripped = [choice.strip() for choice in choices]
    return next((choice for n, choice in enumerate(stripped) if choice in stripped[:n]), None)


def multiple_choice(
    row: RawRow, question: str, values: object, answer: object, template: str = QUESTION_PROMPT
) -> Item:
    choices = _choice_texts(values)
    index = _answer_index(answer, choices)
    right = choices[index].strip()
    if [choice.strip() for choice in choices].count(right) > 1:
        found = f"the duplicate choice {short_repr(right)}, which is the answer"
        raise BadRow(found, "distinct choices")
    return Item(
        question=question,
        completion=choices[index],
        choices=choices,
        answer=index,
        subject=subject_field(row),
        reference=choices[index],
        template=template,
    )


# --- rows of no use -----------------------------------------------------------------------------


def refuses_bad_rows(policy: BadRowPolicy, own_data: bool) -> bool:
    return policy == "refuse" or (policy is None and own_data)


def check_rejected(
    task: str, policy: BadRowPolicy, own_data: bool, rejected: Sequence[BadRow], num_rows: int
) -> None:
    """Raise UserError with the reasons, up to a limit, unless these rows may be dropped."""
    if not rejected or (policy == "drop" and len(rejected) < num_rows):
        return
    if refuses_bad_rows(policy, own_data):
        limit = min(max(1, MAX_SHARE_WITHOUT_COMPLETION * num_rows), num_rows - 1)
        if len(rejected) <= limit and all(isinstance(row, NoCompletion) for row in rejected):
            return
    elif policy is None and len(rejected) <= MAX_PUBLISHED_SHARE * num_rows:
        return
    remedy = (
        "correct them: no row is left"
        if policy == "drop"
        else "correct them, or leave them out with 'on_bad_rows: drop' in the task; dropped rows "
        "are counted in every record"
    )
    shown: list[RankscopeError | str] = [*rejected[:MAX_SHOWN]]
    if len(rejected) > MAX_SHOWN:
        shown.append(f"... and {len(rejected) - MAX_SHOWN:,} more")
    found = f"{len(rejected):,} of {count(num_rows, 'row')} that cannot be used"
    raise UserError(f"task {task!r}", found, do=remedy, faults=shown)


def rejected_note(task: str, rejected: Sequence[BadRow], num_rows: int) -> str:
    shown = "; ".join(map(str, rejected[:MAX_SHOWN_IN_NOTE]))
    more = len(rejected) - MAX_SHOWN_IN_NOTE
    return f"{task}: {len(rejected):,} of {count(num_rows, 'row')} were dropped: {shown}" + (
        f"; and {more:,} more" if more > 0 else ""
    )
