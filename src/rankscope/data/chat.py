"""Conversations as segments: where a chat template writes the answers, and how it ends them.

Stock templates do not mark the assistant's text, so it is located by rendering: the conversation
up to an answer, with the prompt for one, must be a prefix of the whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal

from rankscope.config.section import short_repr
from rankscope.data.items import Message
from rankscope.errors import UserError, reading
from rankscope.formatting import with_leading_space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some templates write today's date into the system turn. A study resumed tomorrow must see the
# same tokens, so templates get a fixed day: as the variable that some read, and as a macro that
# replaces the clock that others call (functions cannot be passed to a template).
TEMPLATE_DATE = date(2024, 7, 26)
FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('%{c}', '{TEMPLATE_DATE.strftime('%' + c)}')" for c in "aAbBdHIjmMpSyY")
    + " }}{%- endmacro -%}"
)
DATE_STRING = TEMPLATE_DATE.strftime("%d %b %Y")
PROBE = "RANKSCOPEPROBE"
PLAIN_FORMAT = "use prompt_format: plain"


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A part of a row that is tokenized separately."""

    text: str
    is_label: bool = False  # An answer; it carries loss
    end: Literal["", "turn", "eos"] = ""
    """Token after it, also a label: the template's turn end, or the tokenizer's end token."""


def of_one_day(template: str) -> str:
    """Return the template with a clock that stands still at ``TEMPLATE_DATE``."""
    return (FIXED_CLOCK if "strftime_now" in template else "") + template


class ChatTemplate:
    """One tokenizer's chat template, and the text that it puts around an answer.

    That text is measured on a probe.

    Args:
        source: the template's text.
        special_texts: the tokenizer's special tokens as text.
    """

    opening: str
    """Between generation prompt and answer, such as an empty thinking block; part of the prompt."""
    lead: str  # Spaces before the answer; part of the answer
    end: str
    """From the end of the answer through the turn-end token; empty if there is no such token."""
    strips: bool  # The template strips white space around the answer

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", source: object, special_texts: Sequence[str]
    ) -> None:
        self._apply: Callable[..., object] = tokenizer.apply_chat_template
        if not isinstance(source, str):
            raise UserError("chat template", short_repr(source), "a template's text", PLAIN_FORMAT)
        self._source = of_one_day(source)
        self._measure(special_texts)

    def render(
        self, turns: Sequence[Message], location: str, *, with_generation_prompt: bool = False
    ) -> str:
        """Render turns; with the generation prompt, up to the start of the assistant's next
        answer."""
        roles = ", ".join(turn.role for turn in turns)
        expected = f"a chat template that renders the turns {roles}"
        with reading(location, expected, do=f"change the row's roles, or {PLAIN_FORMAT}"):
            text = self._apply(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=with_generation_prompt,
                date_string=DATE_STRING,
            )
        return str(text)

    def segments(self, turns: Sequence[Message], location: str) -> list[TextSegment]:
        """Divide a conversation at its assistant turns, through the end of the last one."""
        full = self.render(turns, location)
        segments: list[TextSegment] = []
        done = 0
        last = len(turns) - 1
        for position, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self.render(turns[:position], location, with_generation_prompt=True)
            if position == last and not turn.content.strip():
                prompt += self.opening
                empty_answer = TextSegment("", is_label=True, end="turn")
                return [*segments, TextSegment(prompt[done:]), empty_answer]
            if not full.startswith(prompt) or len(prompt) < done:
                found = f"turns 1 to {position}, rendered differently if later turns follow"
                do = "split the conversation into rows of one answer each"
                raise UserError(location, found, "the same text in training and in use", do)
            answer = self.render_answer(turn.content)
            place = f"{location}, turn {position + 1}"
            start = self._find_answer(full, len(prompt), answer, place)
            ended = bool(self.end) and full.startswith(self.end, start + len(answer))
            end: Literal["", "turn", "eos"] = "turn" if ended else "eos" if position == last else ""
            segments += [TextSegment(full[done:start]), TextSegment(answer, is_label=True, end=end)]
            done = start + len(answer) + (len(self.end) if ended else 0)
        return segments

    def _find_answer(self, full: str, after: int, answer: str, place: str) -> int:
        """Find where an answer begins in the rendered text, right after its prompt."""
        for opening in (self.opening, ""):
            if full.startswith(opening + answer, after):
                return after + len(opening)
        found = "an answer that the chat template changes (such as thinking marks)"
        do = f"change the answer, or {PLAIN_FORMAT}"
        raise UserError(place, found, "one whose tokens can be labeled", do)

    def render_answer(self, text: str) -> str:
        return self.lead + (text.strip() if self.strips else text)

    def _measure(self, special_texts: Sequence[str]) -> None:
        user = Message("user", "a")
        where = "chat template"
        prompt = self.render([user], where, with_generation_prompt=True)
        plain = self.render([user, Message("assistant", PROBE)], where)
        spaced = self.render([user, Message("assistant", f" {PROBE} ")], where)
        if not plain.startswith(prompt) or plain.count(PROBE) != 1:
            rule = f"it to start with the prompt for its answer, {prompt[:120]!r}"
            raise UserError(where, f"a conversation {plain[:120]!r}", rule, PLAIN_FORMAT)
        before, after = plain[len(prompt) :].split(PROBE)
        self.opening = before.rstrip(" ")
        self.lead = before[len(self.opening) :]
        stops = [after.index(text) + len(text) for text in special_texts if text and text in after]
        self.end = after[: min(stops)] if stops else ""
        self.strips = spaced == plain


def plain_turns(turns: Sequence[Message]) -> list[TextSegment]:
    """Render a conversation without a chat template, as ``Role: content`` paragraphs."""
    segments: list[TextSegment] = []
    text = ""
    for turn in turns:
        text += f"{turn.role.capitalize()}:"
        if turn.role == "assistant":
            answer = with_leading_space(text, turn.content)
            segments += [TextSegment(text), TextSegment(answer, is_label=True, end="eos")]
            text = "\n\n"
        else:
            text += f" {turn.content.strip()}\n\n"
    return segments
