"""Items as token ids with labels, so that training sees exactly what inference sees.

Prompt and answer are tokenized apart and concatenated: in training, in choice scoring and in
generation the same prompt ids precede the same answer ids. Labels go by position; no token id is
ever compared with the pad id, so a tokenizer whose pad is its end token still teaches stopping.

A row is a list of segments. Plain: the prompt, then the answer and the end token; shots stand
before the prompt, each with its answer, set off by blank lines. Chat: shots are earlier turns; the
segments are cut out of the rendered chat template (``chat.py``), every assistant turn with its
turn-end token labelled. The template's text is tokenized without special tokens, since it writes
its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rankscope.data.chat import TEMPLATE_DATE, ChatTemplate, Segment, plain_turns, set_off
from rankscope.data.items import Item, Message
from rankscope.errors import UserError
from rankscope.provenance import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["chat", "plain"]
Labels = Literal["completion", "all"]

MAX_SHARE_DROPPED = 0.01


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as tokens; both fields have length T, the row's tokens."""

    input_ids: tuple[int, ...]
    is_label: tuple[bool, ...]
    """is_label[i]: token i is predicted with loss. Token 0 never is."""
    truncated: bool
    """The completion was cut at ``max_length``."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The training rows of one task."""

    rows: tuple[EncodedRow, ...]
    dropped: int
    """Rows with nothing to learn: no completion, or a prompt of ``max_length`` tokens or more."""
    truncated: int
    """Rows whose completion was cut at ``max_length``."""

    @property
    def num_tokens(self) -> int:
        """Valid input tokens of one epoch."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def num_label_tokens(self) -> int:
        """Tokens that carry loss in one epoch."""
        return sum(sum(row.is_label) for row in self.rows)

    @property
    def sha256(self) -> str:
        """Hash of what training sees: tokens and labels, so it covers tokenizer and template."""
        return sha256_json([[row.input_ids, [int(x) for x in row.is_label]] for row in self.rows])


class Encoder:
    """Turns items into token ids for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt_format: ``auto`` renders the chat template where the tokenizer has one.
        max_length: most tokens of a training row; None is no bound.

    Raises:
        UserError: where ``chat`` is asked for without a template, the template cannot be used, or
            the tokenizer has no end token.
    """

    prompt_format: PromptFormat
    """As resolved."""
    notes: tuple[str, ...]
    """What a reader of the results must know about this tokenizer."""
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    bos_ids: list[int]
    """[BOS] where the tokenizer puts one before text by itself, else []."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_format: Literal["auto", "chat", "plain"],
        max_length: int | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        has_template = bool(tokenizer.chat_template)
        if prompt_format == "chat" and not has_template:
            raise UserError(
                "prompt_format 'chat': the tokenizer has no chat template; use 'plain' or 'auto'"
            )
        self.prompt_format = "chat" if has_template and prompt_format != "plain" else "plain"
        self.special_ids = frozenset(tokenizer.all_special_ids) | frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end token (eos_token), so no answer could ever end; name one "
                "in tokenizer_config.json"
            )
        self._eos_id = int(tokenizer.eos_token_id)
        # The Rust tokenizer by itself: the wrapper around it costs as much again, on every segment.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self.bos_ids = self._bos_in_use()
        self._anchor_ids = self._measure_anchor()
        self._chat: ChatTemplate | None = None
        self._end_ids = {"": [], "eos": [self._eos_id], "turn": [self._eos_id]}
        if self.prompt_format == "chat":
            texts = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(self.special_ids)]
            self._chat = ChatTemplate(tokenizer, texts)
            if self._chat.frame.end:
                self._end_ids["turn"] = self._continue(self._chat.frame.end)
        self.stop_ids = frozenset({self._eos_id, self._end_ids["turn"][-1]})
        self.notes = self._make_notes(prompt_format)

    # --- what items become ----------------------------------------------------------------------

    def prompt_ids(self, item: Item) -> list[int]:
        """Tokens before the answer: one BOS if the tokenizer has one in use, no end token.

        They are those of ``training_row``, which go before its last answer. Plain text rows have
        no prompt but the BOS.
        """
        segments = self._segments(item)
        last = max(index for index, segment in enumerate(segments) if segment.labelled)
        return self._encode(segments[:last], self._starts_with_bos(item))[0]

    def answer_ids(self, text: str, item: Item | None = None) -> list[int]:
        """Tokens of an answer as they continue a prompt, without the end token.

        Args:
            text: an option's text, a letter or a written answer.
            item: the item asked. Needed only in the plain format where its prompt ends in white
                space (or is empty), since the answer is otherwise set off by a space.
        """
        if item is not None and _is_plain_text(item):
            return self._tokenize(text)
        if self._chat is not None:
            return self._continue(self._chat.frame.answer(text))
        prompt = "" if item is None or item.messages else item.prompt
        return self._continue(set_off(prompt, text))

    def training_row(self, item: Item, labels: Labels) -> EncodedRow | None:
        """The item as one training row, or None where it has nothing to learn.

        Tokens after the last label are left out: no loss depends on them.

        Args:
            item: an item with a completion.
            labels: ``completion`` puts loss on every assistant turn (or the completion) and its
                end token; ``all`` on every token but the first.

        Returns:
            None where there is no completion, or where the prompt alone reaches ``max_length``.
        """
        if not item.completion.strip():
            return None
        ids, is_label = self._encode(self._segments(item), self._starts_with_bos(item))
        # The end of the last answer is always labelled, so this cuts nothing that is.
        length = len(ids) - is_label[::-1].index(True)
        first = is_label.index(True)
        kept = length if self.max_length is None else min(length, self.max_length)
        if first >= kept:
            return None
        marks = is_label[:kept] if labels == "completion" else [True] * kept
        marks[0] = False
        if not any(marks):
            return None
        return EncodedRow(tuple(ids[:kept]), tuple(marks), truncated=kept < length)

    @property
    def start_id(self) -> int:
        """What the first token of a text is scored after: the begin token, else the end token."""
        bos = self.tokenizer.bos_token_id
        return self._eos_id if bos is None else int(bos)

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a text by itself, without begin and end."""
        return self._tokenize(text)

    # --- segments -------------------------------------------------------------------------------

    def _starts_with_bos(self, item: Item) -> bool:
        """A chat template writes its own BOS; everything else gets the tokenizer's."""
        return self._chat is None or _is_plain_text(item)

    def _segments(self, item: Item) -> list[Segment]:
        """The row in order; the last labelled segment is its answer."""
        if _is_plain_text(item):
            return [Segment(""), Segment(item.completion, labelled=True, end="eos")]
        if self._chat is not None:
            asked = (*item.fewshot, (item.prompt, item.completion))
            turns = item.messages or [
                Message(role, text.rstrip() if role == "user" else text)
                for pair in asked
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
            return self._chat.segments(turns, item.location)
        if item.messages:
            return plain_turns(item.messages)
        answer = set_off(item.prompt, item.completion)
        block = "".join(f"{asked}{set_off(asked, told)}\n\n" for asked, told in item.fewshot)
        return [Segment(block + item.prompt), Segment(answer, labelled=True, end="eos")]

    def _encode(self, segments: Sequence[Segment], bos: bool) -> tuple[list[int], list[bool]]:
        """(ids, is_label) of the concatenated segments, one BOS first where ``bos`` says so."""
        ids: list[int] = []
        is_label: list[bool] = []
        begun = False
        for index, segment in enumerate(segments):
            new = self._continue(segment.text) if begun else self._tokenize(segment.text)
            if bos and index == 0 and new[: len(self.bos_ids)] != self.bos_ids:
                new = [*self.bos_ids, *new]
            new = new + self._end_ids[segment.end]
            begun = begun or bool(segment.text)
            ids += new
            is_label += [segment.labelled] * len(new)
        return ids, is_label

    # --- tokens ---------------------------------------------------------------------------------

    def _tokenize(self, text: str) -> list[int]:
        """Ids of a text by itself; special tokens that are written out in it count as such."""
        if not text:
            return []
        if self._backend is not None:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        else:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _continue(self, text: str) -> list[int]:
        """Tokens of text that continues other text: no space is put before it."""
        if not self._anchor_ids:
            return self._tokenize(text)
        ids = self._tokenize("\n" + text)
        if ids[: len(self._anchor_ids)] != self._anchor_ids:  # the line feed grew into a token
            return self._tokenize(text)
        return ids[len(self._anchor_ids) :]

    def _bos_in_use(self) -> list[int]:
        """[BOS] where the tokenizer puts one before text by itself, else []."""
        ids = self.tokenizer("a", verbose=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [int(bos)] if bos is not None and ids[:1] == [bos] else []

    def _measure_anchor(self) -> list[int]:
        """Ids of a line feed where the tokenizer puts a space before every text, else [].

        Such tokenizers (SentencePiece with a dummy prefix) would turn the continuation ``b`` of
        ``a`` into `` b``. A line feed before it takes that space instead and is cut off again.
        """
        tokens = self.tokenizer.convert_ids_to_tokens(self._tokenize("a"))
        prefixed = bool(tokens) and tokens[0][:1] in ("\u2581", "\u0120")
        return self._tokenize("\n") if prefixed else []

    def _make_notes(self, asked: str) -> tuple[str, ...]:
        notes = []
        if asked == "auto" and self.prompt_format == "plain":
            notes.append("the tokenizer has no chat template: rows are plain text")
        if self.tokenizer.pad_token_id == self._eos_id:
            notes.append("the pad token is the end token: labels go by position, so it is learned")
        if self._chat is not None and not self._chat.frame.end:
            notes.append("the chat template ends answers without a special token: eos is appended")
        if self._chat is not None and self._chat.writes_date:
            notes.append(f"the chat template writes a date: it is fixed to {TEMPLATE_DATE}")
        return tuple(notes)


def _is_plain_text(item: Item) -> bool:
    return not item.prompt and not item.messages


def encode_rows(encoder: Encoder, items: Sequence[Item], labels: Labels) -> EncodedRows:
    """Every item of a training split as a row.

    Raises:
        UserError: where there are no items, or more than 1 % of them have no label left.
    """
    if not items:
        raise UserError("the task has no training rows; give a train file, or only evaluate on it")
    rows: list[EncodedRow] = []
    dropped: list[Item] = []
    for item in items:
        row = encoder.training_row(item, labels)
        if row is None:
            dropped.append(item)
        else:
            rows.append(row)
    if len(dropped) > MAX_SHARE_DROPPED * len(items):
        raise UserError(
            f"{dropped[0].location}: no token to learn is left; so are {len(dropped)} of "
            f"{len(items)} rows: their prompts fill max_length = {encoder.max_length} tokens, or "
            "they have no completion. Raise train.max_length or shorten the rows; up to 1 % would "
            "be left out and counted"
        )
    return EncodedRows(tuple(rows), len(dropped), sum(row.truncated for row in rows))
