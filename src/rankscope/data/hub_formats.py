"""Readers of published data sets, one per shape in which the named tasks are on the hub."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rankscope.config.section import short_repr
from rankscope.data.items import LETTERS
from rankscope.data.rows import (
    BadRow,
    NoCompletion,
    RowContent,
    completion_field,
    index_field,
    is_missing,
    multiple_choice,
    text_field,
)
from rankscope.data.sources import RawRow

OPTION_MARK = re.compile(r"(?:^|,)\s*([a-e])\s*\)\s*")
BLANK = "_"  # Place of the option in a sentence of WinoGrande


def read_labeled_choices(row: RawRow) -> RowContent:
    """ARC, OpenBookQA, CommonsenseQA: choices with a label each, the answer one of the labels.

    Choices are {text, label} with a list in each, or a list of {text, label}; in the sets' own
    files ``question`` is {stem, choices}.
    """
    inner = row.fields.get("question")
    fields = inner if isinstance(inner, Mapping) else row.fields
    name = next((key for key in ("stem", "question_stem") if key in fields), "question")
    question = text_field(RawRow(row.location, row.number, fields), name)
    choices = fields.get("choices")
    if isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        choices = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    texts, labels = (
        (choices.get("text"), choices.get("label")) if isinstance(choices, Mapping) else (0, 0)
    )
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise BadRow("choices must have 'text' and 'label', lists of equal length")
    key = row.fields.get("answerKey")
    if is_missing(key):
        raise NoCompletion("answerKey")
    if key not in labels:
        raise BadRow(f"answerKey {short_repr(key)} is not one of the labels {short_repr(labels)}")
    return multiple_choice(row, question, texts, labels.index(key))


def read_lettered_columns(row: RawRow) -> RowContent:
    """A table with the choices in columns A, B, C, ..., as MMLU's own files have them."""
    names = [letter for letter in LETTERS if letter in row.fields]
    choices = [row.fields[name] for name in names if not is_missing(row.fields[name])]
    return multiple_choice(row, text_field(row, "question"), choices, row.fields.get("answer"))


def read_yes_no(row: RawRow) -> RowContent:
    """BoolQ: a question with a true or false answer."""
    question = text_field(row, "question").strip().rstrip("?").rstrip() + "?"
    return multiple_choice(row, question, ("no", "yes"), int(row.fields["answer"]))


def _indexed_choices(
    question: str, choices: tuple[str, ...], label: str
) -> Callable[..., RowContent]:
    """A reader of rows with the choices in some fields, or all in one, and the answer's index."""

    def read(row: RawRow) -> RowContent:
        options = [row.fields[name] for name in choices]
        options = options[0] if len(options) == 1 else options
        return multiple_choice(row, text_field(row, question), options, index_field(row, label))

    return read


read_medmcqa = _indexed_choices("question", ("opa", "opb", "opc", "opd"), "cop")
read_piqa = _indexed_choices("goal", ("sol1", "sol2"), "label")
read_casehold = _indexed_choices("context", ("endings",), "label")


def read_mathqa(row: RawRow) -> RowContent:
    """MathQA: options in one string, ``a ) 38 , b ) 27.675 , ...``, the answer a letter."""
    parts = OPTION_MARK.split(text_field(row, "options"))
    letters, options = parts[1::2], [part.strip() for part in parts[2::2]]
    if letters != list("abcde") or not all(options):
        raise BadRow("options do not read as 'a ) .. , b ) .. , .. e ) ..'")
    key = completion_field(row, "correct").strip().lower()
    if key not in letters:
        raise BadRow(f"correct is {short_repr(key)}, expected a letter from a to e")
    return multiple_choice(row, text_field(row, "Problem"), options, letters.index(key))


def read_hellaswag(row: RawRow) -> RowContent:
    """HellaSwag (Zellers et al., 1905.07830): a scene and four endings.

    The text is cleaned as in lm-evaluation-harness, see :func:`remove_brackets`.
    """
    scene = f"{text_field(row, 'ctx_a')} {text_field(row, 'ctx_b').capitalize()}"
    endings = row.fields["endings"]
    is_list = isinstance(endings, Sequence) and not isinstance(endings, str)
    if not is_list or not all(isinstance(ending, str) for ending in endings):
        raise BadRow("endings must be a list of texts")
    return multiple_choice(
        row,
        remove_brackets(f"{text_field(row, 'activity_label')}: {scene}"),
        [remove_brackets(ending) for ending in endings],
        index_field(row, "label"),
        template="{question}",
    )


def remove_brackets(text: str) -> str:
    """Remove WikiHow's marks: `` [title]`` ends a sentence, other brackets are deleted.

    Two spaces become one, in a single pass: published scores of HellaSwag were measured on that.
    """
    lines = text.strip().replace(" [title]", ". ").split("\n")
    for position, line in enumerate(lines):
        # Up to the last bracket: without one, each "[" would search the rest of a long line.
        whole, bracket, rest = line.rpartition("]")
        lines[position] = re.sub(r"\[.*?\]", "", whole + bracket) + rest
    return "\n".join(lines).replace("  ", " ")


def read_winogrande(row: RawRow) -> RowContent:
    """WinoGrande (Sakaguchi et al., 1907.10641): a sentence with a blank, and two names for it.

    ``contexts`` are the sentence up to the blank, filled with each option; ``continuation`` is the
    rest, the same for both. The option after which it is more probable is the answer ("partial"
    scoring, Trinh & Le, 1806.02847).
    """
    sentence = text_field(row, "sentence")
    before, blank, after = sentence.partition(BLANK)
    if not blank or not after.strip():
        raise BadRow(f"sentence {short_repr(sentence)} has no {BLANK!r} with text after it")
    key = row.fields.get("answer")
    if is_missing(key):
        raise NoCompletion("answer")
    if str(key) not in ("1", "2"):
        raise BadRow(f"answer is {short_repr(key)}, expected '1' or '2'")
    options = [text_field(row, "option1"), text_field(row, "option2")]
    content = multiple_choice(row, sentence, options, int(str(key)) - 1, template="{question}")
    contexts = tuple(before + option for option in content.choices)
    return replace(content, contexts=contexts, continuation=after.strip())
