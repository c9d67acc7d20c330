"""Rows from files, folders, the hub and the pocket world, each with its location for messages.

Knows nothing about the meaning of a row (``formats.py``) or its split (``splits.py``). File formats
whose loading can run code (pickle and its relatives) are refused.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.errors import UserError

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
TEXT = (".txt",)
CAN_RUN_CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib", ".py")
SPLIT_FILES = ("train", "validation", "test")
DEV = "dev"
"""An optional file of rows that serve as few-shot examples only."""
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as read."""

    location: str
    """For messages, such as ``data/train.jsonl, row 3``."""
    number: int
    """Row number from 1; the line number in a JSONL file."""
    fields: Mapping[str, Any]


SplitRows = dict[str, list[RawRow]]
"""Rows by split file: ``train``, ``validation``, ``test``, ``dev``, any of them absent."""


def numbered(rows: Sequence[Mapping[str, Any]], place: str) -> list[RawRow]:
    """Rows with their numbers and locations."""
    return [RawRow(f"{place}, row {n}", n, row) for n, row in enumerate(rows, start=1)]


# --- files --------------------------------------------------------------------------------------


def read_file(path: Path) -> list[RawRow]:
    """All rows of one JSONL, Parquet or text file; the rows of a text file are its paragraphs."""
    suffix = path.suffix.lower()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise UserError(f"{path}: expected a JSONL, Parquet or text file, found {found}")
    if suffix in CAN_RUN_CODE:
        raise UserError(
            f"{path}: {suffix} files are refused because loading one can run code; "
            "convert it to JSONL or Parquet"
        )
    if suffix in JSON_LINES:
        rows = read_json_lines(path)
    elif suffix in PARQUET:
        rows = read_parquet(path)
    elif suffix in TEXT:
        rows = read_paragraphs(path)
    else:
        raise UserError(
            f"{path}: found suffix {suffix or '(none)'!r}, expected "
            f"{', '.join(JSON_LINES + PARQUET + TEXT)}; convert the file"
        )
    if not rows:
        raise UserError(f"{path}: the file has no rows; expected at least one")
    return rows


def read_json_lines(path: Path) -> list[RawRow]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            location = f"{path}, row {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                rows.append(RawRow(location, number, parse_json_object(line, location)))
    return rows


def parse_json_object(line: bytes, location: str) -> dict[str, Any]:
    """One line as an object whose strings can be encoded in UTF-8 again."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{location}: byte {error.start + 1} of the line is not valid UTF-8; expected UTF-8, "
            "convert the file (iconv -t utf-8)"
        ) from None
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{location}: not valid JSON ({error}); expected one JSON object per line"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"{location}: found a JSON {type(row).__name__}, expected an object")
    # A lone surrogate (half of an escaped pair) is valid JSON, but no tokenizer can encode it.
    if "\\ud" in text.lower():
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{location}: a lone surrogate (\\ud800 to \\udfff) is not a character; remove it"
            ) from None
    return row


def read_paragraphs(path: Path) -> list[RawRow]:
    """Paragraphs separated by blank lines, each a row ``text`` numbered by its first line."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start + 1} is not valid UTF-8; expected UTF-8, convert the file "
            "(iconv -t utf-8)"
        ) from None
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


def read_parquet(path: Path) -> list[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return numbered(pq.read_table(path).to_pylist(), str(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None


def read_folder(folder: Path) -> SplitRows:
    """The split files of one task folder, as far as they exist."""
    if not folder.is_dir():
        siblings = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
        raise UserError(
            f"{folder}: no such folder; {folder.parent} has {', '.join(siblings) or 'no folders'}. "
            "Put train.jsonl, validation.jsonl or test.jsonl there, or leave data_dir out to use "
            "the hub"
        )
    files: SplitRows = {}
    for split in (*SPLIT_FILES, DEV):
        paths = [folder / (split + suffix) for suffix in JSON_LINES + PARQUET + TEXT]
        existing = [path for path in paths if path.is_file()]
        if len(existing) > 1:
            raise UserError(
                f"{existing[0]} and {existing[1].name} are both files of {split}: remove one"
            )
        if existing:
            files[split] = read_file(existing[0])
    if not files.keys() - {DEV}:
        raise UserError(f"{folder}: expected train, validation or test as .jsonl, .parquet or .txt")
    return files


# --- the hub ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set on the hub, and which of its splits serve as train, validation and test.

    A split name is None if the hub has no such split with labels.
    """

    id: str
    config: str | None = None
    revision: str | None = None
    """Branch, tag or commit; None is the default branch."""
    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"
    dev: str | None = None
    """Rows that serve as few-shot examples only."""
    train_is_separate_collection: bool = False
    """The training rows are another collection: read only if a study trains on the task."""

    @property
    def label(self) -> str:
        """Name for messages, such as ``hub openai/gsm8k (main)``."""
        config = f" ({self.config})" if self.config else ""
        revision = f" @ {self.revision}" if self.revision else ""
        return f"hub {self.id}{config}{revision}"

    @property
    def splits(self) -> dict[str, str]:
        """Split file -> name on the hub."""
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: name for split, name in {**names, DEV: self.dev}.items() if name is not None}


def read_hub(source: HubSource) -> tuple[SplitRows, str]:
    """The rows of a hub data set; ``source.id`` may be a local folder.

    Returns:
        The rows, and the source's label with the commit that was read, if it is known.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(source.id, source.config, revision=source.revision)
    except Exception as error:  # the library raises some ten unrelated types here
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        if "script" in reason or "trust_remote_code" in reason:
            raise UserError(
                f"{source.label}: loading this data set would run its own code, which is refused "
                f"({reason}); use the hub's Parquet copy (revision: refs/convert/parquet), or put "
                "the rows into JSONL or Parquet files"
            ) from error
        raise UserError(
            f"{source.label}: cannot be loaded ({reason}). Check the id and the connection "
            "(HF_HUB_OFFLINE forbids it), or put the rows into a local folder and name it with "
            "data_dir"
        ) from error
    files = {
        split: numbered(loaded[name].to_list(), f"{source.label}, {name}")
        for split, name in source.splits.items()
        if name in loaded
    }
    if not files:
        raise UserError(
            f"{source.label}: has the splits {', '.join(map(str, loaded))}; expected one of "
            f"{', '.join(source.splits.values())}"
        )
    commit = commit_of(loaded)
    label_has_commit = commit is None or commit == source.revision
    return files, source.label if label_has_commit else f"{source.label}, commit {commit}"


def commit_of(loaded: Mapping[str, Any]) -> str | None:
    """The commit of a hub data set, 40 hex digits; None if it is not known.

    The library names the cache folder of a hub data set, and no other folder, by its commit.
    """
    folders = {Path(f["filename"]).parent.name for s in loaded.values() for f in s.cache_files}
    return next((name for name in sorted(folders) if COMMIT.fullmatch(name)), None)


# --- rows derived or generated here -------------------------------------------------------------


LAW_SUBJECTS = ("professional_law", "jurisprudence", "international_law")


def legal_from_mmlu(mmlu: Mapping[str, Sequence[RawRow]]) -> SplitRows:
    """An open stand-in for LegalMCQ, cut from MMLU's law questions.

    Professional law is shuffled with seed 0: its first 500 rows are tested on, the others trained
    on. Jurisprudence and international law are tested on only. The folder form of this task was
    made with the same shuffle, so both forms contain the same rows.
    """
    law = [row for row in mmlu["test"] if row.fields.get("subject") in LAW_SUBJECTS]
    professional = [row for row in law if row.fields["subject"] == LAW_SUBJECTS[0]]
    others = [row for row in law if row.fields["subject"] != LAW_SUBJECTS[0]]
    random.Random(0).shuffle(professional)
    return {"train": professional[500:], "test": professional[:500] + others}


def read_pocket(task: str) -> tuple[SplitRows, str]:
    """The rows of one task of the pocket world, and the label of their source."""
    from rankscope.data.pocket_world import pocket_rows

    splits = ((split, pocket_rows(task, split)) for split in SPLIT_FILES)
    rows = {split: numbered(rows, f"{task}, {split}") for split, rows in splits if rows}
    return rows, "pocket world"
