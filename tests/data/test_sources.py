"""Files of users, broken in every way that was seen."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankscope.data.formats import _parse_rows as parse_rows
from rankscope.data.hub import HubSource, legal_from_mmlu, read_hub
from rankscope.data.rows import RawRow
from rankscope.data.sources import read_file, split_paths
from rankscope.errors import UserError

ROW = {"prompt": "a", "completion": "b"}


def written(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def test_a_byte_order_mark_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    line = json.dumps(ROW).encode()
    path = written(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + line, b"", line, b"  ")
    rows = read_file(path)
    assert [row.number for row in rows] == [1, 3]
    assert [row.fields for row in rows] == [ROW, ROW]


def test_windows_line_ends_and_line_separators_inside_texts(tmp_path: Path) -> None:
    row = {"prompt": "a\u2028b", "completion": "c"}
    path = written(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\r", "")
    assert [r.fields for r in read_file(path)] == [row]


# (line, found, expected)
BAD_LINES = [
    (b'{"prompt": "\xff"}', "byte 13 of the line, which is not UTF-8", "UTF-8 text"),
    (b'{"prompt": "a"', "text that is not JSON", "one JSON object per line"),
    (b"prompt: a", "text that is not JSON", ""),
    (b"[1, 2]", "a JSON list", "an object"),
    (b'"a"', "a JSON str", "an object"),
    (b"7", "a JSON int", "an object"),
    (b'{"prompt": "\\ud800", "completion": "b"}', "a lone surrogate", ""),
    (b"[" * 100_000, "text that is not JSON (nested too deeply)", ""),
    (b'{"prompt": ' + b"9" * 5000 + b"}", "JSON (an integer of more than 4,300 digits)", ""),
]


@pytest.mark.parametrize(("bad", "found", "expected"), BAD_LINES)
def test_broken_lines_are_rows_with_a_problem(
    tmp_path: Path, bad: bytes, found: str, expected: str
) -> None:
    path = written(tmp_path / "a.jsonl", json.dumps(ROW), bad, json.dumps(ROW))
    first, second, third = read_file(path)
    assert (first.problem, third.problem, third.number) == (None, None, 3)
    (rejected,) = parse_rows([first, second, third]).rejected
    assert rejected is second.problem
    assert rejected.where.endswith("a.jsonl, row 2")
    assert found in rejected.found
    assert expected in rejected.expected


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}')
    assert read_file(path)[0].fields == {"text": "\U0001f600"}


JSON_RULE = "an array of objects, or"
KINDS = ".jsonl, .ndjson, .json, .csv, "

# (name, content, place after the path, found, expected, do)
BAD_FILES = [
    ("a.jsonl", b"", "", "no rows", "at least one", "give a file with rows"),
    ("a.jsonl", b"\xef\xbb\xbf", "", "no rows", "", ""),
    ("a.jsonl", b"\n\n", "", "no rows", "", ""),
    ("a.json", b"[]", "", "no rows", "", ""),
    ("a.csv", b"question,answer\n", "", "no rows", "", ""),
    ("a.pkl", b"\x80", "", "the suffix '.pkl'", KINDS, "convert the file"),
    ("a.pickle", b"\x80", "", "the suffix '.pickle'", KINDS, ""),
    ("a.pt", b"\x80", "", "the suffix '.pt'", KINDS, ""),
    ("a.bin", b"\x80", "", "the suffix '.bin'", KINDS, ""),
    ("a.npz", b"\x80", "", "the suffix '.npz'", KINDS, ""),
    ("a.xlsx", b"a,b", "", "the suffix '.xlsx'", KINDS, "for example to CSV or JSONL"),
    ("a.parquet", b"PAR1 not really", "", "", "a readable Parquet file", "write it again"),
    ("a.json", b"[{}, ", "", "text that is not JSON (", JSON_RULE, "correct it"),
    ("a.json", b'{"q": 1}', "", "an object without a list of rows", JSON_RULE, ""),
    ("a.json", b'{"a": [{"q": 1}], "b": [{"q": 2}]}', "", "an object with the lists a, b", "", ""),
    ("a.json", b"7", "", "one int without a list of rows", JSON_RULE, ""),
    ("a.json", b'{"q": {"0": "x"}}', "", "", "", "(pandas: to_json(orient='records'))"),
    ("a.csv", b"question,,answer,\na,b,c,d", ", line 1", "header 'question', '', 'ans", "", ""),
    ("a.csv", b"a,a\n1,2", ", line 1", "the header 'a', 'a'", "a name for every column, each", ""),
    ("a.csv", b"question\nca\xe9", ", line 2", "byte 12 of the file, which is", "UTF-8", "iconv"),
    ("a.csv", b'a,b\n"x"y,2', ", line 2", "no table with the delimiter ','", "", "in double qu"),
    ("a.csv", b'a,b\n"x,2\n3,4', ", line 3", "no table with the delimiter ','", "", ""),
    ("a.csv", b"What is 1 + 1?,2\nand 2?,3", ", row 1 (line 2)", "which fit no known shape", "",
     "a table needs a header"),
]  # fmt: skip


@pytest.mark.pitfall(7)
@pytest.mark.parametrize(("name", "content", "place", "found", "expected", "do"), BAD_FILES)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, place: str, found: str, expected: str, do: str
) -> None:
    with pytest.raises(UserError) as error:
        parse_rows(read_file(written(tmp_path / name, content)))
    assert error.value.where == f"{tmp_path / name}{place}"
    assert found in error.value.found
    assert expected in error.value.expected
    assert do in error.value.do


ROWS = [{"question": f'q{n}, "x"\nnew line', "answer": str(n)} for n in range(3)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ROWS)), ("a.json", "\ufeff" + json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"version": 1, "ids": [1, 2], "data": ROWS})),
        ("a.json", "\n".join(map(json.dumps, ROWS))), ("a.jsonl", json.dumps(ROWS)),
    ],
)  # fmt: skip
def test_json_in_every_arrangement(tmp_path: Path, name: str, text: str) -> None:
    rows = read_file(written(tmp_path / name, text))
    assert [row.fields for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[1].location == f"{tmp_path / name}, row 2"


def test_an_array_may_hold_what_is_no_row(tmp_path: Path) -> None:
    _, second = read_file(written(tmp_path / "a.json", '[{"text": "a"}, 3]'))
    assert str(second.problem) == "found a JSON int, expected an object"


@pytest.mark.parametrize(
    ("name", "delimiter", "mark"),
    [("a.csv", ",", ""), ("a.csv", ";", "\ufeff"), ("a.tsv", "\t", "")],
)
def test_a_table_holds_text(tmp_path: Path, name: str, delimiter: str, mark: str) -> None:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
    table.writeheader()
    table.writerows(ROWS)
    (tmp_path / name).write_text(mark + file.getvalue(), encoding="utf-8", newline="")
    rows = read_file(tmp_path / name)
    assert [row.fields for row in rows] == ROWS
    # Each cell with a line break takes two lines.
    assert [row.location.rpartition(", ")[2] for row in rows] == [
        "row 1 (line 3)",
        "row 2 (line 5)",
        "row 3 (line 7)",
    ]


def test_lines_of_a_table_with_other_cells_are_bad_rows(tmp_path: Path) -> None:
    text = ",question,answer\n0,a,b\n1,a\n\n2,a,b,c\n3,a,b\n"  # the index that pandas writes
    rows = read_file(written(tmp_path / "a.csv", text))
    found = [row.problem and (row.problem.found, row.problem.expected) for row in rows]
    rule = "3 as in the header"
    assert found == [None, ("2 cells", rule), ("4 cells", rule), None]
    assert rows[0].fields == {"question": "a", "answer": "b"}
    assert rows[2].location.endswith("row 3 (line 5)")


def test_a_text_file_is_its_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n one\ntwo\n\n\nthree\n", encoding="utf-8")
    found = [(row.number, row.fields) for row in read_file(tmp_path / "t.txt")]
    assert found == [(2, {"text": " one\ntwo"}), (6, {"text": "three"})]


def bad_parquet() -> pa.Table:
    """Cells that Arrow stores and Python cannot hold; the second row is sound."""
    columns = {
        "text": pa.array([b"\xff\xfe", b"fine", b"fine"]).view(pa.string()),
        "day": pa.array([0, 1, 2**62]).view(pa.timestamp("ms")),
        "span": pa.array([0, 1, 2**62]).view(pa.duration("ms")),
    }
    return pa.table(columns)


def test_cells_of_parquet_that_python_cannot_hold_are_bad_rows(tmp_path: Path) -> None:
    pq.write_table(bad_parquet(), tmp_path / "a.parquet")
    first, second, third = read_file(tmp_path / "a.parquet")
    assert second.fields["text"] == "fine"
    for bad in (first, third):
        assert bad.problem.found.startswith("an unreadable cell")
    zone = pa.table({"text": ["a"], "day": pa.array([0]).view(pa.timestamp("s", "Mars/Base"))})
    pq.write_table(zone, tmp_path / "b.parquet")
    (row,) = read_file(tmp_path / "b.parquet")
    assert "unreadable cell" in row.problem.found


def test_a_small_parquet_file_of_a_million_rows_is_refused(tmp_path: Path) -> None:
    """Equal rows take no space on disk, and hundreds of megabytes as Python objects."""
    path = tmp_path / "a.parquet"
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 1_200_000, pa.int32()), pa.array(["a"]))
    pq.write_table(pa.table({"text": one}), path)
    with pytest.raises(UserError, match="rows that take 600,000,000 bytes in memory"):
        read_file(path)
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array(["a" * 10**6]))
    pq.write_table(pa.table({"text": long}), path, compression="zstd")
    with pytest.raises(UserError, match=r"rows that take 5\d\d,.* bytes in memory"):
        read_file(path)


def test_a_parquet_file_has_its_own_columns_and_row_numbers(tmp_path: Path) -> None:
    """No column from the folder's name, which Arrow takes for a part of a larger table."""
    path = tmp_path / "split=train" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"text": [str(n) for n in range(2000)]}), path, row_group_size=700)
    rows = read_file(path)
    assert [row.fields for row in rows] == [{"text": str(n)} for n in range(2000)]
    assert [row.number for row in rows] == list(range(1, 2001))
    assert rows[-1].location == f"{path}, row 2000"


def test_a_folder_gives_its_split_files(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    with pytest.raises(UserError, match="expected train, validation or test"):
        split_paths(tmp_path / "task")
    written(tmp_path / "task" / "test.jsonl", json.dumps(ROW))
    assert list(split_paths(tmp_path / "task")) == ["test"]
    pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / "task" / "test.parquet")
    with pytest.raises(
        UserError, match=r"found both test\.jsonl and test\.parquet, expected one file of"
    ):
        split_paths(tmp_path / "task")
    with pytest.raises(UserError, match=r"no such folder beside task\b.*data_dir"):
        split_paths(tmp_path / "tusk")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a closed port; the library by itself would try six times, for half a minute."""
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: asked.append("retry"))
    with pytest.raises(
        UserError,
        match=r"hub nobody/nothing: found a data .* loaded \(the hub does not answer.*common_facts",
    ):
        read_hub(HubSource("nobody/nothing"))
    assert asked == []


def test_the_hub_route_reads_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``load_dataset`` on a folder of Parquet: the code path of the hub without the network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "arc"
    folder.mkdir()
    row = {
        "id": "1",
        "question": "q",
        "choices": {"text": ["a", "b"], "label": ["1", "2"]},
        "answerKey": "2",
    }
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"{split}-00000.parquet")
    files, source = read_hub(HubSource(str(folder), validation=None))
    assert source == f"hub {folder}"
    assert list(files) == ["train", "test"]
    assert files["test"][0].location.endswith("test, row 1")
    content = parse_rows(files["test"]).rows[0][1]
    assert (content.choices, content.answer) == (("a", "b"), 1)
    with pytest.raises(UserError, match="found the splits train, test, expected one of dev"):
        read_hub(HubSource(str(folder), train=None, validation="dev", test=None))


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("Dataset scripts are no longer supported, but found x.py", "would run its own code"),
        ("the description of the data set is damaged", "cannot be loaded"),
        (" \n", r"cannot be loaded \(RuntimeError\)"),
    ],
)
def test_why_a_data_set_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, message: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr("datasets.load_dataset", fails)
    with pytest.raises(UserError, match=message):
        read_hub(HubSource(str(tmp_path)))


def test_the_commit_that_was_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's cache of a hub data set, which it reads if the hub is unreachable."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    folder = tmp_path / "mine"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([{"text": "t"}]), folder / "train-00000.parquet")
    read_hub(HubSource(str(folder)))
    kept = next(cache.glob("mine/*/*/*/")).rename(tmp_path / "kept")
    commit = "0123456789abcdef" * 2 + "01234567"
    (cache / "owner___mine" / "default" / "0.0.0").mkdir(parents=True)
    kept.rename(cache / "owner___mine" / "default" / "0.0.0" / commit)
    files, source = read_hub(HubSource("owner/mine"))
    assert [row.fields for row in files["train"]] == [{"text": "t"}]
    assert source == f"hub owner/mine, commit {commit}"
    for revision, expected in (("v1", f"v1, commit {commit}"), (commit, commit)):
        _, source = read_hub(HubSource("owner/mine", revision=revision))
        assert source == f"hub owner/mine @ {expected}"


def test_legal_mcq_from_mmlu_is_the_folder_form(data_dir: Path) -> None:
    mmlu, stored = (
        {split: read_file(path) for split, path in split_paths(data_dir / name).items()}
        for name in ("mmlu", "legal_mcq")
    )
    derived = legal_from_mmlu(mmlu)
    for split in ("train", "test"):
        assert [r.fields for r in derived[split]] == [r.fields for r in stored[split]]


def test_the_shuffle_behind_legal_mcq_is_stable() -> None:
    law = [RawRow("", n, {"subject": "professional_law"}) for n in range(504)]
    # Origin: random.Random(0).shuffle(list(range(504))), CPython 3.11.
    assert [row.number for row in legal_from_mmlu({"test": law})["train"]] == [455, 388, 197, 432]
