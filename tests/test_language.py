"""How the repository reads: one meaning per name, plain sentences, pages that name real things."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "rankscope"
MODULES = sorted(SOURCE.rglob("*.py"))
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
TEXTS = [
    *MODULES,
    *PAGES,
    *sorted((SOURCE / "report" / "templates").iterdir()),
    *sorted(SOURCE.glob("*/**/presets/**/*.yaml")),
    *sorted((REPOSITORY / "examples").rglob("*.yaml")),
    *sorted((REPOSITORY / "recipes").glob("*.py")),
]
FOLDERS = ("src", "tests", "benchmarks", "evidence", "examples", "recipes", "scripts")
WRITTEN = {
    *REPOSITORY.glob("*.md"),
    *REPOSITORY.glob("docs/*.md"),
    *(
        path
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".ipynb", ".j2", ".css", ".js"}
    ),
}

BANNED = {
    "of which": r"\bof which\b",
    "for want of": r"\bfor want of\b",
    "is told, are told": r"\b(is|are|was|were|be) told\b(?! apart)",
    "milder": r"\bmilder\b",
    "lies in, stands in": r"\b(lies|stands) (in|there|beside)\b",
    "goes on from": r"\bgo(es)? on from\b",
    "a method of PEFT's": r"\bof PEFT's\b",
    "what is asked": r"\bwhat is asked\b|\bwhat was asked\b",
    "things that hear": r"\b[Hh]ears? of\b",
    "where there is none": r"\bwhere there (is|are) none\b",
    "'where' for 'if' at the head of a clause": (
        r"(?:^|[.;:] )Where (?:it|that|they|there|one|a|an|the|no|both|nothing|either)\b"
    ),
}
"""Turns of phrase that make a reader stop, as far as a regular expression can find them."""


def public_names(module: ast.Module) -> list[str]:
    """Functions, classes and constants that a module defines without a leading underscore."""
    names: list[str] = []
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return [name for name in names if not name.startswith("_")]


def test_a_public_name_is_defined_once() -> None:
    places = defaultdict(list)
    for path in MODULES:
        for name in public_names(ast.parse(path.read_text("utf-8"))):
            places[name].append(path.relative_to(SOURCE).as_posix())
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def banned_turns(text: str) -> list[tuple[int, str]]:
    """(line, turn) of every banned turn; a line break counts as a space."""
    flat = re.sub(r"\n[ \t]*(?:# ?|#: ?|- )?", lambda match: " " * len(match[0]), text)
    hits = []
    for turn, pattern in BANNED.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), flat):
            hits.append((text.count("\n", 0, match.end()) + 1, turn))
    return sorted(hits)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_sentences_are_plain(path: Path) -> None:
    assert banned_turns(path.read_text("utf-8")) == []


def test_banned_turns_are_found() -> None:
    text = "# A trial of\n# which nothing is left.\n\nWhere it fits, the user is told."
    assert banned_turns(text) == [
        (2, "of which"),
        (4, "'where' for 'if' at the head of a clause"),
        (4, "is told, are told"),
    ]
    assert banned_turns("Models that cannot be told apart; where the file is.") == []


BRITISH = (
    r"(?i)(?:neighbour|colour|behaviour|favour|honour|rigour|centre|fibre|licence|defence"
    r"|judgement|artefact|(?:label|level|model|travel|cancel|signal|channel|fuel)l(?:ed|ing|er))\w*"
    r"|(?:normal|optim|initial|summar|recogn|quant|token|minim|maxim|general|serial|parallel"
    r"|regular|random|visual|organ|real|util|penal|standard|emphas)is(?:e|es|ed|er|ers|ing|ation)\b"
    r"|\banalys(?:e|ed|ing)\b|\b(?:grey|programmes?|(?:mis)?spelt|spoilt|learnt|towards|whilst)\b"
    r"|\bper cent\b"
)


def test_the_spelling_is_american() -> None:
    found = {}
    for path in WRITTEN - {Path(__file__)}:
        if words := re.findall(BRITISH, path.read_text("utf-8")):
            found[path] = words
    assert found == {}
    text = "Neighbours, unlabelled_rows, analysed per cent; analyses, color, labeled, cancellation"
    assert re.findall(BRITISH, text) == ["Neighbours", "labelled_rows", "analysed", "per cent"]


WORDS = set(
    re.findall(
        r"[A-Za-z_][A-Za-z0-9_]*",
        "\n".join(
            path.read_text("utf-8")
            for folder in FOLDERS
            for path in (REPOSITORY / folder).rglob("*")
            if path.suffix[1:] in "py yaml toml j2 css js".split() and path != Path(__file__)
        )
        + (REPOSITORY / "pyproject.toml").read_text("utf-8")
        + (REPOSITORY / "Makefile").read_text("utf-8"),
    )
)
"""Every word of the code: what a page may call by name."""
PATHS = [
    "/" + path.relative_to(REPOSITORY).as_posix()
    for folder in (*FOLDERS, "docs")
    for path in (REPOSITORY / folder, *(REPOSITORY / folder).rglob("*"))
]
"""Files and folders that a page may name, by the end of their path."""


def unknown_names(text: str) -> list[str]:
    """Code spans of a page that name no file and nothing in the code.

    A span that looks like a path must be the end of the path of some file or folder; every word of
    a dotted name must occur in the code.
    """
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    unknown = []
    for span in re.findall(r"`([^`\n]+)`", prose):
        if re.fullmatch(r"[a-z_/]*[a-z_]+\.py|[a-z_]+(/[a-z_]+)*/|(src|tests|docs)/[\w./]+", span):
            if not any(path.endswith("/" + span.rstrip("/")) for path in PATHS):
                unknown.append(span)
        elif re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", span):
            words = re.findall(r"[A-Za-z_][A-Za-z0-9_]*", span)
            unknown += [span] if any(word not in WORDS for word in words) else []
    return unknown


def test_unknown_names_are_found() -> None:
    text = "`train/loop.py` `train/lop.py` `StudyConfig` `StudyKonfig` `docs/nowhere.md`"
    assert unknown_names(text) == ["train/lop.py", "StudyKonfig", "docs/nowhere.md"]
