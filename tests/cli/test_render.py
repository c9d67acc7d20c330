"""What the summary, tables and counts look like on a terminal."""

import io
from pathlib import Path

from architectures import LLAMA_8B
from command_line import rankscope as command
from rich.console import Console
from rich.table import Table

from rankscope.cli.terminal import terminal_table
from rankscope.report.columns import Column


def printed(table: Table, width: int = 140) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width, color_system=None).print(table)
    return output.getvalue().splitlines()


def test_a_terminal_table_blanks_repeated_names_and_keeps_numbers_whole() -> None:
    rows = [("a", "x", 1234.5, 1e6), ("a", "y", None, 22e6), ("b", "[red]z", 0.12345, "2/3")]
    titles = ("task", "arm", "value", "size")
    cells = [dict(zip(titles, row, strict=True)) for row in rows]
    sizes = {"size": Column(text=lambda size: f"{size / 1e6:.0f} MB")}
    table = terminal_table(cells, "[b]t", sizes, sections=1)
    output = io.StringIO()
    Console(file=output, width=40, color_system=None).print(table)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert lines == [
        "[b]t",
        "",
        " task arm    value  size",
        " \N{BOX DRAWINGS LIGHT HORIZONTAL}" + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 22,
        " a    x      1,234  1 MB",
        "      y          \N{EN DASH} 22 MB",
        "",
        " b    [red]z 0.123   2/3",
        "",
    ]


def test_of_many_rows_the_first_are_shown_and_the_others_counted() -> None:
    table = terminal_table([{"n": i} for i in range(1201)], "many")
    assert table.row_count == 200
    assert str(table.caption) == "and 1,001 more; --json lists all"


def test_the_published_counts_of_llama(tmp_path: Path) -> None:
    """The figures that arXiv 2512.15634's setting implies, as a reader would look them up."""
    LLAMA_8B.save_pretrained(tmp_path)
    shown = command("params", tmp_path).out
    for count in ("6,815,744", "27,262,976", "54,525,952", "109,051,904", "8,030,261,248"):
        assert count in shown
