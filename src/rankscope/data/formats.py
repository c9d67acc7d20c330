"""The shapes a row may have, recognised by their fields, and what each says.

A file has one shape: that of its first row. Recognised are chat (``messages``),
``prompt`` + ``completion`` (text or messages), ``text``, alpaca (``instruction``, ``input``,
``output``), multiple choice (``question``, ``choices``, ``answer``) and question with a written
answer, besides the shapes in which the named tasks' data stand on the hub.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankscope.data.items import LETTERS, Message
from rankscope.data.sources import RawRow
from rankscope.errors import BadInput

ROLES = ("system", "user", "assistant", "tool")


class NoCompletion(Exception):
    """The row has nothing to learn or to score: it is dropped and counted."""


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
    template: str = "{question}"
    """Default prompt of the shape."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's own fields, for prompt templates."""


# --- fields -------------------------------------------------------------------------------------


def _text(row: RawRow, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise BadInput(f"{row.where}: field {name!r} holds {found}, expected text")
    return value


def _completion(row: RawRow, name: str) -> str:
    """A text that may be missing or blank, in which case the row has no completion."""
    value = row.fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise NoCompletion
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(row, name)


def _subject(row: RawRow, name: str = "subject") -> str | None:
    value = row.fields.get(name)
    return None if value is None else str(value)


def _messages(row: RawRow, name: str) -> tuple[Message, ...]:
    value = row.fields.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadInput(f"{row.where}: field {name!r} must be a list of messages")
    messages = []
    for position, message in enumerate(value, start=1):
        if not isinstance(message, Mapping):
            raise BadInput(f"{row.where}: message {position} of {name!r} is not an object")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise BadInput(
                f"{row.where}: message {position} of {name!r} has role {role!r} and content of "
                f"type {type(content).__name__}; expected a role out of {', '.join(ROLES)} and text"
            )
        messages.append(Message(role, content))
    return tuple(messages)


def _choice_texts(row: RawRow, values: object) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise BadInput(f"{row.where}: choices must be a list of texts")
    texts = tuple(str(value) for value in values if isinstance(value, str | int | float))
    if len(texts) != len(values) or not 2 <= len(texts) <= len(LETTERS):
        raise BadInput(
            f"{row.where}: found {len(texts)} usable choices out of {len(values)}; expected 2 to "
            f"{len(LETTERS)} texts"
        )
    return texts


def answer_index(row: RawRow, answer: object, choices: tuple[str, ...]) -> int:
    """Index of the right option: given as an index from 0, as a letter or as the option's text.

    Raises:
        BadInput: where it names no option.
        NoCompletion: where there is none.
    """
    if answer is None or answer == "":
        raise NoCompletion
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
    raise BadInput(
        f"{row.where}: answer {answer!r} names none of the {len(choices)} choices; expected an "
        f"index from 0 to {len(choices) - 1}, a letter from A to {LETTERS[len(choices) - 1]} or "
        "the text of a choice"
    )


def _multiple_choice(
    row: RawRow,
    question: str,
    values: object,
    answer: object,
    strict: bool,
    template: str = "Question: {question}\nAnswer:",
) -> RowContent:
    choices = _choice_texts(row, values)
    index = answer_index(row, answer, choices)
    stripped = [choice.strip() for choice in choices]
    repeated = [choice for choice in stripped if stripped.count(choice) > 1]
    if strict and repeated:
        raise BadInput(
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
        subject=_subject(row),
        reference=choices[index],
        template=template,
        fields=row.fields,
    )


# --- shapes -------------------------------------------------------------------------------------
# Each reader takes a row and whether the data are the user's own (strict), and gives its content.


def _read_chat(row: RawRow, strict: bool) -> RowContent:
    return _conversation(row, _messages(row, "messages"))


def _conversation(row: RawRow, messages: tuple[Message, ...]) -> RowContent:
    """A conversation up to its last assistant turn: what follows that has no answer."""
    answered = [
        position
        for position, message in enumerate(messages)
        if message.role == "assistant" and message.content.strip()
    ]
    if not answered:
        raise NoCompletion
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
        text = _completion(row, "completion")
        return RowContent(
            question=_text(row, "prompt"),
            completion=text,
            reference=text.strip(),
            fields=row.fields,
        )
    if not completion:
        raise NoCompletion
    return _conversation(row, _messages(row, "prompt") + _messages(row, "completion"))


def _read_text(row: RawRow, strict: bool) -> RowContent:
    return RowContent(question="", completion=_completion(row, "text"), fields=row.fields)


def _read_alpaca(row: RawRow, strict: bool) -> RowContent:
    parts = [_text(row, "instruction"), row.fields.get("input") or ""]
    output = _completion(row, "output")
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
    answer = _completion(row, "answer")
    chain = CALCULATOR_MARK.sub("", answer)
    _, mark, final = chain.rpartition("####")
    return RowContent(
        question=_text(row, "question"),
        completion=chain,
        subject=_subject(row),
        reference=final.strip().replace(",", "") if mark else chain.strip(),
        template="Question: {question}\nAnswer:",
        fields=row.fields,
    )


def _read_choices(row: RawRow, strict: bool) -> RowContent:
    return _multiple_choice(
        row, _text(row, "question"), row.fields["choices"], row.fields.get("answer"), strict
    )


def _read_labelled_choices(row: RawRow, strict: bool) -> RowContent:
    """ARC and OpenBookQA: ``choices`` {text, label}, the answer one of the labels."""
    question = _text(row, "question_stem" if "question_stem" in row.fields else "question")
    choices = row.fields["choices"]
    if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
        raise BadInput(f"{row.where}: choices must be an object with 'text' and 'label'")
    key, labels = row.fields.get("answerKey"), list(choices["label"])
    if key is None or key == "":
        raise NoCompletion
    if key not in labels:
        raise BadInput(f"{row.where}: answerKey {key!r} is none of the labels {labels}")
    return _multiple_choice(row, question, choices["text"], labels.index(key), strict)


def _read_yes_no(row: RawRow, strict: bool) -> RowContent:
    """BoolQ: a question answered by true or false."""
    question = _text(row, "question").strip().rstrip("?").rstrip() + "?"
    return _multiple_choice(row, question, ("no", "yes"), int(row.fields["answer"]), strict)


def _index_or_none(row: RawRow, name: str) -> int | None:
    """An index from 0, where -1 says that the label is withheld."""
    value = row.fields.get(name)
    return None if value is None or value == -1 else int(value)


def _read_medmcqa(row: RawRow, strict: bool) -> RowContent:
    options = [row.fields[name] for name in ("opa", "opb", "opc", "opd")]
    index = _index_or_none(row, "cop")
    return _multiple_choice(row, _text(row, "question"), options, index, strict)


def _read_piqa(row: RawRow, strict: bool) -> RowContent:
    options = [row.fields["sol1"], row.fields["sol2"]]
    return _multiple_choice(row, _text(row, "goal"), options, _index_or_none(row, "label"), strict)


def _read_casehold(row: RawRow, strict: bool) -> RowContent:
    label = _index_or_none(row, "label")
    return _multiple_choice(row, _text(row, "context"), row.fields["endings"], label, strict)


OPTION_MARK = re.compile(r"(?:^|,)\s*([a-e])\s*\)\s*")


def _read_mathqa(row: RawRow, strict: bool) -> RowContent:
    """MathQA: options in one string, ``a ) 38 , b ) 27.675 , ...``, the answer a letter."""
    parts = OPTION_MARK.split(_text(row, "options"))
    letters, options = parts[1::2], [part.strip() for part in parts[2::2]]
    if letters != list("abcde") or not all(options):
        message = f"{row.where}: options do not read as 'a ) .. , b ) .. , .. e ) ..'"
        raise BadInput(message) if strict else FlawedRow(message)
    key = _completion(row, "correct").strip().lower()
    if key not in letters:
        raise BadInput(f"{row.where}: correct is {key!r}, expected a letter from a to e")
    return _multiple_choice(row, _text(row, "Problem"), options, letters.index(key), strict)


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
    Shape("medmcqa", frozenset({"question", "opa", "opb", "opc", "opd"}), _read_medmcqa),
    Shape("piqa", frozenset({"goal", "sol1", "sol2"}), _read_piqa),
    Shape("casehold", frozenset({"context", "endings"}), _read_casehold),
    Shape("mathqa", frozenset({"Problem", "options"}), _read_mathqa),
    Shape("labelled choices", frozenset({"choices"}), _read_labelled_choices,
          lambda fields: isinstance(fields["choices"], Mapping)),
    Shape("multiple choice", frozenset({"question", "choices"}), _read_choices),
    Shape("yes or no", frozenset({"question", "answer"}), _read_yes_no,
          lambda fields: isinstance(fields["answer"], bool)),
    Shape("question and answer", frozenset({"question"}), _read_written_answer),
    Shape("text", frozenset({"text"}), _read_text),
)  # fmt: skip


def shape_of(row: RawRow) -> Shape:
    """The shape of one row.

    Raises:
        BadInput: where the fields fit none; the message lists the shapes.
    """
    for shape in SHAPES:
        if shape.marks <= row.fields.keys() and shape.fits(row.fields):
            return shape
    raise BadInput(
        f"{row.where}: the fields {', '.join(map(repr, row.fields)) or '(none)'} fit no known "
        "shape; expected messages | prompt, completion | text | instruction, input, output | "
        "question, choices, answer | question, answer"
    )


@dataclass(frozen=True, slots=True)
class FileContents:
    """The readable rows of one file with their numbers, and how many were left out."""

    rows: tuple[tuple[int, RowContent], ...]
    without_completion: int
    flawed: int


MAX_SHARE_WITHOUT_COMPLETION = 0.01


def read_contents(rows: Sequence[RawRow], *, strict: bool) -> FileContents:
    """Every row of one file, all of the shape of the first.

    Args:
        rows: rows of one file, at least one.
        strict: the user's own data, where a flaw is an error; rows of a published data set that
            cannot be asked as they stand (the right choice twice, unreadable options) are counted
            and left out instead.

    Raises:
        BadInput: at the first row of another shape or with a wrong value, and where more than
            1 % of the user's own rows have no completion.
    """
    shape = shape_of(rows[0])
    read: list[tuple[int, RowContent]] = []
    missing: list[RawRow] = []
    flawed = 0
    for row in rows:
        found = shape_of(row)
        if found is not shape:
            raise BadInput(
                f"{row.where}: found the shape {found.name!r}, expected {shape.name!r} as in "
                f"{rows[0].where}; a file holds rows of one shape"
            )
        try:
            read.append((row.number, shape.read(row, strict)))
        except NoCompletion:
            missing.append(row)
        except FlawedRow:
            flawed += 1
    if len(missing) > MAX_SHARE_WITHOUT_COMPLETION * len(rows):
        raise BadInput(
            f"{missing[0].where}: no completion; so are {len(missing)} of {len(rows)} rows. Up to "
            "1 % would be left out and counted; more is an error: fill them in or remove them"
        )
    return FileContents(tuple(read), len(missing), flawed)
