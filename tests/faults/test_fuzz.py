"""Inputs from outside are read, or refused with a message: fresh ones, and those that were not.

benchmarks/fuzz.py reads as many as asked, with limits of time and memory, too.
"""

import logging
from pathlib import Path

import pytest

import fuzz_kinds
from fuzz import make_input, tally, verdict
from fuzz_kinds import KINDS, Kind

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
FRESH = 100  # Inputs of each kind

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of such inputs


@pytest.fixture(autouse=True)
def quiet_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_inputs_are_read_or_refused(kind: str) -> None:
    outcomes = [verdict(kind, make_input(kind, 1, number)) for number in range(FRESH)]
    assert [outcome for outcome in outcomes if outcome[0] == "broken"] == []
    assert {outcome for outcome, _ in outcomes} == {"read", "refused"}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_inputs_that_once_broke_the_law_keep_it(path: Path) -> None:
    """``<kind>-<what is wrong with it>``."""
    kind = path.name.partition("-")[0]
    assert verdict(kind, path.read_bytes())[0] in ("read", "refused")


def test_what_breaks_the_law_is_counted_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: bytes, folder: Path) -> None:
        fuzz_kinds.read_jsonl(content, folder)
        raise ZeroDivisionError

    monkeypatch.setitem(KINDS, "jsonl", Kind(KINDS["jsonl"].make, read))
    inputs = [b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n{"text": "d"}', b"no rows"]
    found = tally("jsonl", enumerate(inputs))
    assert (found.inputs, found.refused) == (2, 1)
    assert list(found.broken.values()) == [[0]]
    assert next(iter(found.broken)).startswith("ZeroDivisionError in ")
