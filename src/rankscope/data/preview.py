"""A training row as ``rankscope check`` prints it: every token, and the labels among them."""

from rich.text import Text

from rankscope.data.encode import EncodedRow, Encoder
from rankscope.formatting import terminal_text

LABEL_OPEN, LABEL_CLOSE = "\u27e6", "\u27e7"  # Marks around labels, which also show without color
PROMPT_STYLES = ("dim", "dim underline")
LABEL_STYLES = ("black on green", "black on bright_green")
SPECIAL_STYLE = "bold magenta"
LABELED_SPECIAL_STYLE = "bold magenta on green"
MAX_TOKENS = 2000


def _token_text(encoder: Encoder, token_id: int, before: int | None) -> str:
    """One token's text after the token before it, with the space of a word-level token.

    A token that is part of a character is shown by its name in the vocabulary.
    """
    decode = encoder.tokenizer.decode
    text = str(decode([token_id]))
    if before is not None:
        first, pair = str(decode([before])), str(decode([before, token_id]))
        if pair.startswith(first):
            text = pair[len(first) :]
    if "\ufffd" in text or not text:
        text = str(encoder.tokenizer.convert_ids_to_tokens(token_id))
    return text


def _marked_lines(text: str) -> str:
    """Text safe for a terminal, with a visible mark at each line break."""
    return terminal_text(text).replace("\\n", "\\n\n")


def highlight_row(encoder: Encoder, row: EncodedRow) -> Text:
    """The row's tokens in alternating shades, labels green and between marks.

    Special tokens are shown by name; only the first ``MAX_TOKENS`` are highlighted.
    """
    highlighted = Text()
    inside = False
    pairs = list(zip(row.input_ids, row.is_label, strict=True))
    for position, (token_id, is_label) in enumerate(pairs[:MAX_TOKENS]):
        if is_label != inside:
            highlighted.append(LABEL_OPEN if is_label else LABEL_CLOSE, style="bold green")
            inside = is_label
        if token_id in encoder.special_ids:
            style = LABELED_SPECIAL_STYLE if is_label else SPECIAL_STYLE
        else:
            style = (LABEL_STYLES if is_label else PROMPT_STYLES)[position % 2]
        before = pairs[position - 1][0] if position else None
        highlighted.append(_marked_lines(_token_text(encoder, token_id, before)), style=style)
    if inside:
        highlighted.append(LABEL_CLOSE, style="bold green")
    if len(pairs) > MAX_TOKENS:
        highlighted.append(f"\n... {len(pairs) - MAX_TOKENS} more tokens", style="italic")
    if row.truncated:
        highlighted.append("\n(the answer is cut at max_length)", style="bold red")
    return highlighted
