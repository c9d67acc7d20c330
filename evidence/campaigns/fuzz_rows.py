"""Files of rows that somebody made: JSONL, CSV and Parquet, and everything that reads them."""

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

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


@st.composite
def some_rows(draw: st.DrawFn) -> list[Any]:
    """Sound rows of one shape, all different, and at most three that are altered."""
    row = draw(st.sampled_from(ROWS))
    name = next(name for name, value in row.items() if isinstance(value, str | list | dict))
    rows = [{**row, name: numbered(row[name], n)} for n in range(draw(st.integers(1, 12)))]
    for place in draw(st.sets(st.integers(0, len(rows) - 1), max_size=3)):
        rows[place] = draw(altered(rows[place]))
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


@st.composite
def jsonl_inputs(draw: st.DrawFn) -> bytes:
    ascii_only = draw(st.booleans())
    rows = [json_text(row, ascii_only) for row in draw(some_rows())]
    text = draw(
        st.sampled_from(
            [
                "\n".join(rows),
                f"[{','.join(rows)}]",
                f'{{"data": [], "version": 1, "rows": [{",".join(rows)}]}}',
            ]
        )
    )
    return draw(damaged(as_bytes(text)))


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


@st.composite
def table_inputs(draw: st.DrawFn) -> bytes:
    names = [str(name) for name in draw(st.sampled_from(ROWS))]
    out = io.StringIO()
    delimiter, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    with suppress(csv.Error):
        writer.writerow(names)
        for row in map(plain, draw(some_rows())):
            cells = [str(cell)[:80_000] for cell in row.values()][: len(names)]
            writer.writerow(cells + ["x"] * (len(names) - len(cells)))
    return draw(damaged(as_bytes(out.getvalue())))


def read_table(content: bytes, folder: Path) -> None:
    is_tsv = b"\t" in content.partition(b"\n")[0]
    read_rows(content, folder / ("rows.tsv" if is_tsv else "rows.csv"))


# --- Parquet ------------------------------------------------------------------------------------


def columns(count: int, unit: str, zone: str | None) -> list[Any]:
    """``count`` values in each of some types, also those that Python has no value for."""

    def cycled(values: Sequence[Any], kind: Any = None) -> Any:
        return pa.array([values[n % len(values)] for n in range(count)], kind)

    raw = cycled([b"a", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 1000], pa.binary())
    big = cycled([2**62, 0, -(2**62), -1], pa.int64())
    return [
        raw,
        pa.StringArray.from_buffers(count, *raw.buffers()[1:3]),
        big.view(pa.timestamp(unit, zone)),
        big.view(pa.duration(unit)),
        big.view(pa.date64()),
        cycled([float("nan"), float("inf"), None, 1.5]),
        cycled([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
        cycled(["a", None, "b", "a"]).dictionary_encode(),
        cycled([[{"role": "user", "content": None}]]),
    ]


@st.composite
def parquet_inputs(draw: st.DrawFn) -> bytes:
    """Small files of many long texts are in tests/faults/corpus."""
    units, zones = ["s", "ms", "us", "ns"], [None, "UTC", "Mars/Olympus", "+99:99"]
    names = draw(st.sampled_from([["text"], ["prompt", "completion"], *map(list, ROWS)]))
    out = io.BytesIO()
    with suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
        if draw(st.booleans()):
            unit, zone = draw(st.sampled_from(units)), draw(st.sampled_from(zones))
            kinds = st.sampled_from(columns(draw(st.integers(0, 6)), unit, zone))
            table = pa.table({name: draw(kinds) for name in names})
        else:
            table = pa.Table.from_pylist(plain(draw(some_rows())))
        compression = draw(st.sampled_from(["none", "snappy", "zstd", "gzip"]))
        pq.write_table(table, out, compression=compression)
    return draw(damaged(out.getvalue() or b"PAR1 and no more PAR1"))


def read_parquet(content: bytes, folder: Path) -> None:
    read_rows(content, folder / "rows.parquet")


JSONL, TABLES, PARQUET = jsonl_inputs(), table_inputs(), parquet_inputs()
