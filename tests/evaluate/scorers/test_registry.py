"""The registry of scorers: what imports it, and the page that lists it."""

import subprocess
import sys
from pathlib import Path

import pytest

from rankscope.evaluate.scorers import get_scorer, scorer_names

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"


def scorer_table() -> str:
    """The table of docs/tasks.md."""
    rows = ["| scorer | what runs | metrics; the first is the primary one |", "|---|---|---|"]
    for scorer in map(get_scorer, scorer_names()):
        metrics = [
            f"`{name}`" + (f" ({meaning})" if meaning else "")
            for name, meaning in scorer.metrics.items()
        ]
        rows.append(f"| `{scorer.name}` | {scorer.summary} | {', '.join(metrics)} |")
    return "\n".join(rows)


def test_the_page_lists_every_scorer() -> None:
    assert scorer_table() in PAGE.read_text("utf-8"), f"expected in {PAGE}:\n{scorer_table()}"


def test_an_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'exact_match'"):
        get_scorer("exact")


def test_the_registry_loads_no_torch() -> None:
    code = "import sys, rankscope.evaluate.scorers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
