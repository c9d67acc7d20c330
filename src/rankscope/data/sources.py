"""Rows from files, folders, the hub and the pocket world, each with its place for error messages.

Nothing here knows what a row means (``formats.py``) or which split it ends up in (``splits.py``).
Formats whose loading can run code (pickle and its relatives) are refused by name.
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
RUNS_CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib", ".py")
SPLIT_FILES = ("train", "validation", "test")
DEV = "dev"
"""A file of rows that only ever serve as shots, where there is one."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was read."""

    where: str
    """Place for messages, such as ``data/train.jsonl, row 3``."""
    number: int
    """Row number from 1; the line number in a JSONL file."""
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set on the hub: which of its splits stand for train, validation and test.

    A split name may be None where the hub has none with labels.
    """

    id: str
    config: str | None = None
    revision: str | None = None
    """Branch, tag or commit; None is the default branch."""
    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"
    dev: str | None = None
    """Rows that only ever serve as shots."""
    train_is_separate_collection: bool = False
    """The training rows are another collection: read only where a study trains on the task."""

    @property
    def label(self) -> str:
        """Name for people, such as ``hub openai/gsm8k (main)``."""
        config = f" ({self.config})" if self.config else ""
        revision = f" @ {self.revision}" if self.revision else ""
        return f"hub {self.id}{config}{revision}"


# --- files --------------------------------------------------------------------------------------


def read_file(path: Path) -> list[RawRow]:
    """All rows of one JSONL, Parquet or text file; a text file's rows are its paragraphs.

    Raises:
        UserError: where the file is missing, of another kind, empty or broken; with the row number.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise UserError(f"{path}: expected a JSONL, Parquet or text file, found {found}")
    if suffix in RUNS_CODE:
        raise UserError(
            f"{path}: {suffix} files are refused because loading one can run code; "
            "convert it to JSONL or Parquet"
        )
    if suffix in JSON_LINES:
        rows = _read_json_lines(path)
    elif suffix in PARQUET:
        rows = _read_parquet(path)
    elif suffix in TEXT:
        rows = _read_paragraphs(path)
    else:
        raise UserError(
            f"{path}: found suffix {suffix or '(none)'!r}, expected "
            f"{', '.join(JSON_LINES + PARQUET + TEXT)}; convert the file"
        )
    if not rows:
        raise UserError(f"{path}: the file has no rows; expected at least one")
    return rows


def _read_json_lines(path: Path) -> list[RawRow]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, row {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                rows.append(RawRow(where, number, _json_object(line, where)))
    return rows


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    """One line as an object whose strings can be encoded again."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} of the line is not valid UTF-8; "
            "expected UTF-8, convert the file (iconv -t utf-8)"
        ) from None
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON ({error}); expected one JSON object per line"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: found a JSON {type(row).__name__}, expected an object")
    # A lone surrogate (half of an escaped pair) is valid JSON, but no tokenizer can encode it.
    if "\\ud" in text.lower():
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: a lone surrogate (\\ud800 to \\udfff) is no character; remove it"
            ) from None
    return row


def _read_paragraphs(path: Path) -> list[RawRow]:
    """Stretches of lines between blank ones, each a row ``text`` numbered by its first line."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start + 1} is not valid UTF-8; expected UTF-8, convert the file "
            "(iconv -t utf-8)"
        ) from None
    rows: list[RawRow] = []
    begun: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            begun.append(line)
        elif begun:
            first = number - len(begun)
            rows.append(RawRow(f"{path}, line {first}", first, {"text": "\n".join(begun)}))
            begun = []
    return rows


def _read_parquet(path: Path) -> list[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None
    return [RawRow(f"{path}, row {n}", n, row) for n, row in enumerate(rows, start=1)]


def read_folder(folder: Path) -> dict[str, list[RawRow]]:
    """The split files of one task folder, ``train``, ``validation`` and ``test`` where present.

    Also ``dev``, rows that only serve as shots.

    Raises:
        UserError: where the folder holds none of them, or two for one split.
    """
    if not folder.is_dir():
        beside = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
        raise UserError(
            f"{folder}: no such folder; {folder.parent} has {', '.join(beside) or 'no folders'}. "
            "Put train.jsonl, validation.jsonl or test.jsonl there, or leave data_dir out to use "
            "the hub"
        )
    files: dict[str, list[RawRow]] = {}
    for split in (*SPLIT_FILES, DEV):
        paths = [folder / (split + s) for s in JSON_LINES + PARQUET + TEXT]
        found = [path for path in paths if path.is_file()]
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1].name} both stand for {split}: remove one")
        if found:
            files[split] = read_file(found[0])
    if not files.keys() - {DEV}:
        raise UserError(
            f"{folder}: expected train, validation or test as .jsonl or .parquet, or as .txt"
        )
    return files


# --- the hub ------------------------------------------------------------------------------------


COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(loaded: Mapping[str, Any]) -> str | None:
    """The hub's commit at which a data set was read, 40 hex digits; None where it is not known.

    The library names the folder in which it keeps a hub data set by it, as no other.
    """
    folders = {Path(f["filename"]).parent.name for s in loaded.values() for f in s.cache_files}
    return next((name for name in sorted(folders) if COMMIT.fullmatch(name)), None)


def read_hub(source: HubSource) -> tuple[dict[str, list[RawRow]], str]:
    """The rows of a hub data set by split file name; ``source.id`` may be a local folder.

    Returns:
        The rows, and the source's label with the commit that was read, where it is known.

    Raises:
        UserError: where the hub or the data set cannot be reached, or a split is missing.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(source.id, source.config, revision=source.revision)
    except Exception as error:  # the library raises some ten unrelated types here
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        if "script" in reason or "trust_remote_code" in reason:
            raise UserError(
                f"{source.label}: this data set needs code of its own to be loaded, which is "
                f"refused ({reason}); use the hub's Parquet copy of it (revision: "
                "refs/convert/parquet), or put its rows into JSONL or Parquet files"
            ) from error
        raise UserError(
            f"{source.label}: cannot be loaded ({reason}). Check the id and the connection "
            "(HF_HUB_OFFLINE forbids it), or put the rows into a local folder and name it with "
            "data_dir"
        ) from error
    wanted = {
        "train": source.train,
        "validation": source.validation,
        "test": source.test,
        DEV: source.dev,
    }
    files = {}
    for split, name in wanted.items():
        if name is not None and name in loaded:
            rows = loaded[name].to_list()
            files[split] = [
                RawRow(f"{source.label}, {name}, row {n}", n, row)
                for n, row in enumerate(rows, start=1)
            ]
    if not files:
        raise UserError(
            f"{source.label}: has the splits {', '.join(map(str, loaded))}; expected one of "
            f"{', '.join(name for name in wanted.values() if name)}"
        )
    commit = commit_of(loaded)
    is_told = commit is None or commit == source.revision
    return files, source.label if is_told else f"{source.label}, commit {commit}"


LAW_SUBJECTS = ("professional_law", "jurisprudence", "international_law")


def legal_from_mmlu(mmlu: Mapping[str, Sequence[RawRow]]) -> dict[str, list[RawRow]]:
    """LegalMCQ's open stand-in, cut from MMLU's law questions.

    Professional law is shuffled with seed 0: its first 500 rows are tested on, the others are
    trained on. Jurisprudence and international law are tested on only. The shuffle is that of the
    folder form of this task, so both forms hold the same rows.
    """
    by_subject: dict[str, list[RawRow]] = {subject: [] for subject in LAW_SUBJECTS}
    for row in mmlu["test"]:
        if row.fields.get("subject") in by_subject:
            by_subject[row.fields["subject"]].append(row)
    professional = list(by_subject["professional_law"])
    random.Random(0).shuffle(professional)
    others = [row for row in mmlu["test"] if row.fields.get("subject") in LAW_SUBJECTS[1:]]
    return {"train": professional[500:], "test": professional[:500] + others}


# --- the pocket world ---------------------------------------------------------------------------


def read_pocket(task: str) -> dict[str, list[RawRow]]:
    """The rows of one family of the pocket world; ``validation`` is its validation split."""
    from rankscope.data.pocket_world import pocket_rows

    files = {}
    for split, name in zip(SPLIT_FILES, ("train", "validation", "test"), strict=True):
        rows = pocket_rows(task, name)
        if rows:
            files[split] = [
                RawRow(f"{task}, {name}, row {n}", n, row) for n, row in enumerate(rows, start=1)
            ]
    return files
