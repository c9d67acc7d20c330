"""Writers of a table, a DataFrame, as HTML, Markdown, LaTeX, CSV or Parquet.

``frame.attrs["columns"]`` says how people read its columns (``columns.py``), by default by their
names. HTML, Markdown and LaTeX follow it; CSV and Parquet keep names and every digit.
``attrs["best"]`` names columns whose highest value is bold in Markdown and LaTeX.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from markupsafe import Markup, escape

from rankscope.errors import reporting_shortages
from rankscope.filesystem import make_folder, replace_bytes
from rankscope.formatting import MAX_TEXT, MINUS, UNKNOWN, markdown_text, safe_text
from rankscope.report.columns import Cell, Column, read_columns

MAX_PAGE_CELL = 300  # Longest text of a cell on a page, in characters; files hold longer ones


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
    frame.attrs["columns"] = read_columns(frame.columns, columns)
    frame.attrs["best"] = [name for name in best if name in frame.columns]
    return frame


def shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Translate a table for people: titles, units and words. A second call changes nothing."""
    columns = read_columns(frame.columns, frame.attrs.get("columns", {}))
    titles = {name: column.title for name, column in columns.items()}
    rows = [dict(zip(frame.columns, row, strict=True)) for row in frame_rows(frame)]
    read = _frame([{titles[n]: columns[n].shown(row[n], row) for n in row} for row in rows])
    ends = {c.title: tuple(titles[end] for end in c.ends) for c in columns.values()}
    read.attrs["columns"] = {
        c.title: c._replace(
            unit=c.unit and c.unit._replace(scale=1.0), unit_from="", ends=ends[c.title]
        )
        for c in columns.values()
    }
    read.attrs["best"] = [titles[name] for name in frame.attrs.get("best", ()) if name in titles]
    return read


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


def _shown_cell(value: Cell, column: Column, limit: int = MAX_PAGE_CELL) -> str:
    """Write a cell's text in a column, before it is escaped."""
    return safe_text(value, limit) if isinstance(value, str) else column.number(value)


def _is_numeric(column: "pd.Series[object]") -> bool:
    """Whether a column holds at least one number, and no text."""
    cells = column.dropna()
    return len(cells) > 0 and not any(isinstance(cell, str) for cell in cells)


_HEADINGS = {"arm": "configuration", "trial": "run"}  # Words of a page for names of columns


def html_table(frame: pd.DataFrame) -> Markup:
    """Write a ``<table>``; ``data-v`` holds every digit of a number, or the name of a column, for
    the page's CSV download."""
    frame = shown(frame)
    columns = [frame.attrs["columns"][title] for title in frame.columns]
    number = ' class="n"'
    heads = {name: f' data-v="{name}">{word}' for name, word in _HEADINGS.items()}
    header = [
        f'<th scope="col"{number * _is_numeric(frame[title])}'
        + heads.get(title, f">{escape(title)}")
        + "</th>"
        for title in frame.columns
    ]
    rows = [
        [_html_cell(cell, column) for cell, column in zip(row, columns, strict=True)]
        for row in frame_rows(frame)
    ]
    body = "".join(f"<tr>{''.join(cells)}</tr>\n" for cells in rows)
    return Markup(
        f"<table>\n<thead><tr>{''.join(header)}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    )


def _html_cell(cell: Cell, column: Column) -> str:
    text = escape(_shown_cell(cell, column))
    if isinstance(cell, str):
        return f"<td>{text}</td>"
    value = "" if cell is None else f' data-v="{cell}"'
    return f'<td class="n"{value}>{text}</td>'


def markdown(frame: pd.DataFrame) -> str:
    """Write a table in GitHub's Markdown; numbers are flush right."""
    text, are_numbers = _texts(shown(frame), markdown_text, "**{}**")
    rules = ["---:" if is_number else "---" for is_number in are_numbers]
    lines = [text.columns, rules, *text.itertuples(index=False, name=None)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(frame: pd.DataFrame) -> str:
    """Write a ``tabular`` for the booktabs package; numbers are flush right."""
    cells, are_numbers = _texts(shown(frame), _latex_text, r"\textbf{{{}}}")
    kinds = "".join("r" if is_number else "l" for is_number in are_numbers)
    text = cells.to_latex(index=False, escape=False, column_format=kinds)
    return f"% \\usepackage{{booktabs}}\n{text}"


def _comma_separated(frame: pd.DataFrame) -> str:
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
    "csv": lambda frame: _comma_separated(frame).encode(),
    "tex": lambda frame: _latex(frame).encode(),
    "parquet": lambda frame: bytes(pd.DataFrame(frame).to_parquet(index=False)),  # without attrs
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


def _texts(
    frame: pd.DataFrame, escape_text: Callable[[str], str], bold: str
) -> tuple[pd.DataFrame, list[bool]]:
    """Write titles and cells as escaped text, uncut; also return which columns are numbers.

    A column and its interval are one, ``x [95 %]``: ``3.1 [1.0, 5.2]``.
    """
    columns, made, are_numbers = frame.attrs["columns"], list[list[str]](), list[bool]()
    ends = {end for column in columns.values() for end in column.ends}
    titles = [title for title in frame.columns if title not in ends]
    for title in titles:
        column, marked = columns[title], list[int]()
        if title in frame.attrs["best"]:
            places = 3 if column.places is None else column.places
            marked = _best_rows(frame[title].astype(float).round(places))
        rows = enumerate(frame_rows(frame[[title, *column.ends]]))
        texts = [(place, escape_text(_value_with_ends(row, column))) for place, row in rows]
        made.append([bold.format(text) if place in marked else text for place, text in texts])
        are_numbers.append(not column.ends and _is_numeric(frame[title]))
    text = pd.DataFrame(dict(enumerate(made)))
    text.columns = [
        escape_text(f"{title} [95 %]" if columns[title].ends else title) for title in titles
    ]
    return text, are_numbers


def _best_rows(values: "pd.Series[float]") -> list[int]:
    """Return the rows of the highest value as it is shown, so that rounded values tie."""
    return [int(row) for row in values.index[values == values.max()]]


def _value_with_ends(row: tuple[Cell, ...], column: Column) -> str:
    value, *ends = (_shown_cell(cell, column, MAX_TEXT) for cell in row)
    return f"{value} [{', '.join(ends)}]" if ends and None not in row[1:] else value


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


def _latex_text(text: str) -> str:
    """Escape text for LaTeX, every character that has a meaning in TeX."""
    line = " ".join(safe_text(text).split())
    escaped = "".join(_LATEX.get(character, character) for character in line)
    return _DASHES.sub("{-}", escaped) if "--" in line else escaped


def _csv_text(text: str) -> str:
    """Write text for CSV, with an apostrophe before anything that a spreadsheet would run."""
    safe = safe_text(text)
    return "'" + safe if safe[:1] in ("=", "+", "-", "@", "\t", "\r") else safe
