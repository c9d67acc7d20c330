"""Writers of a table, a DataFrame, as HTML, Markdown, LaTeX, CSV or Parquet.

``frame.attrs["columns"]`` says how people read its columns (``columns.py``). HTML, Markdown and
LaTeX follow it; CSV and Parquet keep names and every digit. A figure's frame has titles for names:
``attrs["digits"]`` maps them to digits after the point. Other numbers show three significant
digits, and p values and probabilities end at <0.001 and at over 99 %. ``attrs["best"]`` names
columns whose highest value is bold in Markdown and LaTeX.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from markupsafe import Markup, escape

from rankscope.errors import reporting_shortages
from rankscope.filesystem import make_folder, replace_bytes
from rankscope.formatting import MAX_TEXT, MINUS, UNKNOWN, markdown_text, safe_text
from rankscope.report.columns import Cell, Column, number_text, shown_rows

MAX_PAGE_CELL = 300  # Longest text of a cell on a page, in characters; files hold longer ones


def table_from_rows(
    rows: Sequence[Mapping[str, object]],
    digits: Mapping[str, int] = MappingProxyType({}),
    best: Sequence[str] = (),
) -> pd.DataFrame:
    """Make a DataFrame from rows, each a mapping of column title to cell; None is unknown.

    Args:
        digits: digits after the point by column title; an interval has those of its value.
        best: titles of columns whose highest value is marked.
    """
    frame = _frame(rows)
    values = {title: re.sub(", (low|high)$", "", title) for title in frame.columns}
    frame.attrs["digits"] = {t: digits[value] for t, value in values.items() if value in digits}
    frame.attrs["best"] = [title for title in best if title in frame.columns]
    return frame


def table(
    rows: Sequence[Mapping[str, object]],
    columns: Mapping[str, Column] = MappingProxyType({}),
    best: Sequence[str] = (),
) -> pd.DataFrame:
    """Make a DataFrame from rows, each a mapping of column name to cell; None is unknown.

    Args:
        columns: how people read them, by name; by default names with spaces.
        best: names of columns whose highest value is marked.
    """
    frame = _frame(rows)
    frame.attrs["columns"] = dict(columns)
    frame.attrs["best"] = [name for name in best if name in frame.columns]
    return frame


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Translate a table for people: titles, units and digits. A figure's frame needs no change."""
    if (columns := frame.attrs.get("columns")) is None:
        return frame
    names = list(frame.columns)
    rows = [dict(zip(names, row, strict=True)) for row in frame_rows(frame)]
    read, digits = shown_rows(rows or [dict.fromkeys(names)], columns)
    titles = dict(zip(names, read[0], strict=True))
    best = [titles[name] for name in frame.attrs["best"]]
    return table_from_rows(read if rows else [], digits, best)


def _frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), dtype=object)
    for name in frame.columns:
        known = [cell for cell in frame[name] if cell is not None]
        is_whole = known and all(isinstance(c, int) and not isinstance(c, bool) for c in known)
        # Integers stay integers beside unknown cells.
        frame[name] = frame[name].astype("Int64") if is_whole else frame[name].infer_objects()
    return frame


def frame_rows(frame: pd.DataFrame) -> list[tuple[Cell, ...]]:
    """Return the rows as Python values; unknown cells are None."""
    cells = frame.astype(object).where(frame.notna(), None)
    return list(cells.itertuples(index=False, name=None))


def _shown_cell(
    value: Cell, title: str, digits: Mapping[str, int], limit: int = MAX_PAGE_CELL
) -> str:
    """Write a cell's text in a column, before it is escaped."""
    if isinstance(value, str):
        return safe_text(value, limit)
    return number_text(value, title, digits.get(title))


def _is_numeric(column: "pd.Series[object]") -> bool:
    """Whether a column holds at least one number, and no text."""
    cells = column.dropna()
    return len(cells) > 0 and not any(isinstance(cell, str) for cell in cells)


def html_table(frame: pd.DataFrame) -> Markup:
    """Write a ``<table>``; ``data-v`` holds every digit of a number, for the page's CSV
    download."""
    frame = shown(frame)
    digits = frame.attrs.get("digits", {})
    header = [
        f'<th scope="col" class="n">{escape(title)}</th>'
        if _is_numeric(frame[title])
        else f'<th scope="col">{escape(title)}</th>'
        for title in frame.columns
    ]
    rows = [
        [_html_cell(cell, title, digits) for cell, title in zip(row, frame.columns, strict=True)]
        for row in frame_rows(frame)
    ]
    body = "".join(f"<tr>{''.join(cells)}</tr>\n" for cells in rows)
    return Markup(
        f"<table>\n<thead><tr>{''.join(header)}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    )


def _html_cell(cell: Cell, title: str, digits: Mapping[str, int]) -> str:
    text = escape(_shown_cell(cell, title, digits))
    if isinstance(cell, str):
        return f"<td>{text}</td>"
    value = "" if cell is None else f' data-v="{cell}"'
    return f'<td class="n"{value}>{text}</td>'


def markdown(frame: pd.DataFrame) -> str:
    """Write a table in GitHub's Markdown; numbers are flush right."""
    frame = _with_intervals(shown(frame))
    text = _texts(frame, markdown_text, "**{}**")
    rules = ["---:" if _is_numeric(frame[title]) else "---" for title in frame.columns]
    lines = [text.columns, rules, *text.itertuples(index=False, name=None)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(frame: pd.DataFrame) -> str:
    """Write a ``tabular`` for the booktabs package; numbers are flush right."""
    frame = _with_intervals(shown(frame))
    kinds = "".join("r" if _is_numeric(frame[title]) else "l" for title in frame.columns)
    cells = _texts(frame, latex_text, r"\textbf{{{}}}")
    text = cells.to_latex(index=False, escape=False, column_format=kinds)
    return f"% \\usepackage{{booktabs}}\n{text}"


def comma_separated(frame: pd.DataFrame) -> str:
    """Write CSV (RFC 4180): unknown is empty, and a number reads back as the same number."""
    safe = pd.DataFrame(
        {
            _csv_text(title): [_csv_text(c) if isinstance(c, str) else c for c in frame[title]]
            for title in frame.columns
        }
    )
    return str(safe.to_csv(index=False, lineterminator="\r\n"))


FORMATS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "md": lambda frame: markdown(frame).encode(),
    "csv": lambda frame: comma_separated(frame).encode(),
    "tex": lambda frame: latex(frame).encode(),
    "parquet": lambda frame: bytes(frame.to_parquet(index=False)),
}
"""Maps a file ending to the function that gives the file's content."""


def write_tables(
    tables: Mapping[str, pd.DataFrame], out: Path, endings: Collection[str] = FORMATS.keys()
) -> list[Path]:
    """Write tables as ``arms.md``, ``arms.csv``, ``arms.tex``, ``arms.parquet`` and so on.

    A table without rows is not written, and its files of an earlier call are removed. Raises
    DiskFull; no file is then cut short.
    """
    written = []
    with reporting_shortages(out):
        make_folder(out)
        for name, table in tables.items():
            for ending in endings:
                path = out / f"{name}.{ending}"
                if len(table):
                    replace_bytes(path, FORMATS[ending](table))
                    written.append(path)
                else:
                    path.unlink(missing_ok=True)
    return written


def _with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """Merge columns ``x``, ``x, low`` and ``x, high`` into ``x [95 %]``: ``3.1 [1.0, 5.2]``."""
    digits, titles = frame.attrs.get("digits", {}), set(frame.columns)
    with_ends = {t for t in titles if {f"{t}, low", f"{t}, high"} <= titles}
    ends = {f"{title}, {end}" for title in with_ends for end in ("low", "high")}
    merged: dict[str, Iterable[Cell]] = {}
    for title in frame.columns:
        if title in with_ends:
            rows = frame_rows(frame[[title, f"{title}, low", f"{title}, high"]])
            merged[f"{title} [95 %]"] = [_value_with_ends(row, title, digits) for row in rows]
        elif title not in ends:
            merged[title] = frame[title]
    result = pd.DataFrame(merged)
    result.attrs["digits"] = digits
    result.attrs["bold"] = {
        (f"{title} [95 %]" if title in with_ends else title, row)
        for title in frame.attrs.get("best", ())
        for row in _best_rows(frame[title].astype(float).round(digits.get(title, 3)))
    }
    return result


def _best_rows(values: "pd.Series[float]") -> list[int]:
    """Return the rows of the highest value as it is shown, so that rounded values tie."""
    return [int(row) for row in values.index[values == values.max()]]


def _value_with_ends(row: tuple[Cell, ...], title: str, digits: Mapping[str, int]) -> Cell:
    value, low, high = (None if cell is None else _shown_cell(cell, title, digits) for cell in row)
    return value if low is None or high is None else f"{value} [{low}, {high}]"


def _texts(frame: pd.DataFrame, escape_text: Callable[[str], str], bold: str) -> pd.DataFrame:
    """Write every cell as escaped text, texts whole; titles are escaped as well."""
    digits, marked = frame.attrs["digits"], frame.attrs["bold"]

    def text(cell: Cell, title: str, row: int) -> str:
        escaped = escape_text(_shown_cell(cell, title, digits, MAX_TEXT))
        return bold.format(escaped) if (title, row) in marked else escaped

    cells = [
        [text(cell, title, place) for cell, title in zip(row, frame.columns, strict=True)]
        for place, row in enumerate(frame_rows(frame))
    ]
    return pd.DataFrame(cells, columns=[escape_text(title) for title in frame.columns])


_DASHES = re.compile("-(?=-)|(?<=-)-")  # LaTeX joins two hyphens into one dash
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
    """Escape text for LaTeX, every character that has a meaning in TeX."""
    line = " ".join(safe_text(text).split())
    escaped = "".join(_LATEX.get(character, character) for character in line)
    return _DASHES.sub("{-}", escaped) if "--" in line else escaped


def _csv_text(text: str) -> str:
    """Write text for CSV, with an apostrophe before anything that a spreadsheet would run."""
    safe = safe_text(text)
    return "'" + safe if safe[:1] in ("=", "+", "-", "@", "\t", "\r") else safe
