"""Turns the content of a row into an item of its task: its prompt and its target."""

import re
from typing import Any

from rankscope.data.items import LETTERS, Item
from rankscope.data.registry import TaskSpec
from rankscope.data.rows import RowContent
from rankscope.errors import UserError
from rankscope.evaluate.scorers import get_scorer


def _fill_template(template: str, content: RowContent, location: str) -> str:
    """Replace each plain ``{name}`` in a prompt template by a field; evaluate nothing."""
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
    """One row as an item of its task. Raises BadRow: the row does not fit the task's scorer;
    UserError: it does not fit the task's prompt."""
    content = get_scorer(spec.scorer).adapt_row(content)
    prompt = content.question
    if content.contexts:
        assert content.answer is not None
        prompt = content.contexts[content.answer]
    elif not content.messages:
        prompt = _fill_template(spec.prompt, content, location)
    return Item(
        item_id=item_id,
        prompt=prompt,
        completion=content.completion,
        choices=content.choices,
        answer=content.answer,
        subject=content.subject,
        messages=content.messages,
        reference=content.reference,
        question=content.question,
        contexts=content.contexts,
        source_row=location,
    )
