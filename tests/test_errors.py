"""Messages of errors, and their parts for --json."""

import json
from collections.abc import Callable

import pytest
import yaml
from pydantic import BaseModel

from rankscope.errors import IntegrityError, UserError, reading, reason_of


def parts(message: str) -> tuple[object, ...]:
    described = UserError(message).description()
    return tuple(described[name] for name in ("where", "found", "expected", "do"))


def test_the_description_has_every_part() -> None:
    error = IntegrityError("a/b: found 5 bytes, expected 7 bytes; restore it")
    assert error.description() == {
        "kind": "IntegrityError",
        "message": str(error),
        "where": "a/b",
        "found": "5 bytes",
        "expected": "7 bytes",
        "do": "restore it",
        "exit_code": 4,
    }


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "x.jsno: found suffix '.jsno', expected .jsonl, .parquet; convert the file",
            ("x.jsno", "suffix '.jsno'", ".jsonl, .parquet", "convert the file"),
        ),
        (
            "study.yaml:12: arms.0.rnak: unknown key; did you mean 'rank'?",
            ("study.yaml:12", None, None, "did you mean 'rank'?"),
        ),
        ("--rank 0: expected at least 1", ("--rank 0", None, "at least 1", None)),
        (
            "model 'x' cannot be fetched. Expected one of: smollm2-135m.",
            (None, None, "one of: smollm2-135m", None),
        ),
        (
            "out: a file; expected a folder, or a name that is not taken",
            ("out", None, "a folder, or a name that is not taken", None),
        ),
        ("s.yaml:1: a: missing (a; b). ", ("s.yaml:1", None, None, None)),
        ("nothing of the kind", (None, None, None, None)),
    ],
)
def test_parts_are_read_off_the_form_of_messages(
    message: str, expected: tuple[str | None, ...]
) -> None:
    assert parts(message) == expected


def test_long_lines_are_cut_in_their_middle() -> None:
    error = UserError("a" * 1_000_000 + "\nb; shorten it")
    first, second = str(error).split("\n")
    assert len(first) < 1_100
    assert first.startswith("aaa")
    assert "(1,000,000 characters)" in first
    assert second == "b; shorten it"


class Row(BaseModel):
    size: int


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda: json.loads("[" * 5000), "nested too deeply"),
        (lambda: json.loads("9" * 5000), "an integer of more than 4,300 digits"),
        (lambda: b"ab\xff".decode(), "byte 3 is not UTF-8 text"),
        (
            lambda: "\ud800".encode(),
            "a lone surrogate (\\ud800 to \\udfff), which is not a character",
        ),
        (lambda: {}["weights"], "there is no 'weights'"),
        (lambda: yaml.safe_load("a: [\n"), "while parsing a flow node"),
        (lambda: Row.model_validate({}), "size: Field required"),
        (lambda: Row.model_validate(1), "Input should be a valid dictionary or instance of Row"),
    ],
)
def test_what_a_library_raises_becomes_one_message(read: Callable[[], object], reason: str) -> None:
    with (
        pytest.raises(IntegrityError) as refused,
        reading("a/b", "a list", IntegrityError, "fix it"),
    ):
        read()
    assert str(refused.value) == f"a/b: not a list: {reason}; fix it"
    assert reason_of(refused.value.__cause__) == reason


def test_own_errors_and_a_lack_of_memory_pass_through() -> None:
    for error in (UserError("as it was"), MemoryError("no room")):
        with pytest.raises(type(error)) as raised, reading("a/b", "a list", IntegrityError):
            raise error
        assert raised.value is error
