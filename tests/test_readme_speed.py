"""README's figures of speed are those of the committed lines of the races."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
LINKED = re.findall(r"\[([^\]]*\d[^\]]*)\]\(benchmarks/results/([\w.-]+)\.md\)", README)
"""Figures and the pages of results that they link to."""


def lines(page: str) -> Iterator[dict[str, Any]]:
    """The lines of a page's races, those of its further runs included."""
    for file in sorted((ROOT / "benchmarks" / "results").glob(f"{page}*.json")):
        yield from map(json.loads, file.read_text("utf-8").splitlines())


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def figures(page: str) -> list[set[str]]:
    """What a figure may be, as it is written, a set for each number of the races: its values."""
    found = defaultdict[str, set[str]](set)
    for line in lines(page):
        for key, value in line.items():
            if key.startswith("ratio") and isinstance(value, float):
                found[f"{line['benchmark']} {key}"] |= {f"{value:.1f}", f"{value:.2f}"}
            for name, number in value.items() if isinstance(value, dict) else ():
                if key.startswith("seconds"):
                    found[f"{line['benchmark']} {key} {name}"].add(duration(number))
                elif key == "lost":
                    found[f"{line['benchmark']} {key} {name}"].add(f"{number:.1f} points")
    return list(found.values())


def test_there_are_figures() -> None:
    assert len(LINKED) >= 5


@pytest.mark.parametrize(("text", "page"), LINKED)
def test_a_figure_is_in_its_lines(text: str, page: str) -> None:
    """Both ends of a range are values of one number."""
    ends = set(text.split(" to "))
    assert any(ends <= of_number for of_number in figures(page)), f"{text} in {page}"
