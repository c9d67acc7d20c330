"""Items as token ids with labels, so that training sees exactly what inference sees.

Prompt and answer are tokenized separately and concatenated: in training, in choice scoring and in
generation the same prompt ids precede the same answer ids. Labels go by position; no token id is
compared with the pad id, so a tokenizer whose pad is its end token still teaches stopping.

A row is a list of segments. Plain format: the prompt, then the answer and the end token; few-shot
examples come before the prompt, separated by blank lines. Chat format: examples are earlier turns;
the segments are cut from the rendered chat template (``chat.py``), and every assistant turn is a
label, with its turn-end token. The rendered text is tokenized without special tokens, because the
template writes its own.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from rankscope.data.chat import PLAIN_FORMAT, ChatTemplate, TextSegment, plain_turns
from rankscope.data.items import LETTERS, Item, Message
from rankscope.errors import UserError, reading
from rankscope.formatting import with_leading_space
from rankscope.hashing import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rankscope.data.registry import TaskSpec

PromptFormat = Literal["chat", "plain"]
LabelMode = Literal["completion", "all"]

MAX_SHARE_DROPPED = 0.01


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as tokens; both fields have length T, the row's tokens."""

    input_ids: tuple[int, ...]
    is_label: tuple[bool, ...]  # is_label[i]: token i is predicted with loss. Token 0 never is.
    truncated: bool  # The completion was cut at ``max_length``
    rejected: "EncodedRow | None" = None  # The same prompt with the rejected answer
    value: float = field(default=0.0, compare=False)
    """A number that its objective uses, such as an advantage."""
    asked: "Judged | None" = field(default=None, compare=False, repr=False)

    @property
    def parts(self) -> "tuple[EncodedRow, ...]":
        """The row itself, and the row with the rejected answer if there is one."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.input_ids[: self.is_label.index(True)]

    @property
    def label_positions(self) -> list[int]:
        """Positions whose logits predict a labeled token: each label's predecessor."""
        return [t - 1 for t, is_label in enumerate(self.is_label) if is_label]


class Judged(NamedTuple):
    """The parts needed to judge answers to a row, for objectives whose models write answers."""

    item: Item
    spec: "TaskSpec"
    encoder: "Encoder"
    max_new_tokens: int


@dataclass(frozen=True)
class EncodedRows:
    rows: tuple[EncodedRow, ...]
    dropped: int
    """Rows with nothing to learn: no completion, or a prompt of ``max_length`` tokens or more."""
    truncated: int  # Rows whose completion was cut at ``max_length``
    judges: tuple[str, ...] = field(default=(), kw_only=True)  # Scorers of models' own answers

    @cached_property
    def num_tokens(self) -> int:
        """Number of input tokens in one epoch."""
        return sum(len(row.input_ids) for row in self.rows)

    @cached_property
    def num_label_tokens(self) -> int:
        """Number of tokens in one epoch that carry loss."""
        return sum(sum(row.is_label) for row in self.rows)

    @property
    def sha256(self) -> str:
        """Hash of the tokens and labels that training sees; it thereby covers tokenizer and
        template."""
        parts = (part for row in self.rows for part in row.parts)
        content = [[part.input_ids, [int(x) for x in part.is_label]] for part in parts]
        return sha256_json([content, self.judges] if self.judges else content)


def resolved_format(
    requested: Literal["auto", "chat", "plain"], tokenizer: "PreTrainedTokenizerBase"
) -> PromptFormat:
    """Resolve ``auto``: ``chat`` if there is a template, else ``plain``.

    Raises UserError: ``chat`` without a template.
    """
    has_template = bool(tokenizer.chat_template)
    if requested == "chat" and not has_template:
        found = "a tokenizer without chat template"
        raise UserError("prompt_format 'chat'", found, "one that has it", "use 'plain' or 'auto'")
    return "chat" if has_template and requested != "plain" else "plain"


class Encoder:
    """Turns items into token ids for one tokenizer.

    Args:
        prompt_format: ``auto`` renders the chat template if there is one.
        max_length: most tokens of a training row; None sets no limit.
        system: a text before every prompt, as the first turn of the chat template. A text without a
            prompt gets none.

    Raises UserError: ``chat`` without a template, an unusable template, or no end token.
    """

    prompt_format: PromptFormat  # ``auto`` resolved
    notes: list[str]  # Properties of this tokenizer that readers of the results should know
    stop_ids: frozenset[int]  # Tokens that end an answer
    bos_ids: list[int]  # [BOS] if the tokenizer puts one before text by itself, else []

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_format: Literal["auto", "chat", "plain"],
        max_length: int | None,
        system: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.prompt_format = resolved_format(prompt_format, tokenizer)
        self._place = f"tokenizer {tokenizer.name_or_path}".rstrip()
        with self._reading_tokenizer():
            added = tokenizer.added_tokens_decoder.items()
            special = [token_id for token_id, token in added if token.special]
            self.special_ids = frozenset([*tokenizer.all_special_ids, *special])
        if tokenizer.eos_token_id is None:
            do = "name one in tokenizer_config.json"
            raise UserError(self._place, "no end token (eos_token)", "answers that end", do)
        self._eos_id = int(tokenizer.eos_token_id)
        # Some tokenizers that know every byte name another special token here.
        others = (self._eos_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
        unknown = tokenizer.unk_token_id
        self.unknown_id = None if unknown in others else unknown
        # Call the Rust tokenizer directly: its wrapper doubles the time of every segment.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self.bos_ids = self._measure_bos()
        self._anchor_ids = self._measure_anchor()
        self._chat: ChatTemplate | None = None
        self._end_ids = {"": [], "eos": [self._eos_id], "turn": [self._eos_id]}
        if self.prompt_format == "chat":
            texts = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.special_ids)]
            with self._reading_tokenizer():
                template = tokenizer.get_chat_template()
            self._chat = ChatTemplate(tokenizer, template, texts)
            if self._chat.end:
                self._end_ids["turn"] = self._tokenize_continuation(self._chat.end)
        self.stop_ids = frozenset({self._eos_id, self._end_ids["turn"][-1]})
        self.system, self._num_system = "", 0
        if system:
            probe = Item(prompt="a", source_row="the system text of a prompt")
            before, self.system = self.prompt_ids(probe), system
            if (after := self.prompt_ids(probe)) == before:
                found, rule = "a chat template whose text it leaves as it is", "one that renders it"
                raise UserError(probe.location, found, rule, PLAIN_FORMAT)
            self._num_system = len(after) - len(before)
        self.notes = []
        if prompt_format == "auto" and self.prompt_format == "plain":
            note = "no chat template in this tokenizer: prompts are formatted as plain text"
            self.notes.append(note)
        if tokenizer.pad_token_id == self._eos_id:
            note = "the pad token is the end token: labels go by position, so it is learned"
            self.notes.append(note)

    # --- items as tokens ------------------------------------------------------------------------

    def prompt_ids(self, item: Item) -> list[int]:
        """Return the tokens before the answer: one BOS if the tokenizer uses one, no end token.

        They equal the tokens of ``training_row`` before its last answer. The prompt of a plain text
        row is the BOS alone.
        """
        segments = self._segments(item)
        last = max(index for index, segment in enumerate(segments) if segment.is_label)
        return self._encode(segments[:last], self._starts_with_bos(item))[0]

    def answer_ids(self, text: str, item: Item | None = None) -> list[int]:
        """Return the tokens of an answer as the continuation of a prompt, without the end token.

        ``item`` matters only in the plain format, if its prompt is empty or ends in white space.
        All other prompts are separated from the answer by a space.
        """
        if item is not None and _is_plain_text(item):
            return self.text_ids(text)
        if self._chat is not None:
            return self._tokenize_continuation(self._chat.render_answer(text))
        prompt = "" if item is None or item.messages else item.prompt
        return self._tokenize_continuation(with_leading_space(prompt, text))

    def pair(self, item: Item, labels: LabelMode) -> EncodedRow | None:
        """Encode an item as one training row with a rejected answer.

        The rejected answer of a multiple-choice item is the option after the right one. Returns
        None if either answer has no room, or if both are equal after the cut.
        """
        assert item.answer is not None
        row, wrong = self.training_row(item, labels), (item.answer + 1) % len(item.choices)
        is_text = item.completion.strip() == item.choices[item.answer].strip()
        text = item.choices[wrong] if is_text else LETTERS[wrong]
        turns = (*item.messages[:-1], Message("assistant", text)) if item.messages else ()
        rejected = self.training_row(replace(item, completion=text, messages=turns), labels)
        if row is None or rejected is None or row.input_ids == rejected.input_ids:
            return None
        return replace(row, rejected=rejected)

    def training_row(self, item: Item, labels: LabelMode) -> EncodedRow | None:
        """Encode an item as one training row; None without a completion, or without room for
        one."""
        if not item.completion.strip():
            return None
        ids, is_label = self._encode(self._segments(item), self._starts_with_bos(item))
        # The end of the last answer is always a label, so this cuts no label.
        length = len(ids) - is_label[::-1].index(True)
        first = is_label.index(True)
        # Leave as many tokens for the answer as without the system text.
        room = 0 if _is_plain_text(item) else self._num_system
        kept = length if self.max_length is None else min(length, self.max_length + room)
        if first >= kept:
            return None
        marks = is_label[:kept] if labels == "completion" else [True] * kept
        marks[0] = False
        if not any(marks):
            return None
        return EncodedRow(tuple(ids[:kept]), tuple(marks), truncated=kept < length)

    @property
    def start_id(self) -> int:
        """Token before the first token of a text: the begin token, else the end token."""
        bos = self.tokenizer.bos_token_id
        return self._eos_id if bos is None else int(bos)

    # --- segments -------------------------------------------------------------------------------

    def _starts_with_bos(self, item: Item) -> bool:
        """Whether a row starts with the tokenizer's BOS; a chat template writes its own."""
        return self._chat is None or _is_plain_text(item)

    def _segments(self, item: Item) -> list[TextSegment]:
        """Return the segments of a row in order; the last label is its answer."""
        if _is_plain_text(item):
            return [TextSegment(""), TextSegment(item.completion, is_label=True, end="eos")]
        if self._chat is not None:
            turns = item.messages or [
                message
                for prompt, answer in (*item.fewshot, (item.prompt, item.completion))
                for message in (Message("user", prompt.rstrip()), Message("assistant", answer))
            ]
            return self._chat.segments(self._after_system(turns), item.location)
        if item.messages:
            return plain_turns(self._after_system(item.messages))
        answer = with_leading_space(item.prompt, item.completion)
        examples = f"{self.system}\n\n" * bool(self.system) + "".join(
            f"{asked}{with_leading_space(asked, reply)}\n\n" for asked, reply in item.fewshot
        )
        return [TextSegment(examples + item.prompt), TextSegment(answer, is_label=True, end="eos")]

    def _after_system(self, turns: Sequence[Message]) -> Sequence[Message]:
        """Put the system text before the turns of a row, ahead of the row's own system text."""
        if not self.system:
            return turns
        own = [turn.content for turn in turns[:1] if turn.role == "system"]
        return [Message("system", "\n\n".join([self.system, *own])), *turns[len(own) :]]

    def _encode(self, segments: Sequence[TextSegment], bos: bool) -> tuple[list[int], list[bool]]:
        """Return (ids, is_label) of the concatenated segments, after one BOS if ``bos``."""
        ids: list[int] = []
        is_label: list[bool] = []
        started = False
        for index, segment in enumerate(segments):
            tokenize = self._tokenize_continuation if started else self.text_ids
            new = tokenize(segment.text)
            if bos and index == 0 and new[: len(self.bos_ids)] != self.bos_ids:
                new = [*self.bos_ids, *new]
            new = new + self._end_ids[segment.end]
            started = started or bool(segment.text)
            ids += new
            is_label += [segment.is_label] * len(new)
        return ids, is_label

    # --- tokens ---------------------------------------------------------------------------------

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text alone, without begin and end tokens.

        Special tokens that are written out in the text are recognized.
        """
        if not text:
            return []
        with self._reading_tokenizer():
            if self._backend is not None:
                ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            else:
                ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _tokenize_continuation(self, text: str) -> list[int]:
        """Return the ids of a text that continues another, without a space in front."""
        if not self._anchor_ids:
            return self.text_ids(text)
        ids = self.text_ids("\n" + text)
        if ids[: len(self._anchor_ids)] != self._anchor_ids:  # the line feed merged into a token
            return self.text_ids(text)
        return ids[len(self._anchor_ids) :]

    def _reading_tokenizer(self) -> AbstractContextManager[None]:
        """Guard calls of the tokenizer: files from a stranger can make it raise any error."""
        do = "mend tokenizer.json and tokenizer_config.json in the model's folder"
        return reading(self._place, "a tokenizer that can be used", do=do)

    def _measure_bos(self) -> list[int]:
        with self._reading_tokenizer():
            ids = self.tokenizer("a", verbose=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [int(bos)] if bos is not None and ids[:1] == [bos] else []

    def _measure_anchor(self) -> list[int]:
        """Return the ids of a line feed if the tokenizer puts a space before every text, else
        []."""
        tokens = self.tokenizer.convert_ids_to_tokens(self.text_ids("a"))
        prefixed = bool(tokens) and str(tokens[0])[:1] in ("\u2581", "\u0120")
        return self.text_ids("\n") if prefixed else []


def _is_plain_text(item: Item) -> bool:
    return not item.prompt and not item.messages


def encode_rows(
    encoder: Encoder,
    items: Sequence[Item],
    labels: LabelMode,
    *,
    pairs: bool = False,
    spec: "TaskSpec | None" = None,
    max_new_tokens: int = 0,
) -> EncodedRows:
    """Encode the items of a training split, one row each.

    Args:
        pairs: also encode the rejected answer of each item.
        max_new_tokens: above 0, rows carry the parts needed to judge answers of so many tokens.
    """
    encode = encoder.pair if pairs else encoder.training_row
    rows: list[EncodedRow] = []
    dropped: list[Item] = []
    for item in items:
        row = encode(item, labels)
        if row is None:
            dropped.append(item)
            continue
        if spec is not None and max_new_tokens:
            row = replace(row, asked=Judged(item, spec, encoder, max_new_tokens))
        rows.append(row)
    if dropped and (not rows or len(dropped) > max(1, MAX_SHARE_DROPPED * len(items))):
        first = min((item.location for item in dropped), key=lambda place: (len(place), place))
        raise UserError(
            first,
            f"no token to learn here and in {len(dropped)} of {len(items)} rows in all (the prompt "
            f"fills max_length = {encoder.max_length} tokens, or there is no completion)",
            "one such row, or 1 %, at most, and one to learn from",
            "raise train.max_length or shorten the rows",
        )
    return EncodedRows(
        tuple(rows), len(dropped), sum(part.truncated for row in rows for part in row.parts)
    )
