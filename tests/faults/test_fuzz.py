"""Inputs from outside are read, or refused with a message: fresh ones, and those that were not.

evidence/campaigns/fuzz.py reads as many as asked, with limits of time and memory, too.
"""

import logging
from pathlib import Path

import pytest

import fuzz_kinds
from fuzz import Tally, campaign, verdict
from fuzz_kinds import KINDS

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
FRESH = 50  # Inputs of each kind

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of such inputs


@pytest.fixture(autouse=True)
def quiet_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_inputs_are_read_or_refused(kind: str) -> None:
    found = campaign(kind, FRESH, seed=1)
    assert found.shortest == {}
    assert set(found.outcomes) == {"read", "refused"}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_inputs_that_once_broke_the_law_keep_it(path: Path) -> None:
    """``<kind>-<what is wrong with it>``."""
    kind = path.name.partition("-")[0]
    assert verdict(kind, path.read_bytes()) in ("read", "refused")


def test_what_breaks_the_law_is_counted_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: bytes, folder: Path) -> None:
        fuzz_kinds.read_jsonl(content, folder)
        raise ZeroDivisionError

    monkeypatch.setitem(KINDS, "jsonl", KINDS["jsonl"]._replace(read=read))
    found = Tally("jsonl")
    rows = b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n{"text": "d"}'
    for content in (rows + b"\n", b"no rows", rows):
        found.add(content)
    assert (found.outcomes.total(), found.outcomes["refused"]) == (3, 1)
    ((way, shortest),) = found.shortest.items()
    assert way.startswith("ZeroDivisionError in ")
    assert (found.outcomes[way], shortest) == (2, rows)
