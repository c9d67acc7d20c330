"""Rows from files and folders, each with its location for messages.

This module does not know a row's meaning (``formats.py``) or its split (``splits.py``). It refuses
other kinds of files unopened, such as a pickle, whose loading can run code.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rankscope.data.rows import BadRow, RawRow
from rankscope.errors import UserError, reading, reason_of

SPLIT_FILES = ("train", "validation", "test")
DEV = "dev"  # An optional file of rows that serve as few-shot examples only
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_UNPACKED = 100
"""Limit of memory bytes per byte of a Parquet file above ``FREE_UNPACKED``: more is a bomb."""
FREE_UNPACKED = 64 * 2**20
PARQUET_BATCH = 512  # Cells that are unpacked before their size is known
ROW_BYTES, CELL_BYTES = 500, 60
"""Bytes that a row, and each of its cells, takes as Python objects besides their values."""


SplitRows = dict[str, list[RawRow]]
"""Rows by split file: ``train``, ``validation``, ``test`` and ``dev``, some absent."""


def numbered(rows: Sequence[Any], place: str) -> list[RawRow]:
    """Give rows their numbers and locations; anything but an object is a row with a problem."""
    return [RawRow(f"{place}, row {n}", n, *_as_fields(row)) for n, row in enumerate(rows, start=1)]


def _as_fields(row: Any) -> tuple[Mapping[str, Any], BadRow | None]:
    """Return the fields of a row, or the reason why it has none."""
    if isinstance(row, Mapping):
        return row, None
    return {}, BadRow(f"a JSON {type(row).__name__}", "an object")


# --- files --------------------------------------------------------------------------------------


def check_file(path: Path) -> None:
    """Refuse, unopened, a path without a file of rows."""
    suffix, known = path.suffix.lower(), ", ".join(READERS)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise UserError(path, found, f"a file of rows ({known})", "name one")
    if suffix not in READERS:
        found = f"the suffix {suffix or '(none)'!r}"
        raise UserError(path, found, known, "convert the file, for example to CSV or JSONL")


def read_file(path: Path) -> list[RawRow]:
    """Read all rows of one file, also those with a problem; the suffix selects the reader."""
    check_file(path)
    rows = READERS[path.suffix.lower()](path)
    if not rows:
        raise UserError(path, "no rows", "at least one", "give a file with rows")
    return rows


def _read_json(path: Path) -> list[RawRow]:
    """Read one object per line, one array of objects, or an object with one list of them."""
    content = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    is_array = content.lstrip()[:1] == b"["
    if is_array or path.suffix.lower() == ".json":
        text = _utf8_text(content, path)
        try:
            return numbered(_list_of_rows(_parse_json(text), path), str(path))
        except ValueError as error:
            # A second value follows the first: one object per line, whatever the suffix says.
            if is_array or not str(error).startswith("Extra data"):
                found = f"text that is not JSON ({reason_of(error)})"
                rule = "an array of objects, or one object per line"
                raise UserError(path, found, rule, "correct it") from None
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            rows.append(RawRow(f"{path}, row {number}", number, *_parse_line(line)))
    return rows


def _list_of_rows(value: Any, path: Path) -> list[Any]:
    """Return the rows of a JSON document: an array, or the only list of objects in an object."""
    if isinstance(value, list):
        return value
    lists = {}
    if isinstance(value, dict):
        lists = {k: v for k, v in value.items() if isinstance(v, list) and v}
        lists = {k: v for k, v in lists.items() if all(isinstance(row, dict) for row in v)}
    if len(lists) != 1:
        found = "an object" if isinstance(value, dict) else f"one {type(value).__name__}"
        keys = f" with the lists {', '.join(lists)}" if lists else " without a list of rows"
        rule = "an array of objects, or an object with one such list"
        do = "write one (pandas: to_json(orient='records'))"
        raise UserError(path, found + keys, rule, do)
    return next(iter(lists.values()))


def _parse_json(text: str) -> Any:
    """Parse a JSON value whose strings can be encoded in UTF-8 again.

    Raises ValueError: the text is not valid JSON, or holds a text that no tokenizer can encode.
    """
    try:
        value = json.loads(text)
        # A lone surrogate (half of an escaped pair) is valid JSON, but not a character.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError(reason_of(error)) from None
    return value


def _parse_line(line: bytes) -> tuple[Mapping[str, Any], BadRow | None]:
    """Return the fields of one line, or the reason why it has none."""
    try:
        return _as_fields(_parse_json(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of the line, which is not UTF-8"
        return {}, BadRow(found, "UTF-8 text", "convert the file")
    except ValueError as error:
        found = f"text that is not JSON ({reason_of(error)})"
        return {}, BadRow(found, "one JSON object per line")


def _utf8_text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte {error.start + 1} of the file, which is not UTF-8"
        do = "convert the file (iconv -t utf-8)"
        raise UserError(f"{path}, line {line}", found, "UTF-8 text", do) from None


def _read_table(path: Path, delimiter: str) -> list[RawRow]:
    """Read a table with a header; every cell is text."""
    text = _utf8_text(path.read_bytes().removeprefix(BYTE_ORDER_MARK), path)
    first_line = text.partition("\n")[0]
    if delimiter == "," and ";" in first_line and "," not in first_line:
        delimiter = ";"  # how spreadsheets write tables where the comma is the decimal mark
    csv.field_size_limit(2**31 - 1)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[RawRow] = []
    try:
        header = [name.strip() for name in next(records, [])]
        if len(set(header)) < len(header) or "" in header[1:]:
            found = f"the header {', '.join(map(repr, header))}"
            rule = "a name for every column, each once"
            raise UserError(f"{path}, line 1", found, rule, "correct it")
        for record in records:
            if record:
                number = len(rows) + 1
                location = f"{path}, row {number} (line {records.line_num})"
                rows.append(RawRow(location, number, *_as_record(header, record, delimiter)))
    except csv.Error as error:
        found = f"what is no table with the delimiter {delimiter!r} ({error})"
        do = "put cells with line breaks, quotes or delimiters in double quotes"
        raise UserError(f"{path}, line {records.line_num}", found, "a table", do) from None
    return rows


def _as_record(
    header: Sequence[str], record: Sequence[str], delimiter: str
) -> tuple[Mapping[str, Any], BadRow | None]:
    """Return the cells of a line by column, or the reason why they fit no columns."""
    if len(record) != len(header):
        do = f"put cells that contain {delimiter!r} in double quotes"
        return {}, BadRow(f"{len(record)} cells", f"{len(header)} as in the header", do)
    # A column without a name is the index that pandas writes.
    return {name: cell for name, cell in zip(header, record, strict=True) if name}, None


def _read_paragraphs(path: Path) -> list[RawRow]:
    """Read paragraphs separated by blank lines, each a row ``text`` numbered by its first line."""
    text = _utf8_text(path.read_bytes().removeprefix(BYTE_ORDER_MARK), path)
    lines = re.split(r"\r\n?|\n", text)  # not at what else Unicode calls the end of a line
    rows: list[RawRow] = []
    paragraph: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            first = number - len(paragraph)
            rows.append(RawRow(f"{path}, line {first}", first, {"text": "\n".join(paragraph)}))
            paragraph = []
    return rows


def _read_parquet(path: Path) -> list[RawRow]:
    """Read a Parquet file, a few rows at a time: a small file can unpack to any size."""
    import pyarrow.parquet as pq

    limit = FREE_UNPACKED + MAX_UNPACKED * path.stat().st_size
    rows: list[RawRow] = []
    unpacked = 0
    with (
        reading(path, "a readable Parquet file", do="write it again"),
        pq.ParquetFile(path) as file,
    ):
        _check_unpacked(path, file.metadata.num_rows * ROW_BYTES, limit)
        batch_size = max(1, PARQUET_BATCH // max(1, file.metadata.num_columns))
        for packed in file.iter_batches(batch_size=batch_size):
            batch = _without_dictionaries(packed)
            unpacked += batch.nbytes + batch.num_rows * (ROW_BYTES + batch.num_columns * CELL_BYTES)
            _check_unpacked(path, unpacked, limit)
            rows += _arrow_rows(batch, path, len(rows))
    return rows


def _without_dictionaries(batch: Any) -> Any:
    """Expand the dictionaries of an Arrow batch, so that every cell shows its size."""
    import pyarrow as pa

    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _check_unpacked(path: Path, num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        found = f"rows that take {num_bytes:,} bytes in memory"
        rule = f"at most {limit:,} from a file of {path.stat().st_size:,}"
        raise UserError(path, found, rule, "convert it to JSONL if you trust it")


def _arrow_rows(batch: Any, path: Path, before: int) -> list[RawRow]:
    """Return the rows of an Arrow batch; an unreadable cell makes a row with a problem."""
    place = f"{path}, row "
    try:
        parsed = [_as_fields(row) for row in batch.to_pylist()]
    except MemoryError:
        raise
    except Exception:  # text that is not UTF-8, a date out of range, an unknown time zone
        parsed = [_readable_fields(batch.slice(n, 1)) for n in range(batch.num_rows)]
    return [RawRow(f"{place}{n}", n, *row) for n, row in enumerate(parsed, start=before + 1)]


def _readable_fields(row: Any) -> tuple[Mapping[str, Any], BadRow | None]:
    """Return the fields of an Arrow batch of one row, or the reason why they cannot be read."""
    try:
        return _as_fields(row.to_pylist()[0])
    except MemoryError:
        raise
    except Exception as error:
        return {}, BadRow(f"an unreadable cell ({reason_of(error)})", "a value")


READERS: dict[str, Callable[[Path], list[RawRow]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": partial(_read_table, delimiter=","),
    ".tsv": partial(_read_table, delimiter="\t"),
    ".parquet": _read_parquet,
    ".txt": _read_paragraphs,
}
"""Maps a file's suffix to its reader."""


def split_paths(folder: Path) -> dict[str, Path]:
    """Find the split files of a task's folder without opening them.

    Raises UserError: two files of one split, or none at all.
    """
    if not folder.is_dir():
        siblings = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
        found = f"no such folder beside {', '.join(siblings) or 'no other'}"
        do = "put them there, or leave data_dir out to use the hub"
        raise UserError(folder, found, "train.jsonl, validation.jsonl or test.jsonl there", do)
    paths = {}
    for split in (*SPLIT_FILES, DEV):
        existing = [path for s in READERS if (path := folder / (split + s)).is_file()]
        if len(existing) > 1:
            found = f"both {existing[0].name} and {existing[1].name}"
            raise UserError(folder, found, f"one file of {split}", "remove one")
        if existing:
            paths[split] = existing[0]
    if not paths.keys() - {DEV}:
        rule = f"train, validation or test with one of the suffixes {', '.join(READERS)}"
        raise UserError(folder, "no file of rows", rule, "put one there")
    return paths
