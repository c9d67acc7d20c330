"""``rankscope params``: counts by hand and as published."""

from pathlib import Path

from command_line import rankscope as command
from large_shapes import LLAMA_8B


def test_the_published_counts_of_llama(tmp_path: Path) -> None:
    """The figures that arXiv 2512.15634's setting implies, as a reader would look them up."""
    LLAMA_8B.save_pretrained(tmp_path)
    shown = command("params", tmp_path).out
    for count in ("6,815,744", "27,262,976", "54,525,952", "109,051,904", "8,030,261,248"):
        assert count in shown
