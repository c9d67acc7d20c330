"""The README is short and keeps its word: commands exist, links lead somewhere, the walk runs."""

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rankscope
from pocket_world import pocket_rows
from rankscope.cli import run_command_line
from rankscope.config.loader import load_study_file
from rankscope.models.model_folder import pocket_folder
from rankscope.run.study import Study
from rankscope.store import Ledger

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text("utf-8")
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "LOG.md")),
    REPOSITORY / "llms.txt",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "evidence").rglob("*.md")),
    *sorted((REPOSITORY / "benchmarks").rglob("*.md")),
]

TO_THE_POCKET_MODEL = (
    "arms=[{method: lora, rank: [2, 4], lr: 2e-3}, {method: full, lr: 5e-4}]",
    "seeds=[0]",
    "train.max_steps=3",
    "evaluate.retention=[pocket_cloze]",
    "evaluate.max_items=16",
    "dtype=float32",
)
"""What the reader is told to write into the study file, for a model that trains in seconds."""


def shell_blocks(text: str) -> list[list[list[str]]]:
    """The commands of every ``sh`` block, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [
        [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]
        for block in blocks
    ]


BLOCKS = shell_blocks(README)
COMMANDS = [words for block in BLOCKS for words in block]
OWN_DATA = next(b for b in BLOCKS if b[0][:2] == ["rankscope", "init"] and "--data" in b[0])


def make_targets() -> set[str]:
    """Targets that the Makefile defines and names phony."""
    text = (REPOSITORY / "Makefile").read_text("utf-8")
    defined = set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert phony is not None
    return defined & set(phony[1].split())


def missing_links(page: Path, text: str) -> list[str]:
    """Links of a page to files that are not there; addresses with a scheme are not looked up."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    files = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:", t)]
    return [f for f in files if f and not (page.parent / f).exists()]


MOST_WORDS, MOST_NUMBERS, LONGEST = 900, 25, 25


def prose(page: str) -> str:
    """A page without blocks of code, tables, headings, pictures and addresses of links."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^[|#!].*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\]\([^)\s]+\)", "]", text)


def too_long(page: str) -> list[str]:
    """What exceeds the limits of a first page: its words, its numbers, its long sentences."""
    text = prose(page)
    numbers = re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"`[^`\n]*`", "", text))
    counts = (len(page.split()), MOST_WORDS, "words"), (len(numbers), MOST_NUMBERS, "numbers")
    found = [f"{number} {name}" for number, most, name in counts if number > most]
    blocks = re.split(r"\n\s*\n|\n(?=- )", text)
    sentences = [s for block in blocks for s in re.split(r"(?<=[.!?:])\**\s", block)]
    return found + [sentence for sentence in sentences if len(sentence.split()) > LONGEST]


def test_the_page_is_short_and_so_are_its_sentences() -> None:
    assert too_long(README) == []


def test_long_pages_and_sentences_are_found() -> None:
    sentence = "word " * 26 + "end."
    assert too_long(f"One. {sentence}\n\n| {sentence} |") == [sentence]
    assert too_long("One.\n\n" * 901) == ["901 words"]
    assert too_long("1 `2` [3](4.md)\n\n" * 13) == ["26 numbers"]


def test_the_first_command_installs_and_runs_the_built_in_study() -> None:
    assert COMMANDS[0] == ["make", "quickstart"]
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    assert "quickstart: .venv/installed\n\t$(BIN)/rankscope quickstart" in makefile


def test_every_command_is_known() -> None:
    """Other programs than make and rankscope appear only to install and call them."""
    contributing = shell_blocks((REPOSITORY / "CONTRIBUTING.md").read_text("utf-8"))
    assert contributing
    for words in [*COMMANDS, *(words for block in contributing for words in block)]:
        if words == [".ci/run"]:
            assert os.access(REPOSITORY / words[0], os.X_OK)
            continue
        assert words[0] in {"make", "rankscope", "python3", "pip", "."}, words
        if words[0] == "make":
            assert set(words[1:]) <= make_targets(), words


@pytest.mark.parametrize(
    "words", [w for w in COMMANDS if w[0] == "rankscope"], ids=lambda words: " ".join(words)
)
def test_every_rankscope_line_parses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` of the verb answers, and knows each option that the line uses."""
    assert run_command_line([words[1], "--help"]) == 0
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    used = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
    assert used <= known


def test_options_named_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """In code spans: ``rankscope init study.yaml --preset paper``, ``--set train.epochs=1``."""
    spans = re.findall(r"`([^`\n]*--[a-z][^`\n]*)`", README)
    assert spans
    for span in spans:
        words = shlex.split(span)
        verb = words[1] if words[0] == "rankscope" else "run"
        assert run_command_line([verb, "--help"]) == 0, span
        known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        assert {word for word in words if word.startswith("--")} <= known, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert missing_links(page, page.read_text("utf-8")) == []


def test_the_study_file_in_llms_txt_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "llms.txt").read_text(), re.DOTALL)
    file = tmp_path / "study.yaml"
    file.write_text(text, "utf-8")
    assert load_study_file(file).name == "my-study"


def test_a_broken_link_is_found() -> None:
    page = REPOSITORY / "docs" / "methods.md"
    text = "[a](inspect.md#top) [b](../README.md) [c](nowhere.md) [d](https://arxiv.org)"
    assert missing_links(page, text) == ["nowhere.md"]


def test_the_public_names_come_without_torch() -> None:
    """In a process of its own: here everything is imported already."""
    code = (
        "import sys, rankscope\n"
        "assert rankscope.__version__ and dir(rankscope) == sorted(rankscope.__all__)\n"
        "heavy = {'torch', 'pandas', 'transformers', 'plotly', 'numpy'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert rankscope.Study is Study
    assert not hasattr(rankscope, "Studies")


def test_the_own_data_walk_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's own lines, on a JSONL file and a model folder of those names."""
    monkeypatch.chdir(tmp_path)
    rows = pocket_rows("pocket_med", "train")[:80]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    Path("my-model").symlink_to(pocket_folder())
    settings = [word for value in TO_THE_POCKET_MODEL for word in ("--set", value)]
    assert [words[1] for words in OWN_DATA] == ["init", "check", "plan", "run", "export"]
    for _, verb, *arguments in OWN_DATA:
        takes_settings = verb in ("check", "plan", "run")
        code = run_command_line([verb, *arguments, *(settings if takes_settings else [])])
        assert code == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    # 80 rows: 16 are cut for the report, 16 for validation, 48 are trained on.
    assert "48 training rows" in shown
    assert "3 trials in 2 groups" in shown
    folder = Path("studies/rows")
    assert (folder / "report.html").stat().st_size > 700_000  # plotly.js is inside
    with Ledger.open(folder, write=False) as ledger:
        statuses = ledger.statuses()
    assert {"done"} <= set(statuses.values()) <= {"done", "skipped"}
    assert (Path("my-adapter") / "README.md").read_text("utf-8").startswith("---\n")


NOTEBOOK = Path(__file__).parents[1] / "examples" / "first-study.ipynb"


def script(cells: list[str]) -> str:
    """The cells as one program that collects in ``shown`` what each would display."""
    lines = ["shown = []"]
    for cell in cells:
        body = ast.parse(cell).body
        if isinstance(body[-1], ast.Expr):
            last = ast.unparse(body.pop())
            lines += [*map(ast.unparse, body), f"shown.append({last})"]
        else:
            lines.append(cell)
    return "\n".join(lines)


@pytest.mark.usefixtures("minutes")
def test_the_first_lesson_runs_and_shows_an_answer_tables_and_an_adapter(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    program = tmp_path / "lesson.py"
    program.write_text(
        script(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]), "utf-8"
    )
    answer, scores, cost, files = (
        value for value in runpy.run_path(str(program))["shown"] if value is not None
    )
    assert "drugs" in answer._repr_html_()
    assert set(scores["score"].columns) == {"drugs", "pocket_general"}
    # Eight arms; the base has scores and no cost.
    assert len(scores) == len(cost) + 1 == 9
    assert scores.loc["base", ("change", "drugs")] == 0
    page = (REPOSITORY / "docs" / "first-study.md").read_text("utf-8")
    cell = next(c for c in map("".join, (c["source"] for c in cells)) if "name: drugs" in c)
    assert re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) == [cell.split('"""')[1][2:]]
    assert cost.to_numpy().min() > 0
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(files)


def test_every_pitfall_on_the_page_has_a_test() -> None:
    page = (REPOSITORY / "docs" / "gpus-and-clusters.md").read_text("utf-8")
    rows = set(re.findall(r"^\|(\d+)\|", page, re.MULTILINE))
    tests = "".join(p.read_text("utf-8") for p in (REPOSITORY / "tests").rglob("test_*.py"))
    marks = re.findall(r"pytest\.mark\.pitfall\(([\d, ]+)\)", tests)
    marked = {row for rows_of_mark in marks for row in rows_of_mark.split(", ")}
    if not (REPOSITORY / "tests" / "extensions" / "harness").exists():
        rows.remove("5")  # the test of that row is deleted with the extension
    assert rows == marked
    assert len(rows) >= 35
