"""Every row of the table in docs/reliability.md is held by a test that says so."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_pitfall_has_its_tests() -> None:
    page = (TESTS.parent / "docs" / "reliability.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 37))
    for number, files in rows:
        for name in re.findall(r"`([^`]+)`", files):
            text = (TESTS / name).read_text("utf-8")
            marks = re.findall(r"pytest\.mark\.pitfall\(([\d, ]+)\)", text)
            assert number in {row.strip() for mark in marks for row in mark.split(",")}, (
                f"{name} has no test marked pitfall({number})"
            )
