"""Files of rows that somebody made: JSONL, CSV and Parquet, and everything that reads them."""

import csv
import io
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz_mutations import altered, as_bytes, damaged, json_text, plain

CHOICES = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1, "subject": "sums"}
ROWS: Sequence[dict[str, Any]] = (
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    {"prompt": "say a", "completion": "a"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "bot", "content": "b"}]},
    {"text": "a long text"},
    {"instruction": "add", "input": "2, 3", "output": "5"},
    CHOICES,
    {**CHOICES, "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"},
    {"question": {"stem": "2?", "choices": [{"text": "a", "label": "A"}]}, "answerKey": "A"},
    {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4 #### 4"},
    {"question": "is it", "answer": True},
    {"goal": "open", "sol1": "push", "sol2": "pull", "label": 0},
    {"sentence": "The _ fell.", "option1": "cup", "option2": "sky", "answer": "1"},
    {"context": "a court", "endings": ["x", "y"], "label": 1},
    {
        "activity_label": "A",
        "ctx_a": "b [title] c",
        "ctx_b": "d",
        "endings": ["e", "f"],
        "label": 0,
    },
    {"Problem": "p", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "a"},
    {"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "C"},
    {"question": "q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 1},
)


def some_rows(rng: random.Random) -> list[Any]:
    """Sound rows of one shape, all different, and at most three that are altered."""
    row = rng.choice(ROWS)
    text = json.dumps(row)
    name = next(name for name, value in row.items() if isinstance(value, str | list | dict))
    rows = [json.loads(text) | {name: numbered(row[name], n)} for n in range(rng.randint(1, 12))]
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(rows))
        rows[place] = altered(rows[place], rng)
    return rows


def numbered(value: Any, number: int) -> Any:
    """The value with a number in its first text."""
    if isinstance(value, str):
        return f"{value} {number}"
    if isinstance(value, list):
        return [numbered(value[0], number), *value[1:]]
    return {
        k: numbered(v, number) if k in ("content", "value", "stem") else v for k, v in value.items()
    }


def make_jsonl(rng: random.Random) -> bytes:
    ascii_only = rng.random() < 0.5
    rows = [json_text(row, ascii_only) for row in some_rows(rng)]
    match rng.randrange(8):
        case 0:
            content = as_bytes("[" + ",".join(rows) + "]")
        case 1:
            content = as_bytes(json_text({"data": [], "version": 1})[:-1] + f', "rows": {rows}}}')
        case _:
            content = as_bytes("\n".join(rows))
    return damaged(content, rng) if rng.random() < 0.4 else content


def read_jsonl(content: bytes, folder: Path) -> None:
    read_rows(content, folder / ("rows.json" if content[:1] in (b"[", b"{") else "rows.jsonl"))


def read_rows(content: bytes, path: Path) -> None:
    """Load them as a task in both ways of treating bad rows."""
    from rankscope.config.task import TaskConfig
    from rankscope.data.tasks import load_task
    from rankscope.errors import RankscopeError

    path.write_bytes(content)
    mine = TaskConfig(name="mine", train=str(path))
    with suppress(RankscopeError):
        load_task(mine.model_copy(update={"on_bad_rows": "drop"}), None, 0)
    load_task(mine, None, 0)


def make_table(rng: random.Random) -> bytes:
    rows = [plain(row) for row in some_rows(rng)]
    names = [str(name) for name in rng.choice(ROWS)]
    out = io.StringIO()
    delimiter = rng.choice([",", ";", "\t"])
    writer = csv.writer(out, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n"]))
    with suppress(csv.Error):
        writer.writerow(names)
        for row in rows:
            cells = list(row.values()) if isinstance(row, dict) else [row]
            short = [str(cell)[:80_000] for cell in cells[: len(names)]]
            writer.writerow(short + ["x"] * (len(names) - len(short)))
    content = as_bytes(out.getvalue())
    return damaged(content, rng) if rng.random() < 0.6 else content


def read_table(content: bytes, folder: Path) -> None:
    is_tsv = b"\t" in content.partition(b"\n")[0]
    read_rows(content, folder / ("rows.tsv" if is_tsv else "rows.csv"))


# --- Parquet ------------------------------------------------------------------------------------


def columns(rng: random.Random, count: int) -> Any:
    """Values of one column in some type, also those that Python has no value for."""
    texts = [b"a", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 1000]
    raw = pa.array([rng.choice(texts) for _ in range(count)], pa.binary())
    big = pa.array([rng.choice([0, 1, -1, 2**62, -(2**62)]) for _ in range(count)], pa.int64())
    unit, zone = (
        rng.choice(["s", "ms", "us", "ns"]),
        rng.choice([None, "UTC", "Mars/Olympus", "+99:99"]),
    )
    match rng.randrange(9):
        case 0:
            return pa.StringArray.from_buffers(count, raw.buffers()[1], raw.buffers()[2])
        case 1:
            return big.view(pa.timestamp(unit, zone))
        case 2:
            return big.view(pa.duration(unit))
        case 3:
            return big.view(pa.date64())
        case 4:
            return pa.array(
                [rng.choice([float("nan"), float("inf"), None, 1.5]) for _ in range(count)]
            )
        case 5:
            return pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int32()))
        case 6:
            return pa.array(["a", None, "b", "a"] * count).dictionary_encode()[:count]
        case 7:
            return pa.array([[{"role": "user", "content": None}]] * count)
        case _:
            return raw


@cache
def bombs() -> list[bytes]:
    """Small files of many rows, of long texts, and of both."""
    column = pa.array([0], pa.int8())
    short, long = pa.array(["a"]), pa.array(["a" * 1_000_000])
    index = pa.array([0], pa.int32())

    def repeated(values: Any, count: int) -> Any:
        indices = pa.concat_arrays([index] * 1).take(pa.array([0] * min(count, 1000)))
        whole = pa.concat_arrays([indices] * max(1, count // 1000))
        return pa.DictionaryArray.from_arrays(whole, values)

    return [
        parquet_bytes(pa.table({"text": repeated(values, count)}), compression="zstd")
        for values, count in ((column, 1_000_000), (short, 1_000_000), (long, 100_000), (long, 400))
    ]


def parquet_bytes(table: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def make_parquet(rng: random.Random) -> bytes:
    if rng.random() < 0.002:
        return rng.choice(bombs())
    count = rng.randint(0, 6)
    names = rng.choice([[*rng.choice(ROWS)], ["text"], ["prompt", "completion"]])
    with suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
        if rng.random() < 0.5:
            table = pa.table({name: columns(rng, count) for name in names})
        else:
            table = pa.Table.from_pylist(
                [r for r in map(plain, some_rows(rng)) if isinstance(r, dict)]
            )
        compression = rng.choice(["none", "snappy", "zstd", "gzip"])
        content = parquet_bytes(table, compression=compression)
        return damaged(content, rng) if rng.random() < 0.5 else content
    return b"PAR1" + rng.randbytes(40) + b"PAR1"


def read_parquet(content: bytes, folder: Path) -> None:
    read_rows(content, folder / "rows.parquet")
