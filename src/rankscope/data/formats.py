"""The shapes of rows, recognized by their fields, and a reader for each.

All rows of a file have the shape of its first row. Recognized shapes: chat (``messages``, or the
``conversations`` of ShareGPT), ``prompt`` + ``completion`` (text or messages), ``text``, ``text`` +
``label``, alpaca (``instruction``, ``input``, ``output``), multiple choice (``question``,
``choices``, ``answer``), question with a written answer, and the shapes of published data sets
(``hub.py``).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from typing import Any

from rankscope.config.section import short_repr
from rankscope.data import hub
from rankscope.data.items import LETTERS, Item, Message
from rankscope.data.rows import (
    QUESTION_PROMPT,
    BadRow,
    NoCompletion,
    RawRow,
    completion_field,
    messages_field,
    multiple_choice,
    subject_field,
    text_field,
)
from rankscope.errors import UserError, did_you_mean, reason_of

KNOWN_SHAPES = (
    "messages | conversations | prompt, completion | prompt, chosen, rejected | text | text, label "
    "| instruction, input, output | question, choices, answer | question, answer"
)
PAIR = ("chosen", "rejected")
ASKED, CHATS = frozenset({"prompt", "question"}), frozenset({"messages", "conversations"})
ANSWERS = frozenset({"output", "completion", "response", "answer", "choices"})
LABELED_PROMPT = "Text: {question}\nLabel:"
MAX_FIELD_NAMES = 300  # Characters of the names of a row's fields that a message shows
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")

RowReader = Callable[[RawRow], Item]
"""Reads one row, and may raise BadRow. ``_parse_rows`` fills in ``fields``."""


def _read_chat(row: RawRow) -> Item:
    field = "messages" if "messages" in row.fields else "conversations"
    messages, system = messages_field(row, field), row.fields.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return _conversation(messages, field)


def _conversation(messages: Sequence[Message], field: str) -> Item:
    """Read a conversation through its last answered assistant turn; its question is the user's
    turns."""
    answered = [
        position
        for position, message in enumerate(messages)
        if message.role == "assistant" and message.content.strip()
    ]
    if not answered:
        raise NoCompletion(field)
    *earlier, last = messages[: answered[-1] + 1]
    return Item(
        question="\n".join(turn.content for turn in earlier if turn.role == "user"),
        completion=last.content,
        messages=(*earlier, last),
        reference=last.content.strip(),
    )


def _read_pair(row: RawRow) -> Item:
    """Read a preferred and a rejected answer to one prompt, as the two choices of an item.

    They are conversations whose last turns differ, or texts with a ``prompt``, a ``question`` or a
    common beginning.
    """
    asked = next((name for name in ("prompt", "question") if name in row.fields), None)
    if isinstance(row.fields["chosen"], list):
        is_apart = asked is not None and isinstance(row.fields[asked], list)
        before = messages_field(row, asked) if asked and is_apart else ()
        chosen, rejected = ((*before, *messages_field(row, name)) for name in PAIR)
        if asked and not is_apart and not any(turn.role == "user" for turn in chosen):
            prompt = Message("user", text_field(row, asked))
            chosen, rejected = ((*c[:-1], prompt, *c[-1:]) for c in (chosen, rejected))
        if isinstance(system := row.fields.get("system"), str) and system.strip():
            turn = () if chosen[:1] and chosen[0].role == "system" else (Message("system", system),)
            chosen, rejected = (*turn, *chosen), (*turn, *rejected)
        if chosen[:-1] != rejected[:-1] or not chosen or rejected[-1].role != "assistant":
            found, rule = "conversations that differ before their last turn", "one prompt"
            raise BadRow(f"'chosen' and 'rejected': {found}", f"{rule} and two answers to it")
        item, texts = _conversation(chosen, "chosen"), (chosen[-1].content, rejected[-1].content)
    else:
        texts = completion_field(row, "chosen"), completion_field(row, "rejected")
        question = text_field(row, asked) if asked else _common_beginning(*texts)
        texts = texts if asked else (texts[0][len(question) :], texts[1][len(question) :])
        item = Item(question=question, completion=texts[0], reference=texts[0].strip())
        if isinstance(system := row.fields.get("system"), str) and system.strip():
            turns = (("system", system), ("user", question), ("assistant", texts[0]))
            item = replace(item, messages=tuple(Message(*turn) for turn in turns))
    if missing := next(
        (name for name, text in zip(PAIR, texts, strict=True) if not text.strip()), ""
    ):
        raise NoCompletion(missing)
    if texts[0].strip() == texts[1].strip():
        raise BadRow("'chosen' and 'rejected' that are equal", "two different answers")
    return replace(item, choices=texts, answer=0)


def _common_beginning(*texts: str) -> str:
    """Return the whole words that all texts begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    common = "".join(letters[0] for letters in same)
    return common[: max(common.rfind(" "), common.rfind("\n")) + 1].rstrip(" ")


def _read_prompt_completion(row: RawRow) -> Item:
    if not isinstance(row.fields["prompt"], str | None):
        if not row.fields.get("completion"):
            raise NoCompletion("completion")
        messages = messages_field(row, "prompt") + messages_field(row, "completion")
        return _conversation(messages, "completion")
    text = completion_field(row, "completion", "response")
    return Item(question=text_field(row, "prompt"), completion=text, reference=text.strip())


def _read_labeled_text(row: RawRow) -> Item:
    """Read a text with its label as a written answer; ``_as_options`` turns few labels into
    options."""
    label = row.fields["label"]
    text = str(label).lower() if isinstance(label, bool) else completion_field(row, "label").strip()
    question = text_field(row, "text")
    return Item(question=question, completion=text, reference=text, template=LABELED_PROMPT)


def _read_alpaca(row: RawRow) -> Item:
    """Read a row of Alpaca, or of Dolly, which calls input and output ``context`` and
    ``response``."""
    parts = [
        text_field(row, "instruction"),
        str(row.fields.get("input") or row.fields.get("context") or ""),
    ]
    question = "\n\n".join(part for part in parts if part.strip())
    output = completion_field(row, "output", "response")
    return Item(
        question=question, completion=output, reference=output.strip(), template="{question}\n\n"
    )


def _read_written_answer(row: RawRow) -> Item:
    """Read a question with a written answer, or with a chain that ends in ``#### number``
    (GSM8K)."""
    chain = CALCULATOR_MARK.sub("", completion_field(row, "answer"))
    _, mark, final = chain.rpartition("####")
    return Item(
        question=text_field(row, "question"),
        completion=chain,
        subject=subject_field(row),
        reference=final.strip().replace(",", "") if mark else chain.strip(),
        template=QUESTION_PROMPT,
    )


def _read_multiple_choice(row: RawRow) -> Item:
    question, answer = text_field(row, "question"), row.fields.get("answer")
    return multiple_choice(row, question, row.fields["choices"], answer)


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape: the fields that mark it, and the reader of its rows."""

    name: str
    marks: frozenset[str]
    read: RowReader
    fits: Callable[[Mapping[str, Any]], bool] = lambda fields: True
    """Further condition on the fields of a row."""


LABELED_TEXT = "text and label"
PLAIN_TEXT = Shape(
    "text", frozenset({"text"}), lambda row: Item(completion=completion_field(row, "text"))
)

# The first match is taken, so narrower shapes come before wider ones.
SHAPES: tuple[Shape, ...] = (
    Shape("a pair of answers", frozenset(PAIR), _read_pair,
          lambda fields: not ANSWERS & fields.keys()
          and bool(ASKED & fields.keys() or not CHATS & fields.keys())),
    Shape("messages", frozenset({"messages"}), _read_chat),
    Shape("conversations", frozenset({"conversations"}), _read_chat),
    Shape("prompt and completion", frozenset({"prompt"}), _read_prompt_completion),
    Shape("alpaca", frozenset({"instruction"}), _read_alpaca),
    Shape("medmcqa", frozenset({"question", "opa", "opb", "opc", "opd"}), hub.read_medmcqa),
    Shape("piqa", frozenset({"goal", "sol1", "sol2"}), hub.read_piqa),
    Shape("hellaswag", frozenset({"activity_label", "ctx_a", "ctx_b", "endings"}),
          hub.read_hellaswag),
    Shape("winogrande", frozenset({"sentence", "option1", "option2"}), hub.read_winogrande),
    Shape("casehold", frozenset({"context", "endings"}), hub.read_casehold),
    Shape("mathqa", frozenset({"Problem", "options"}), hub.read_mathqa),
    Shape("labeled choices", frozenset({"choices"}), hub.read_labeled_choices,
          lambda fields: isinstance(fields["choices"], Mapping) or "answerKey" in fields),
    Shape("labeled choices", frozenset({"question"}), hub.read_labeled_choices,
          lambda fields: isinstance(fields["question"], Mapping)),
    Shape("lettered columns", frozenset({"question", "A", "B", "answer"}),
          hub.read_lettered_columns),
    Shape("multiple choice", frozenset({"question", "choices"}), _read_multiple_choice),
    Shape("yes or no", frozenset({"question", "answer"}), hub.read_yes_no,
          lambda fields: isinstance(fields["answer"], bool)),
    Shape("question and answer", frozenset({"question"}), _read_written_answer),
    Shape(LABELED_TEXT, frozenset({"text", "label"}), _read_labeled_text),
    PLAIN_TEXT,
)  # fmt: skip


def _shape_of(row: RawRow, custom: Sequence[Shape] = ()) -> Shape | None:
    """Find the shape of a row; ``custom`` shapes take precedence over the built-in ones."""
    for shape in (*custom, *SHAPES):
        if shape.marks <= row.fields.keys() and shape.fits(row.fields):
            return shape
    return None


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The usable rows of one file with their content, and the others with their reasons."""

    rows: tuple[tuple[RawRow, Item], ...]
    rejected: tuple[BadRow, ...]
    shape: str  # Name of the shape of all rows
    unread: tuple[str, ...]  # Fields of the rows that nothing reads, except prompt templates


FieldNames = Mapping[str, str | list[str]]
"""Maps a field of the shape to the row's name for it, or to the names that form a list."""


class _NotedFields(dict[str, Any]):
    """The fields of a row; ``read`` collects the names of the fields that a reader takes."""

    def __init__(self, fields: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(fields)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)


def _rename_fields(row: RawRow, names: FieldNames) -> RawRow:
    """Return the mapped fields of a row under the names of its shape.

    A subject belongs to no shape: if only it is mapped, the other fields keep their names.
    """

    def value(name: str) -> Any:
        if name not in row.fields:
            raise _no_field(row, name)
        return row.fields[name]

    fields = {
        field: [value(one) for one in name] if isinstance(name, list) else value(name)
        for field, name in names.items()
    }
    others = row.fields if names.keys() == {"subject"} else {}
    if "messages" in names and "system" in row.fields:
        others = {"system": row.fields["system"]}
    return RawRow(row.location, row.number, {**others, **fields})


def _no_field(row: RawRow, name: str) -> BadRow:
    known, hint = _field_names(row), did_you_mean(name, row.fields)
    return BadRow(f"no field {name!r}, named in 'fields:'", f"one of {known}", hint)


def parse_files(
    files: Mapping[str, Sequence[RawRow]],
    names: FieldNames | None = None,
    shapes: Sequence[Shape] = (),
) -> dict[str, ParsedFile]:
    """Read the rows of a task by split file, as :func:`_parse_rows` does.

    Texts with few labels become a classification, whose options are the labels. Raises BadRow: no
    row has a name in ``names``.
    """
    readable = [row for rows in files.values() for row in rows if row.problem is None]
    known = {name for row in readable for name in row.fields}
    for name in chain(*([n] if isinstance(n, str) else n for n in (names or {}).values())):
        if readable and name not in known:
            raise _no_field(readable[0], name).at(readable[0])
    parsed = {file: _parse_rows(rows, names=names, shapes=shapes) for file, rows in files.items()}
    labeled = [name for name, file in parsed.items() if file.shape == LABELED_TEXT]
    if not labeled:
        return parsed
    rule = f"a label, as the {labeled[0]} rows have"
    for name in set(parsed).difference(labeled):
        file = parsed[name]
        bad = [BadRow("no label", rule).at(row) for row, _ in file.rows]
        parsed[name] = replace(file, rows=(), rejected=(*file.rejected, *bad))
    # Training cannot teach a label that no training row has.
    learned = [parsed["train"]] if "train" in parsed else parsed.values()
    classes = _classes([content.completion for file in learned for _, content in file.rows])
    return {name: _as_options(file, classes) for name, file in parsed.items() if classes} or parsed


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the options of a classification: 2 to 26 labels, with two rows each on average.

    Labels that are more numerous, rarer or fractions are free texts or measurements. They give no
    options.
    """
    distinct = set(labels)
    if not 2 <= len(distinct) <= min(len(LETTERS), len(labels) / 2):
        return ()
    if any(re.fullmatch(r"-?[0-9]*\.[0-9]*[1-9]", label) for label in distinct):
        return ()
    are_counts = all(re.fullmatch(r"-?[0-9]{1,9}", label) for label in distinct)
    return tuple(sorted(distinct, key=int if are_counts else str))


def _as_options(file: ParsedFile, classes: tuple[str, ...]) -> ParsedFile:
    rows: list[tuple[RawRow, Item]] = []
    rejected = list(file.rejected)
    for row, content in file.rows:
        label = content.completion
        if label in classes:
            answer = classes.index(label)
            rows.append((row, replace(content, choices=classes, answer=answer)))
        else:
            rule = f"one of the training rows': {', '.join(map(short_repr, classes))}"
            bad = BadRow(f"the label {short_repr(label)}", rule)
            rejected.append(bad.at(row))
    return replace(file, rows=tuple(rows), rejected=tuple(rejected))


def _parse_rows(
    rows: Sequence[RawRow], *, names: FieldNames | None = None, shapes: Sequence[Shape] = ()
) -> ParsedFile:
    """Parse every row of one file; all must have the shape of the first.

    Args:
        names: the rows' names for the fields of their shape; prompt templates may use both.
        shapes: further shapes, tried before the built-in ones.
    """
    parsed: list[tuple[RawRow, Item]] = []
    rejected: list[BadRow] = []
    expected: Shape | None = None
    fields: dict[str, None] = {}
    read: set[str] = set()
    for original in rows:
        fields.update(dict.fromkeys(original.fields))
        try:
            if original.problem:
                raise original.problem
            row = _rename_fields(original, names) if names else original
            shape = _shape_of(row, shapes)
            if expected is None:
                expected, first = shape or _unknown_shape(row), row.location
            if shape is not expected and (shape is None or shape.read != expected.read):
                found = f"the shape {shape.name!r}" if shape else f"the fields {_field_names(row)}"
                raise BadRow(found, f"{expected.name!r} as in {first}")
            content = expected.read(replace(row, fields=_NotedFields(row.fields, read)))
            if names and "subject" in names:  # few shapes read it themselves
                content = replace(content, subject=subject_field(row))
            parsed.append((row, replace(content, fields={**original.fields, **row.fields})))
        except NoCompletion as error:
            renamed = NoCompletion(str((names or {}).get(error.field, error.field)))
            rejected.append(renamed.at(original))
        except BadRow as error:
            rejected.append(error.at(original))
        except RecursionError as error:  # raised where its value is compared or shown
            rejected.append(BadRow(f"a value {reason_of(error)}", "a flat row").at(original))
    for name in (names or {}).values():
        read.update(name if isinstance(name, list) else [name])
    unread = tuple(name for name in fields if name not in read)
    return ParsedFile(tuple(parsed), tuple(rejected), expected.name if expected else "", unread)


def _field_names(row: RawRow) -> str:
    names = ", ".join(map(repr, row.fields)) or "(none)"
    return names if len(names) < MAX_FIELD_NAMES else names[:MAX_FIELD_NAMES] + "..."


def _unknown_shape(row: RawRow) -> Shape:
    raise UserError(
        row.location,
        f"the fields {_field_names(row)}, which fit no known shape",
        KNOWN_SHAPES,
        "name them in the task, such as fields: {question: COLUMN, choices: [COLUMN, COLUMN, ...], "
        "answer: COLUMN}; a table needs a header",
    )
