"""Readers of published data sets, one per shape in which the named tasks are on the hub."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankscope.data.rows import (
    FlawedRow,
    NoCompletion,
    RowContent,
    completion_field,
    index_field,
    multiple_choice,
    text_field,
)
from rankscope.data.sources import RawRow
from rankscope.errors import UserError

OPTION_MARK = re.compile(r"(?:^|,)\s*([a-e])\s*\)\s*")
BLANK = "_"
"""Place of the option in a sentence of WinoGrande."""


def read_labelled_choices(row: RawRow) -> RowContent:
    """ARC and OpenBookQA: ``choices`` {text, label}, the answer one of the labels."""
    question = text_field(row, "question_stem" if "question_stem" in row.fields else "question")
    choices = row.fields["choices"]
    if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
        raise UserError(f"{row.location}: choices must be an object with 'text' and 'label'")
    key, labels = row.fields.get("answerKey"), list(choices["label"])
    if key is None or key == "":
        raise NoCompletion("answerKey")
    if key not in labels:
        raise UserError(f"{row.location}: answerKey {key!r} is not one of the labels {labels}")
    return multiple_choice(row, question, choices["text"], labels.index(key))


def read_yes_no(row: RawRow) -> RowContent:
    """BoolQ: a question with a true or false answer."""
    question = text_field(row, "question").strip().rstrip("?").rstrip() + "?"
    return multiple_choice(row, question, ("no", "yes"), int(row.fields["answer"]))


def read_medmcqa(row: RawRow) -> RowContent:
    options = [row.fields[name] for name in ("opa", "opb", "opc", "opd")]
    return multiple_choice(row, text_field(row, "question"), options, index_field(row, "cop"))


def read_piqa(row: RawRow) -> RowContent:
    options = [row.fields["sol1"], row.fields["sol2"]]
    return multiple_choice(row, text_field(row, "goal"), options, index_field(row, "label"))


def read_casehold(row: RawRow) -> RowContent:
    label = index_field(row, "label")
    return multiple_choice(row, text_field(row, "context"), row.fields["endings"], label)


def read_mathqa(row: RawRow) -> RowContent:
    """MathQA: options in one string, ``a ) 38 , b ) 27.675 , ...``, the answer a letter."""
    parts = OPTION_MARK.split(text_field(row, "options"))
    letters, options = parts[1::2], [part.strip() for part in parts[2::2]]
    if letters != list("abcde") or not all(options):
        raise FlawedRow("options do not read as 'a ) .. , b ) .. , .. e ) ..'")
    key = completion_field(row, "correct").strip().lower()
    if key not in letters:
        raise UserError(f"{row.location}: correct is {key!r}, expected a letter from a to e")
    return multiple_choice(row, text_field(row, "Problem"), options, letters.index(key))


def read_hellaswag(row: RawRow) -> RowContent:
    """HellaSwag (Zellers et al., 1905.07830): a scene and four endings.

    The text is cleaned as in lm-evaluation-harness, see :func:`remove_brackets`.
    """
    scene = f"{text_field(row, 'ctx_a')} {text_field(row, 'ctx_b').capitalize()}"
    endings = row.fields["endings"]
    is_list = isinstance(endings, Sequence) and not isinstance(endings, str)
    if not is_list or not all(isinstance(ending, str) for ending in endings):
        raise UserError(f"{row.location}: endings must be a list of texts")
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
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def read_winogrande(row: RawRow) -> RowContent:
    """WinoGrande (Sakaguchi et al., 1907.10641): a sentence with a blank, and two names for it.

    ``contexts`` are the sentence up to the blank, filled with each option; ``continuation`` is the
    rest, the same for both. The option after which it is more probable is the answer ("partial"
    scoring, Trinh & Le, 1806.02847).
    """
    sentence = text_field(row, "sentence")
    before, blank, after = sentence.partition(BLANK)
    if not blank or not after.strip():
        raise FlawedRow(f"sentence {sentence[:60]!r} has no {BLANK!r} with text after it")
    key = row.fields.get("answer")
    if key is None or key == "":
        raise NoCompletion("answer")
    if str(key) not in ("1", "2"):
        raise UserError(f"{row.location}: answer is {key!r}, expected '1' or '2'")
    options = [text_field(row, "option1"), text_field(row, "option2")]
    content = multiple_choice(row, sentence, options, int(key) - 1, template="{question}")
    contexts = tuple(before + option for option in content.choices)
    return replace(content, contexts=contexts, continuation=after.strip())
