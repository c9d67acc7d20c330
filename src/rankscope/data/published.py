"""The shapes in which the named tasks' data stand on the hub, each read as one row's content.

Every reader takes a row and whether the data are the user's own (strict), and gives its content.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankscope.data.rows import (
    FlawedRow,
    NoCompletion,
    RowContent,
    completion_of,
    multiple_choice,
    text_of,
)
from rankscope.data.sources import RawRow
from rankscope.errors import UserError


def read_labelled_choices(row: RawRow, strict: bool) -> RowContent:
    """ARC and OpenBookQA: ``choices`` {text, label}, the answer one of the labels."""
    question = text_of(row, "question_stem" if "question_stem" in row.fields else "question")
    choices = row.fields["choices"]
    if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
        raise UserError(f"{row.where}: choices must be an object with 'text' and 'label'")
    key, labels = row.fields.get("answerKey"), list(choices["label"])
    if key is None or key == "":
        raise NoCompletion("answerKey")
    if key not in labels:
        raise UserError(f"{row.where}: answerKey {key!r} is none of the labels {labels}")
    return multiple_choice(row, question, choices["text"], labels.index(key), strict)


def read_yes_no(row: RawRow, strict: bool) -> RowContent:
    """BoolQ: a question answered by true or false."""
    question = text_of(row, "question").strip().rstrip("?").rstrip() + "?"
    return multiple_choice(row, question, ("no", "yes"), int(row.fields["answer"]), strict)


def _index(row: RawRow, name: str) -> int:
    """An index from 0, as a number or in digits; -1 or an empty text say it is withheld."""
    value = row.fields.get(name)
    if value is None or value in (-1, "", "-1"):
        raise NoCompletion(name)
    if isinstance(value, bool) or not str(value).isdecimal():
        raise UserError(f"{row.where}: field {name!r} is {value!r}, expected an index from 0")
    return int(value)


def read_medmcqa(row: RawRow, strict: bool) -> RowContent:
    options = [row.fields[name] for name in ("opa", "opb", "opc", "opd")]
    index = _index(row, "cop")
    return multiple_choice(row, text_of(row, "question"), options, index, strict)


def read_piqa(row: RawRow, strict: bool) -> RowContent:
    options = [row.fields["sol1"], row.fields["sol2"]]
    return multiple_choice(row, text_of(row, "goal"), options, _index(row, "label"), strict)


def read_casehold(row: RawRow, strict: bool) -> RowContent:
    label = _index(row, "label")
    return multiple_choice(row, text_of(row, "context"), row.fields["endings"], label, strict)


OPTION_MARK = re.compile(r"(?:^|,)\s*([a-e])\s*\)\s*")


def read_mathqa(row: RawRow, strict: bool) -> RowContent:
    """MathQA: options in one string, ``a ) 38 , b ) 27.675 , ...``, the answer a letter."""
    parts = OPTION_MARK.split(text_of(row, "options"))
    letters, options = parts[1::2], [part.strip() for part in parts[2::2]]
    if letters != list("abcde") or not all(options):
        message = f"{row.where}: options do not read as 'a ) .. , b ) .. , .. e ) ..'"
        raise UserError(message) if strict else FlawedRow(message)
    key = completion_of(row, "correct").strip().lower()
    if key not in letters:
        raise UserError(f"{row.where}: correct is {key!r}, expected a letter from a to e")
    return multiple_choice(row, text_of(row, "Problem"), options, letters.index(key), strict)


def read_hellaswag(row: RawRow, strict: bool) -> RowContent:
    """HellaSwag (Zellers et al., 1905.07830): a described scene, and four endings of it.

    Its text is cleaned as lm-evaluation-harness does, see :func:`without_brackets`.
    """
    begun = text_of(row, "ctx_b")
    scene = f"{text_of(row, 'ctx_a')} {begun.capitalize()}"
    endings = row.fields["endings"]
    is_list = isinstance(endings, Sequence) and not isinstance(endings, str)
    if not is_list or not all(isinstance(one, str) for one in endings):
        raise UserError(f"{row.where}: endings must be a list of texts")
    return multiple_choice(
        row,
        without_brackets(f"{text_of(row, 'activity_label')}: {scene}"),
        [without_brackets(ending) for ending in endings],
        _index(row, "label"),
        strict,
        template="{question}",
    )


def without_brackets(text: str) -> str:
    """A text without WikiHow's marks: `` [title]`` ends a sentence, other brackets go.

    Two spaces in a row become one, once: what a published score of HellaSwag was measured on.
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


BLANK = "_"
"""Where an option goes in a sentence of WinoGrande."""


def read_winogrande(row: RawRow, strict: bool) -> RowContent:
    """WinoGrande (Sakaguchi et al., 1907.10641): a sentence with a blank, and two names for it.

    ``contexts`` are the sentence up to the blank with each option in it; the completion is what
    follows, the same for both: its probability after either is what is compared (Trinh & Le,
    1806.02847, "partial" scoring).
    """
    sentence = text_of(row, "sentence")
    before, blank, after = sentence.partition(BLANK)
    if not blank or not after.strip():
        message = f"{row.where}: sentence {sentence[:60]!r} has no {BLANK!r} with text after it"
        raise UserError(message) if strict else FlawedRow(message)
    key = row.fields.get("answer")
    if key is None or key == "":
        raise NoCompletion("answer")
    if str(key) not in ("1", "2"):
        raise UserError(f"{row.where}: answer is {key!r}, expected '1' or '2'")
    options = [text_of(row, "option1"), text_of(row, "option2")]
    content = multiple_choice(row, sentence, options, int(key) - 1, strict, template="{question}")
    contexts = tuple(before + option for option in content.choices)
    return replace(content, contexts=contexts, continuation=after.strip())
