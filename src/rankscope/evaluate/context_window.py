"""Items longer than the model's context: refused, or cut at their beginning and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankscope.config.study import EvaluateConfig
from rankscope.data.encode import EncodedRow
from rankscope.data.items import Item
from rankscope.errors import UserError
from rankscope.evaluate.scorers.choice import Question


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The items of one split as token ids: exactly one of the four, by the task's scorer."""

    items: tuple[Item, ...]
    questions: Sequence[Question] = ()
    """One per item, or one per item and option where options stand inside the question."""
    prompts: Sequence[Sequence[int]] = ()
    rows: Sequence[EncodedRow] = ()
    windows: Sequence[Sequence[EncodedRow]] = ()
    cut_left: frozenset[int] = frozenset()
    """Items cut at their beginning, by their place."""

    @property
    def cut_right(self) -> frozenset[int]:
        """Items scored up to the encoder's ``max_length`` alone, by their place."""
        return frozenset(place for place, row in enumerate(self.rows) if row.truncated)

    @property
    def truncated(self) -> int:
        """Items that are not scored whole."""
        return len(self.cut_left | self.cut_right)

    def lengths(self) -> list[int]:
        """Tokens each question, prompt or row needs of the context; an answer needs one at least.

        Windows fit by construction.
        """
        return [
            *(question.num_tokens for question in self.questions),
            *(len(prompt) + 1 for prompt in self.prompts),
            *(len(row.input_ids) for row in self.rows),
        ]

    def owners(self) -> list[int]:
        """Which item each of :meth:`lengths` belongs to."""
        if self.questions and len(self.questions) != len(self.items):
            return [i for i, item in enumerate(self.items) for _ in item.contexts]
        return list(range(len(self.lengths())))


def fit_to_context(
    encoded: EncodedSplit, context: int, settings: EvaluateConfig, where: str, bos: Sequence[int]
) -> EncodedSplit:
    """The split with every item within ``context`` tokens.

    Args:
        encoded: as encoded.
        context: most tokens the model takes in.
        settings: ``too_long`` says what happens to others.
        where: task and split, for messages.
        bos: tokens every prompt begins with, which a cut keeps.

    Raises:
        UserError: items that do not fit and must not, or cannot, be cut.
    """
    lengths, owners = encoded.lengths(), encoded.owners()
    places = [place for place, length in enumerate(lengths) if length > context]
    if not places:
        return encoded
    items = {owners[place] for place in places}
    worst = max(places, key=lengths.__getitem__)
    if settings.too_long == "refuse":
        raise UserError(
            f"{where}: {len(items)} of {len(encoded.items)} items do not fit the model's context "
            f"of {context} tokens; the longest, {encoded.items[owners[worst]].location}, needs "
            f"{lengths[worst]}. Leave these rows out, use a model with a longer context, or cut "
            "prompts at their beginning: 'eval --too-long truncate_left', in a study 'too_long: "
            "truncate_left'"
        )
    questions, prompts, rows = list(encoded.questions), list(encoded.prompts), list(encoded.rows)
    for place in places:
        row = f"{where}: {encoded.items[owners[place]].location}"
        if questions:
            asked = questions[place]
            room = context - (asked.num_tokens - len(asked.prompt))
            prompt = cut_left(asked.prompt, room, bos, row)
            questions[place] = replace(asked, prompt=prompt)
        elif prompts:
            room = max(context // 2, context - settings.max_new_tokens)
            prompts[place] = cut_left(prompts[place], room, bos, row)
        else:
            rows[place] = cut_row(rows[place], context, bos, row)
    return replace(
        encoded, questions=questions, prompts=prompts, rows=rows, cut_left=frozenset(items)
    )


def cut_left(ids: Sequence[int], room: int, bos: Sequence[int], where: str) -> list[int]:
    """The last tokens of a prompt, after the ``bos`` it began with, ``room`` in all."""
    kept = list(bos) if list(ids[: len(bos)]) == list(bos) else []
    left = room - len(kept)
    if left < 1:
        raise UserError(
            f"{where}: the answer alone fills the model's context, so no prompt could be left; "
            "leave this row out"
        )
    return [*kept, *ids[len(ids) - left :]]


def cut_row(row: EncodedRow, room: int, bos: Sequence[int], where: str) -> EncodedRow:
    """A row's last tokens, with their labels; the first of all is none."""
    ids = cut_left(row.input_ids, room, bos, where)
    kept = len(ids) - (len(bos) if tuple(ids[: len(bos)]) == tuple(bos) else 0)
    marks = [False] * (len(ids) - kept) + list(row.is_label[len(row.is_label) - kept :])
    marks[0] = False
    return EncodedRow(tuple(ids), tuple(marks), row.truncated)
