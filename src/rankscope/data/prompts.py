"""Turns the content of a row into an item of its task: its prompt and its target."""

import re
from typing import Any

from rankscope.data.items import LETTERS, Item
from rankscope.data.numbers import ANSWER_MARK, extract_number, gold_number
from rankscope.data.registry import CHOICE_SCORERS, TaskSpec
from rankscope.data.rows import RowContent
from rankscope.errors import UserError


class NoSingleNumber(UserError):
    """The gold answer of a number task is not one number."""


def fill_template(template: str, content: RowContent, location: str) -> str:
    """Replace each plain ``{name}`` in a prompt template by a field; evaluate nothing.

    Raises:
        UserError: the template names a field that the row does not have.
    """
    values: dict[str, Any] = {**content.fields, "question": content.question}
    values["options"] = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, content.choices, strict=False)
    )

    def value_of(match: re.Match[str]) -> str:
        value = values.get(match[1])
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{location}: the prompt template names {{{match[1]}}}, which is not a text field "
                f"of this row; fields: {', '.join(values)}"
            )
        return str(value)

    return re.sub(r"\{(\w+)\}", value_of, template)


def make_item(content: RowContent, spec: TaskSpec, item_id: str, location: str) -> Item:
    """One row as an item of its task.

    Raises:
        NoSingleNumber: the scorer is ``number`` and the gold answer is not one number.
        UserError: the row does not fit the task's scorer or prompt.
    """
    if spec.scorer in CHOICE_SCORERS and content.answer is None:
        raise UserError(f"{location}: scorer {spec.scorer!r} needs rows with choices and an answer")
    reference = content.reference
    if spec.scorer == "number":
        written = content.completion if ANSWER_MARK in content.completion else content.reference
        gold = gold_number(written)
        if gold is None:
            raise NoSingleNumber(
                f"{location}: scorer 'number' found no single number in the answer "
                f"{content.reference[:60]!r}; expected one in digits 0 to 9, as in '#### 18': no "
                "fraction, power, time or list"
            )
        if extract_number(reference) != gold:  # only the mark shows that the dash is a sign
            reference = gold
    prompt, completion = content.question, content.completion
    contexts: tuple[str, ...] = ()
    if spec.scorer == "option_letter" and content.answer is not None:
        completion = LETTERS[content.answer]
    if spec.scorer == "option_text" and content.answer is not None and content.contexts:
        contexts, completion = content.contexts, content.continuation
        prompt = contexts[content.answer]
    elif not content.messages:
        prompt = fill_template(spec.prompt, content, location)
    return Item(
        item_id=item_id,
        prompt=prompt,
        completion=completion,
        choices=content.choices,
        answer=content.answer,
        subject=content.subject,
        messages=content.messages,
        reference=reference,
        question=content.question,
        contexts=contexts,
        source_row=location,
    )
