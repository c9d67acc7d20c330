"""Items as token ids with labels, so that training sees exactly what inference sees.

Prompt and answer are tokenized apart and concatenated: in training, in choice scoring and in
generation the same prompt ids precede the same answer ids. Labels go by position; no token id is
ever compared with the pad id, so a tokenizer whose pad is its end token still teaches stopping.

A row is a list of segments (text, labelled?). Plain: ``[prompt][answer + end token]``. Chat: the
segments are cut out of the rendered chat template, every assistant turn with its turn-end token
labelled. The template's output is tokenized without special tokens, since it writes its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from rankscope.data.items import Item, Message
from rankscope.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["chat", "plain"]
Labels = Literal["completion", "all"]

MAX_SHARE_DROPPED = 0.01
# Some templates write today's date into the system turn. A study continued tomorrow must see the
# same tokens, so they are given a fixed day instead.
TEMPLATE_DATE = date(2024, 7, 26)
PROBE = "RANKSCOPEPROBE"


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


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """What a chat template puts around an assistant turn, measured on a probe conversation."""

    opening: str
    """Between generation prompt and answer, such as an empty thinking block; part of the prompt."""
    lead: str
    """Spaces before the answer; part of the answer."""
    end: str
    """From the answer's end through the turn-end token; labelled."""
    strips: bool
    """The template strips white space around the answer."""

    def answer(self, text: str) -> str:
        """An answer's text as the template writes it."""
        return self.lead + (text.strip() if self.strips else text)


class Encoder:
    """Turns items into token ids for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt_format: ``auto`` renders the chat template where the tokenizer has one.
        max_length: most tokens of a training row.

    Raises:
        BadInput: where ``chat`` is asked for without a template, the template cannot be used, or
            the tokenizer has no end token.
    """

    prompt_format: PromptFormat
    """As resolved."""
    notes: tuple[str, ...]
    """What a reader of the results must know about this tokenizer."""
    stop_ids: frozenset[int]
    """Tokens that end an answer."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_format: Literal["auto", "chat", "plain"],
        max_length: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        has_template = bool(tokenizer.chat_template)
        if prompt_format == "chat" and not has_template:
            raise BadInput(
                "prompt_format 'chat': the tokenizer has no chat template; use 'plain' or 'auto'"
            )
        self.prompt_format = "chat" if has_template and prompt_format != "plain" else "plain"
        self._specials = frozenset(tokenizer.all_special_ids) | frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        if tokenizer.eos_token_id is None:
            raise BadInput(
                "the tokenizer has no end token (eos_token), so no answer could ever end; name one "
                "in tokenizer_config.json"
            )
        self._eos_id = int(tokenizer.eos_token_id)
        self._bos_ids = self._bos_in_use()
        self._anchor_ids = self._measure_anchor()
        self._frame = self._measure_frame() if self.prompt_format == "chat" else None
        end_ids = self._end_ids()
        self.stop_ids = frozenset({self._eos_id, end_ids[-1]})
        self.notes = self._make_notes(prompt_format)

    # --- what items become ----------------------------------------------------------------------

    def prompt_ids(self, item: Item) -> list[int]:
        """Tokens before the answer: one BOS if the tokenizer has one in use, no end token.

        The item's own answer plays no part in it. Plain text rows have no prompt but the BOS.
        """
        segments = self._segments(item)
        last = max(index for index, (_, labelled) in enumerate(segments) if labelled)
        return self._segment_ids(segments[:last])[0]

    def answer_ids(self, text: str, item: Item | None = None) -> list[int]:
        """Tokens of an answer as they continue a prompt, without the end token.

        Args:
            text: an option's text, a letter or a written answer.
            item: the item asked. Needed only in the plain format where its prompt ends in white
                space (or is empty), since the answer is otherwise set off by a space.
        """
        if item is not None and not item.prompt and not item.messages:
            return self._continue(text)
        if self._frame is not None:
            return self._continue(self._frame.answer(text))
        prompt = "" if item is None or item.messages else item.prompt
        return self._continue(_set_off(prompt, text))

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
        ids, is_label = self._segment_ids(self._segments(item))
        length = len(ids) - is_label[::-1].index(True)
        first = is_label.index(True)
        if first >= self.max_length:
            return None
        kept = min(length, self.max_length)
        marks = is_label[:kept] if labels == "completion" else [True] * kept
        marks[0] = False
        if not any(marks):
            return None
        return EncodedRow(tuple(ids[:kept]), tuple(marks), truncated=kept < length)

    # --- segments -------------------------------------------------------------------------------

    def _segments(self, item: Item) -> list[tuple[str | list[int], bool]]:
        """Text or ready ids, and whether they are labelled; the last labelled one is the answer."""
        if not item.prompt and not item.messages:
            return [(self._bos_ids, False), (self._with_eos(item.completion), True)]
        if self._frame is not None:
            turns = item.messages or (
                Message("user", item.prompt.rstrip()),
                Message("assistant", item.completion),
            )
            return self._chat_segments(turns, item.item_id)
        if item.messages:
            return self._plain_turns(item.messages)
        prompt = self._plain_start(item.prompt)
        return [(prompt, False), (self._with_eos(_set_off(item.prompt, item.completion)), True)]

    def _chat_segments(
        self, turns: Sequence[Message], item_id: str
    ) -> list[tuple[str | list[int], bool]]:
        """Cut one rendered conversation at its assistant turns."""
        assert self._frame is not None
        full = self._render(turns, item_id)
        segments: list[tuple[str | list[int], bool]] = []
        done = 0
        for position, turn in enumerate(turns):
            if turn.role != "assistant" or not turn.content.strip():
                continue
            asked = self._render(turns[:position], item_id, ask=True)
            if not full.startswith(asked) or len(asked) < done:
                raise BadInput(
                    f"{item_id}: the chat template writes turns 1 to {position} differently once "
                    "later turns follow, so what the model would see in use is not what it would "
                    "be trained on; split the conversation into rows of one answer each"
                )
            answer = self._frame.answer(turn.content)
            # Templates may open only the last answer (an empty thinking block), so both forms of
            # a turn are looked for.
            for opening in (self._frame.opening, ""):
                if full.startswith(opening + answer, len(asked)):
                    break
            else:
                raise BadInput(
                    f"{item_id}: the chat template changes the answer of turn {position + 1}, so "
                    "its tokens cannot be labelled; remove what it rewrites (such as thinking "
                    "marks), or use prompt_format: plain"
                )
            start = len(asked) + len(opening)
            stop = start + len(answer)
            segments.append((full[done:start], False))
            if self._frame.end and full.startswith(self._frame.end, stop):
                stop += len(self._frame.end)
                segments.append(([*self._continue(answer), *self._end_ids()], True))
            else:
                segments.append((self._with_eos(answer), True))
            done = stop
        if turns and turns[-1].role == "assistant" and not turns[-1].content.strip():
            segments.append((self._render(turns[:-1], item_id, ask=True)[done:], False))
            segments.append(([], True))
        return segments

    def _plain_turns(self, turns: Sequence[Message]) -> list[tuple[str | list[int], bool]]:
        """A conversation without a chat template: ``Role: content`` paragraphs."""
        segments: list[tuple[str | list[int], bool]] = []
        text = ""
        for turn in turns:
            text += f"{turn.role.capitalize()}:"
            if turn.role == "assistant":
                before = text if segments else self._plain_start(text)
                segments += [(before, False), (self._with_eos(_set_off(text, turn.content)), True)]
                text = "\n\n"
            else:
                text += f" {turn.content.strip()}\n\n"
        return segments

    def _segment_ids(
        self, segments: Sequence[tuple[str | list[int], bool]]
    ) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        is_label: list[bool] = []
        for part, labelled in segments:
            if isinstance(part, list):
                new = part
            else:
                new = self._continue(part) if ids else self._tokenize(part)
            ids += new
            is_label += [labelled] * len(new)
        return ids, is_label

    # --- tokens ---------------------------------------------------------------------------------

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def _continue(self, text: str) -> list[int]:
        """Tokens of text that continues other text: no space is put before it."""
        if not self._anchor_ids or not text:
            return self._tokenize(text)
        ids = self._tokenize("\n" + text)
        if ids[: len(self._anchor_ids)] != self._anchor_ids:  # the line feed grew into a token
            return self._tokenize(text)
        return ids[len(self._anchor_ids) :]

    def _with_eos(self, text: str) -> list[int]:
        return [*self._continue(text), self._eos_id]

    def _plain_start(self, text: str) -> list[int]:
        """Ids of the beginning of a row with exactly one BOS where one is in use."""
        ids = self._tokenize(text)
        return ids if ids[: len(self._bos_ids)] == self._bos_ids else [*self._bos_ids, *ids]

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

    # --- the chat template ----------------------------------------------------------------------

    def _render(self, turns: Sequence[Message], item_id: str, ask: bool = False) -> str:
        """The template's text; ``ask`` adds what precedes the assistant's next answer."""
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                tokenize=False,
                add_generation_prompt=ask,
                date_string=TEMPLATE_DATE.strftime("%d %b %Y"),
                strftime_now=TEMPLATE_DATE.strftime,
            )
        except Exception as error:  # a template may raise anything its author likes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            roles = ", ".join(turn.role for turn in turns)
            raise BadInput(
                f"{item_id}: the chat template refuses the turns {roles} ({reason}); change the "
                "row's roles, or use prompt_format: plain"
            ) from error
        assert isinstance(text, str)
        return text

    def _measure_frame(self) -> ChatFrame:
        user = Message("user", "a")
        asked = self._render([user], "chat template", ask=True)
        plain = self._render([user, Message("assistant", PROBE)], "chat template")
        spaced = self._render([user, Message("assistant", f" {PROBE} ")], "chat template")
        if not plain.startswith(asked) or plain.count(PROBE) != 1:
            raise BadInput(
                "chat template: an answered conversation does not begin with the prompt that asked "
                f"for the answer (found {plain[:120]!r}, expected it to begin with {asked!r}); use "
                "prompt_format: plain"
            )
        before, after = plain[len(asked) :].split(PROBE)
        opening = before.rstrip(" ")
        return ChatFrame(
            opening=opening,
            lead=before[len(opening) :],
            end=self._through_turn_end(after),
            strips=spaced == plain,
        )

    def _through_turn_end(self, after: str) -> str:
        """The text after an answer through its first special token; empty where there is none."""
        marks = [
            after.index(text) + len(text)
            for text in self._special_texts()
            if text and text in after
        ]
        return after[: min(marks)] if marks else ""

    def _special_texts(self) -> list[str]:
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in sorted(self._specials)]

    def _end_ids(self) -> list[int]:
        """What closes an answer: the template's turn end, or the end token."""
        if self._frame is None or not self._frame.end:
            return [self._eos_id]
        return self._continue(self._frame.end)

    def _make_notes(self, asked: str) -> tuple[str, ...]:
        notes = []
        if asked == "auto" and self.prompt_format == "plain":
            notes.append("the tokenizer has no chat template: rows are plain text")
        if self.tokenizer.pad_token_id == self._eos_id:
            notes.append("the pad token is the end token: labels go by position, so it is learned")
        if self._frame is not None and not self._frame.end:
            notes.append("the chat template ends answers without a special token: eos is appended")
        template: str | Mapping[str, Any] | None = self.tokenizer.chat_template
        if self._frame is not None and any(w in str(template) for w in ("strftime", "date_string")):
            notes.append(f"the chat template writes a date: it is fixed to {TEMPLATE_DATE}")
        return tuple(notes)


def _set_off(prompt: str, text: str) -> str:
    """An answer with the space that sets it off from a plain prompt, unless one is there."""
    if prompt[-1:].isspace() or text[:1].isspace():
        return text
    return " " + text


def encode_rows(encoder: Encoder, items: Sequence[Item], labels: Labels) -> EncodedRows:
    """Every item of a training split as a row.

    Raises:
        BadInput: where there are no items, or more than 1 % of them have no label left.
    """
    if not items:
        raise BadInput("the task has no training rows; give a train file, or only evaluate on it")
    rows: list[EncodedRow] = []
    dropped: list[Item] = []
    for item in items:
        row = encoder.training_row(item, labels)
        if row is None:
            dropped.append(item)
        else:
            rows.append(row)
    if len(dropped) > MAX_SHARE_DROPPED * len(items):
        raise BadInput(
            f"{dropped[0].item_id}: no token to learn is left; so are {len(dropped)} of "
            f"{len(items)} rows: their prompts fill max_length = {encoder.max_length} tokens, or "
            "they have no completion. Raise train.max_length or shorten the rows; up to 1 % would "
            "be left out and counted"
        )
    return EncodedRows(tuple(rows), len(dropped), sum(row.truncated for row in rows))
