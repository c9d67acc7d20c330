"""A row as an item of its task: the prompt it is asked by, and what is compared or learned."""

import re
from typing import Any

from rankscope.data.items import LETTERS, Item
from rankscope.data.numbers import ANSWER_MARK, extract_number, gold_number
from rankscope.data.registry import CHOICE_SCORERS, TaskSpec
from rankscope.data.rows import RowContent
from rankscope.errors import UserError


class NoSingleNumber(UserError):
    """The gold answer of a number task is not one number."""


def fill_template(template: str, content: RowContent, where: str) -> str:
    """Put a row's fields into a prompt template.

    Only plain ``{name}`` is replaced; nothing is evaluated.

    Raises:
        UserError: where the template names a field that the row lacks.
    """
    values: dict[str, Any] = {**content.fields, "question": content.question}
    values["options"] = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, content.choices, strict=False)
    )

    def value_of(match: re.Match[str]) -> str:
        value = values.get(match[1])
        if not isinstance(value, str | int | float):
            raise UserError(
                f"{where}: the prompt template names {{{match[1]}}}, which is no text in this "
                f"row; fields: {', '.join(values)}"
            )
        return str(value)

    return re.sub(r"\{(\w+)\}", value_of, template)


def make_item(content: RowContent, spec: TaskSpec, item_id: str, where: str) -> Item:
    """One row as an item of its task.

    Raises:
        UserError: where the row cannot be asked or scored as the task says
            (:class:`NoSingleNumber` where its gold answer is not one number).
    """
    if spec.scorer in CHOICE_SCORERS and content.answer is None:
        raise UserError(f"{where}: scorer {spec.scorer!r} needs rows with choices and an answer")
    reference = content.reference
    if spec.scorer == "number":
        written = content.completion if ANSWER_MARK in content.completion else content.reference
        gold = gold_number(written)
        if gold is None:
            raise NoSingleNumber(
                f"{where}: scorer 'number' found no single number in the answer "
                f"{content.reference[:60]!r}; expected one in digits 0 to 9, as in '#### 18': no "
                "fraction, power, time or list"
            )
        if extract_number(reference) != gold:  # a sign that only its mark tells from a dash
            reference = gold
    completion = content.completion
    if spec.scorer == "option_letter" and content.answer is not None:
        completion = LETTERS[content.answer]
    prompt = content.question
    contexts: tuple[str, ...] = ()
    if spec.scorer == "option_text" and content.answer is not None and content.contexts:
        contexts, completion = content.contexts, content.continuation
        prompt = contexts[content.answer]
    elif not content.messages:
        prompt = fill_template(spec.prompt, content, where)
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
        where=where,
    )
