"""The documentation's site: every page is in its navigation, and links lead to the same files.

CI builds the site itself with ``make docs``, which refuses a link or an anchor that leads nowhere.
"""

import posixpath
import re
from pathlib import Path

import pytest

from docs_site import place_in_site, with_links_of_the_site

REPOSITORY = Path(__file__).parents[2]
SITE = (REPOSITORY / "mkdocs.yml").read_text("utf-8")


def test_every_page_is_in_the_navigation_once() -> None:
    """Or below a page that lists it: MkDocs refuses a page that is in neither."""
    named = re.findall(r"^ +- (?:Rankscope: )?([\w/.-]+\.md)$", SITE, re.MULTILINE)
    assert len(named) == len(set(named))
    pages = {page.relative_to(REPOSITORY).as_posix() for page in REPOSITORY.glob("docs/**/*.md")}
    pages |= {
        "README.md",
        "CONTRIBUTING.md",
        "LOG.md",
        "benchmarks/README.md",
        "evidence/README.md",
    }
    assert {place_in_site(page) for page in pages} == set(named)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/commands.md#log", "commands.md#log"),
        ("README.md", "docs/images/answer-card.png", "images/answer-card.png"),
        ("docs/commands.md", "../README.md", "index.md"),
        ("docs/commands.md", "trust.md#top", "trust.md#top"),
        ("docs/commands.md", "../benchmarks/results/x.md", "benchmarks/results/x.md"),
        ("evidence/judges/claims.md", "../studies/claims/a.yaml", "../studies/claims/a.yaml"),
        ("evidence/judges/claims.md", "../../docs/trust.md", "../../trust.md"),
        ("LOG.md", "benchmarks", "benchmarks/README.md"),  # a folder that has a page
        ("LOG.md", "benchmarks/results", "benchmarks/results/index.md"),  # one that is listed
    ],
)
def test_links_lead_to_the_same_files(page: str, link: str, expected: str) -> None:
    assert with_links_of_the_site(f"see [it]({link}).", page) == f"see [it]({expected})."
    target = link.partition("#")[0]
    there = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    here = posixpath.dirname(place_in_site(page))
    meant = posixpath.normpath(posixpath.join(here, expected.partition("#")[0]))
    assert meant == place_in_site(there)


@pytest.mark.parametrize(
    "text",
    ["[a](https://arxiv.org)", "[a](#here)", "`[a](README.md)`", "```\n[a](README.md)\n```"],
)
def test_addresses_anchors_and_code_stay(text: str) -> None:
    assert with_links_of_the_site(text, "docs/commands.md") == text
