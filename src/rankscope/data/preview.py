"""A training row as ``rankscope check`` prints it: every token, and which ones carry loss."""

from rich.text import Text

from rankscope.data.encode import EncodedRow, Encoder
from rankscope.formatting import terminal_text

LABEL_OPEN, LABEL_CLOSE = "\u27e6", "\u27e7"
"""Stand around labelled tokens, so that the marks survive without colour."""
PROMPT_STYLES = ("dim", "dim underline")
LABEL_STYLES = ("black on green", "black on bright_green")
SPECIAL_STYLE = "bold magenta"
LABELLED_SPECIAL_STYLE = "bold magenta on green"
MAX_TOKENS = 2000


def token_text(encoder: Encoder, token_id: int, before: int | None) -> str:
    """One token's text as it continues the token before it, spaces of word-level tokens included.

    Where a token is part of a character, its name in the vocabulary.
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
    """The row's tokens in alternating shades, labelled ones green and between marks.

    Special tokens are shown by name. Rows over 2,000 tokens are cut, which is said.
    """
    shown = Text()
    inside = False
    pairs = list(zip(row.input_ids, row.is_label, strict=True))
    for position, (token_id, labelled) in enumerate(pairs[:MAX_TOKENS]):
        if labelled != inside:
            shown.append(LABEL_OPEN if labelled else LABEL_CLOSE, style="bold green")
            inside = labelled
        if token_id in encoder.special_ids:
            style = LABELLED_SPECIAL_STYLE if labelled else SPECIAL_STYLE
        else:
            style = (LABEL_STYLES if labelled else PROMPT_STYLES)[position % 2]
        before = pairs[position - 1][0] if position else None
        shown.append(_marked_lines(token_text(encoder, token_id, before)), style=style)
    if inside:
        shown.append(LABEL_CLOSE, style="bold green")
    if len(pairs) > MAX_TOKENS:
        shown.append(f"\n... {len(pairs) - MAX_TOKENS} more tokens", style="italic")
    if row.truncated:
        shown.append("\n(the answer is cut at max_length)", style="bold red")
    return shown
