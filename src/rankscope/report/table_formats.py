"""Data tables as Markdown, CSV and LaTeX: text of the data is not read as mark-up.

What a viewer makes of plain words is its own: GitHub links bare addresses, ``www.`` and ``@name``,
and draws ``:name:`` as an emoji where it knows one.

Markdown and LaTeX show the digits that the page shows, and a value with its interval in one column;
CSV has every digit, and a column for each.
"""

import csv
import io
import re
from collections.abc import Callable

from rankscope.formatting import MAX_TEXT, MINUS, UNKNOWN, markdown_text, safe_text
from rankscope.report.charts.figure import Cell, Column, DataTable

_DASHES = re.compile("-(?=-)|(?<=-)-")  # two would join into one dash
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    # At the beginning of a row these would belong to the line break before it.
    "[": "{[}",
    "*": "{*}",
    MINUS: r"$-$",
    UNKNOWN: "--",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
}


def latex_text(text: str) -> str:
    """Text for LaTeX: every character that means something to TeX is escaped."""
    line = " ".join(safe_text(text, MAX_TEXT).split())
    escaped = "".join(_LATEX.get(character, character) for character in line)
    return _DASHES.sub("{-}", escaped) if "--" in line else escaped


def csv_text(text: str) -> str:
    """Text for CSV: what a spreadsheet would run as a formula starts with an apostrophe."""
    shown = safe_text(text, MAX_TEXT)
    return "'" + shown if shown[:1] in ("=", "+", "-", "@", "\t", "\r") else shown


def is_numeric(table: DataTable, column: int) -> bool:
    """Whether a column holds numbers and unknowns alone, and a number at all."""
    cells = [row[column] for row in table.rows]
    return any(cell is not None for cell in cells) and not any(isinstance(c, str) for c in cells)


def with_intervals(table: DataTable) -> DataTable:
    """Columns ``x``, ``x, low`` and ``x, high`` as one, ``x [95 %]``: ``3.1 [1.0, 5.2]``."""
    titles = [column.title for column in table.columns]
    starts = {
        place
        for place, title in enumerate(titles)
        if titles[place + 1 : place + 3] == [f"{title}, low", f"{title}, high"]
    }
    kept = [p for p in range(len(titles)) if not {p - 1, p - 2} & starts]

    def cell(row: tuple[Cell, ...], place: int) -> Cell:
        value = row[place]
        if place not in starts or value is None:
            return value
        shown, *ends = (table.shown(row[place + i], table.columns[place + i]) for i in range(3))
        return f"{shown} [{ends[0]}, {ends[1]}]" if None not in row[place : place + 3] else shown

    return DataTable(
        tuple(Column(f"{titles[p]} [95 %]") if p in starts else table.columns[p] for p in kept),
        tuple(tuple(cell(row, place) for place in kept) for row in table.rows),
    )


def markdown(table: DataTable) -> str:
    """A table in GitHub's Markdown; numbers flush right."""
    table = with_intervals(table)
    rules = ["---:" if is_numeric(table, i) else "---" for i in range(len(table.columns))]
    lines = [
        [markdown_text(column.title) for column in table.columns],
        rules,
        *shown_rows(table, markdown_text),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: DataTable) -> str:
    """A ``tabular`` for the booktabs package; numbers flush right."""
    table = with_intervals(table)
    kinds = "".join("r" if is_numeric(table, i) else "l" for i in range(len(table.columns)))
    heading = " & ".join(latex_text(column.title) for column in table.columns)
    body = "".join(" & ".join(row) + r" \\" + "\n" for row in shown_rows(table, latex_text))
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{kinds}}}\n\\toprule\n"
        f"{heading} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def shown_rows(table: DataTable, escape: Callable[[str], str]) -> list[list[str]]:
    """Every cell, escaped: numbers as the page shows them, texts whole."""
    return [
        [
            escape(cell if isinstance(cell, str) else table.shown(cell, column))
            for cell, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]


def comma_separated(table: DataTable) -> str:
    """CSV (RFC 4180): text in quotes where it must be, unknown empty, numbers with every digit."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([csv_text(column.title) for column in table.columns])
    writer.writerows([[csv_cell(cell) for cell in row] for row in table.rows])
    return out.getvalue()


def csv_cell(cell: Cell) -> str:
    """One cell; a number reads back as the same number."""
    if cell is None:
        return ""
    return csv_text(cell) if isinstance(cell, str) else repr(cell)


FORMATS: dict[str, Callable[[DataTable], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "tex": latex,
}
"""Ending of the file -> what writes it."""
