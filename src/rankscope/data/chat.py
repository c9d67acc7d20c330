"""Conversations cut into segments: where a chat template writes answers, and how it ends them.

Stock templates carry no marks of what the assistant says, so the places are found by rendering:
the conversation up to an answer, with the prompt for one, must be a prefix of the whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal

from rankscope.data.items import Message
from rankscope.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some templates write today's date into the system turn. A study continued tomorrow must see the
# same tokens, so they are given a fixed day instead: as the variable that some of them read, and
# as a macro in place of the clock that others call (functions cannot be passed to a template).
TEMPLATE_DATE = date(2024, 7, 26)
FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('%{c}', '{TEMPLATE_DATE.strftime('%' + c)}')" for c in "aAbBdHIjmMpSyY")
    + " }}{%- endmacro -%}"
)
PROBE = "RANKSCOPEPROBE"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a row that is tokenized by itself."""

    text: str
    labelled: bool = False
    """An answer; it carries loss."""
    end: Literal["", "turn", "eos"] = ""
    """Token after it, labelled too: the template's turn end, or the tokenizer's end token."""


@dataclass(frozen=True, slots=True)
class ChatFrame:
    """What a chat template puts around an assistant turn."""

    opening: str
    """Between generation prompt and answer, such as an empty thinking block; part of the prompt."""
    lead: str
    """Spaces before the answer; part of the answer."""
    end: str
    """From the answer's end through the turn-end token; empty where there is no such token."""
    strips: bool
    """The template strips white space around the answer."""

    def answer(self, text: str) -> str:
        """An answer's text as the template writes it."""
        return self.lead + (text.strip() if self.strips else text)


class ChatTemplate:
    """One tokenizer's chat template, measured on a probe conversation.

    Args:
        tokenizer: a tokenizer that has a chat template.
        special_texts: its special tokens as text.

    Raises:
        UserError: where an answered conversation does not begin with the prompt for its answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", special_texts: Sequence[str]) -> None:
        self._apply: Callable[..., object] = tokenizer.apply_chat_template
        source = tokenizer.get_chat_template()
        self._source = (FIXED_CLOCK if "strftime_now" in source else "") + source
        self.writes_date = "strftime_now" in source or "date_string" in source
        self.frame = self._measure_frame(special_texts)

    def render(self, turns: Sequence[Message], place: str, *, ask: bool = False) -> str:
        """The template's text; ``ask`` adds what precedes the assistant's next answer.

        Raises:
            UserError: where the template refuses the turns.
        """
        try:
            text = self._apply(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=ask,
                date_string=TEMPLATE_DATE.strftime("%d %b %Y"),
            )
        except Exception as error:  # a template may raise anything its author likes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            roles = ", ".join(turn.role for turn in turns)
            raise UserError(
                f"{place}: the chat template refuses the turns {roles} ({reason}); change the "
                "row's roles, or use prompt_format: plain"
            ) from error
        return str(text)

    def segments(self, turns: Sequence[Message], place: str) -> list[Segment]:
        """A conversation cut at its assistant turns, through the end of the last.

        Templates may open only the last answer (an empty thinking block), so a turn is looked for
        with its opening and without. A last assistant turn without text gives an empty answer.

        Raises:
            UserError: where the template writes earlier turns or answers differently once later
                turns follow.
        """
        full = self.render(turns, place)
        segments: list[Segment] = []
        done = 0
        last = len(turns) - 1
        for position, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            asked = self.render(turns[:position], place, ask=True)
            if position == last and not turn.content.strip():
                prompt = asked + self.frame.opening
                return [*segments, Segment(prompt[done:]), Segment("", labelled=True, end="turn")]
            if not full.startswith(asked) or len(asked) < done:
                raise UserError(
                    f"{place}: the chat template writes turns 1 to {position} differently once "
                    "later turns follow, so what the model would see in use is not what it would "
                    "be trained on; split the conversation into rows of one answer each"
                )
            answer = self.frame.answer(turn.content)
            start = self._find_answer(full, len(asked), answer, f"{place}: turn {position + 1}")
            ended = bool(self.frame.end) and full.startswith(self.frame.end, start + len(answer))
            end: Literal["", "turn", "eos"] = "turn" if ended else "eos" if position == last else ""
            segments += [Segment(full[done:start]), Segment(answer, labelled=True, end=end)]
            done = start + len(answer) + (len(self.frame.end) if ended else 0)
        return segments

    def _find_answer(self, full: str, after: int, answer: str, where: str) -> int:
        """Position of an answer in the rendered text, right after the prompt for it."""
        for opening in (self.frame.opening, ""):
            if full.startswith(opening + answer, after):
                return after + len(opening)
        raise UserError(
            f"{where}: the chat template changes this answer, so its tokens cannot be labelled; "
            "remove what it rewrites (such as thinking marks), or use prompt_format: plain"
        )

    def _measure_frame(self, special_texts: Sequence[str]) -> ChatFrame:
        user = Message("user", "a")
        asked = self.render([user], "chat template", ask=True)
        plain = self.render([user, Message("assistant", PROBE)], "chat template")
        spaced = self.render([user, Message("assistant", f" {PROBE} ")], "chat template")
        if not plain.startswith(asked) or plain.count(PROBE) != 1:
            raise UserError(
                f"chat template: an answered conversation ({plain[:120]!r}) does not begin with "
                f"the prompt for its answer ({asked[:120]!r}), so labels cannot be placed; use "
                "prompt_format: plain"
            )
        before, after = plain[len(asked) :].split(PROBE)
        opening = before.rstrip(" ")
        stops = [after.index(text) + len(text) for text in special_texts if text and text in after]
        return ChatFrame(
            opening=opening,
            lead=before[len(opening) :],
            end=after[: min(stops)] if stops else "",
            strips=spaced == plain,
        )


def plain_turns(turns: Sequence[Message]) -> list[Segment]:
    """A conversation without a chat template: ``Role: content`` paragraphs."""
    segments: list[Segment] = []
    text = ""
    for turn in turns:
        text += f"{turn.role.capitalize()}:"
        if turn.role == "assistant":
            answer = set_off(text, turn.content)
            segments += [Segment(text), Segment(answer, labelled=True, end="eos")]
            text = "\n\n"
        else:
            text += f" {turn.content.strip()}\n\n"
    return segments


def set_off(prompt: str, text: str) -> str:
    """An answer with the space that sets it off from a plain prompt, unless one is there."""
    if prompt[-1:].isspace() or text[:1].isspace():
        return text
    return " " + text
