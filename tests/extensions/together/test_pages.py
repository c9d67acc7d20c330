"""What pages name of the core and of extensions is there."""

import re
from pathlib import Path

import pytest

from ...test_language import PAGES, REPOSITORY, unknown_names
from ...test_readme import PAGES as ALL_PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_names_on_a_page_exist(page: Path) -> None:
    assert unknown_names(page.read_text("utf-8")) == []


def test_the_tests_that_pages_name_are_there() -> None:
    """``train/test_parity.py`` in docs/footguns.md is a file under tests/."""
    named = {
        file
        for page in ALL_PAGES
        for file in re.findall(r"`(?:tests/)?([a-z_/]*test_[a-z_]+\.py)`", page.read_text("utf-8"))
    }
    assert len(named) > 10
    assert [file for file in sorted(named) if not (REPOSITORY / "tests" / file).is_file()] == []
