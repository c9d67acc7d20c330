"""A study whose every name and datum is hostile: nothing of it acts on page, terminal or sheet.

Markup, scripts, right-to-left text, terminal escapes, spreadsheet formulas, templates, SQL and a
cell of a megabyte stand in rows, file names, folders, model, tokenizer and notes.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from browser import opened
from command_line import Outcome, files_below, rankscope, settings, write_rows
from html_elements import Elements
from playwright.sync_api import Browser
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from faults import STUDY, VERBS, controls, refused, write_study
from rankscope.models.model_folder import pocket_folder
from rankscope.store import Ledger, find_problems

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"
REVERSED = "\u202e\u05d0\u05d1"
ESCAPE = "\x1b[2J\x07\x9b2J"
FORMULA = '=HYPERLINK("http://example.org")'
HOSTILE = (
    *(IMAGE, SCRIPT, REVERSED, ESCAPE, FORMULA, "@SUM(1)", "{{ 7 * 7 }}"),
    *("'; DROP TABLE trials; --", "\u2028\u200b\u0085", "[red]x[/red]"),
)
FILE_NAME = f"{IMAGE}\u05d0=.jsonl"
"""Study files accept only paths that can be printed."""
FOLDER_NAME = "=1+\u05d0\u05d1<b>"

pytestmark = pytest.mark.pitfall(25)


def letters_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token per character of ``texts``, so that nothing hostile hides behind ``<unk>``."""
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = [*specials, *sorted(set("".join(texts)))]
    letters = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=letters, **names)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of every verb on the study, its folder, and its files."""
    folder = tmp_path_factory.mktemp("hostile") / FOLDER_NAME
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for index in range(60):
        text = HOSTILE[index % len(HOSTILE)]
        choices = [f"{text} {letter}" for letter in "abcd"]
        subject = text if index != 7 else "x" * 10**6  # a cell of a megabyte
        rows.append(
            {"question": f"{text} {index}", "choices": choices, "answer": 1, "subject": subject}
        )
    write_rows(folder / FILE_NAME, rows)
    shutil.copytree(pocket_folder(), folder / "model")
    words = [text for row in rows for text in (row["question"], *row["choices"])]
    letters_tokenizer([*words, "Question:\nAnswer:"]).save_pretrained(folder / "model")
    changes = {"rows.jsonl": json.dumps(FILE_NAME), "pocket": "./model", "32}": "128}"}
    text = STUDY
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "study.yaml").write_text(text, "utf-8")
    file, out = folder / "study.yaml", folder / "out"
    asked = (file, *settings("arms.0.rank=[2,129]"))
    said = {
        "check": rankscope("check", *asked, "--rows", "48"),
        "plan": rankscope("plan", *asked),
        "run": rankscope("run", *asked, "--out", out),
        "status": rankscope("status", out),
        "verify": rankscope("verify", out),
        "report": rankscope("report", out, "--tables", folder / "tables"),
        "export": rankscope("export", out, "r=2", "--out", folder / "export"),
    }
    adapter = folder / "export"
    task = folder / "task.yaml"
    task.write_text(f"name: mine\ntest: {json.dumps(FILE_NAME)}\n", "utf-8")
    rows_file, new = folder / FILE_NAME, folder / "new.yaml"
    said |= {
        "eval": rankscope("eval", folder / "model", "--tasks", task, "--adapter", adapter),
        "init": rankscope(
            "init", folder.parent / "new.yaml", "--data", rows_file, "--model", "pocket"
        ),
        "params": rankscope("params", folder / "model"),
    }
    shutil.copytree(out, folder / "out2")
    compared = folder / "comparison.html"
    said["compare"] = rankscope("compare", out, folder / "out2", "--out", compared)
    return {"folder": folder, "said": said}


def test_every_verb_reaches_its_end(study: dict[str, Any]) -> None:
    said: dict[str, Outcome] = study["said"]
    assert {verb: outcome.code for verb, outcome in said.items()} == dict.fromkeys(said, 0), {
        verb: outcome.err[-2000:] for verb, outcome in said.items() if outcome.code
    }
    with Ledger.open(study["folder"] / "out", write=False) as ledger:
        notes = ledger.load().notes
        assert set(ledger.statuses().values()) == {"done"}
        assert not find_problems(ledger.out)
    # The cap of a rank reaches the stored notes too.
    assert sum("rank 129 is above 128" in note for note in notes) == 1


def test_no_verb_steers_the_terminal(study: dict[str, Any]) -> None:
    said: dict[str, Outcome] = study["said"]
    for verb, outcome in said.items():
        assert controls(outcome) == set(), verb
        assert len(outcome.out + outcome.err) < 80_000, verb
    shown = said["check"].told
    for text in ("\\u202e\\u05d0\\u05d1", "\\u001b[2J\\u0007", SCRIPT, "{{ 7 * 7 }}", FORMULA):
        assert text in shown
    assert "<unk>" not in shown


@pytest.mark.parametrize(
    "words",
    [
        ("check", "{folder}/{name}.yaml"),
        ("status", "{folder}/{name}"),
        ("eval", "pocket", "--tasks", "pocket_med", "--adapter", "{folder}/{name}"),
        ("eval", "pocket", "--tasks", "{folder}/{name}.jsonl"),
        ("init", "{folder}/new.yaml", "--data", "{folder}", "--model", "pocket"),
        ("check", "study.yaml", "--{name}"),
        ("export", "{folder}/out", "{name}", "--out", "{folder}/x"),
        ("check", "{folder}/study.yaml", "--set", "tasks.0.name={name}"),
        ("check", "{folder}/study.yaml", "--set", "{name}=1"),
        ("{name}",),
    ],
    ids=lambda words: words[0],
)
def test_no_refusal_steers_the_terminal(study: dict[str, Any], words: tuple[str, ...]) -> None:
    name = "".join(HOSTILE[:5]).replace("/", "")
    outcome = rankscope(*(word.format(folder=study["folder"], name=name) for word in words))
    assert outcome.code == 2, outcome
    assert controls(outcome) == set()
    assert "error: " in outcome.err


PAGES = ("out/report.html", "comparison.html")


@pytest.mark.parametrize("name", PAGES)
def test_pages_hold_the_texts_as_texts(study: dict[str, Any], name: str) -> None:
    page = (study["folder"] / name).read_text("utf-8")
    found = Elements(page)
    if name == PAGES[0]:
        assert "&lt;img src=x onerror=alert(1)&gt;" in page  # the file's name, escaped
    assert all(tag != "img" for tag, _ in found.tags)
    assert not [name for _, names in found.tags for name in names if name.startswith("on")]
    assert SCRIPT not in page
    assert not [text for text in found.scripts if "alert(2)" in text[:40]]
    assert not set("\u202e\x1b\x07\x9b") & set(page)
    assert "x" * 10_000 not in page


@pytest.mark.parametrize("name", PAGES)
def test_pages_do_nothing_but_draw(study: dict[str, Any], name: str, browser: Browser) -> None:
    """In Chromium: no dialog, no request, no message on the console."""
    with opened(browser, study["folder"] / name) as found:
        found.assert_clean(len(found.page.query_selector_all("[data-figure]")))
        found.page.eval_on_selector_all("button.sort", "(all) => all.forEach((one) => one.click())")
        assert found.complaints == []
        assert found.requests == []


def test_tables_hold_no_live_formula(study: dict[str, Any]) -> None:
    files = [*study["folder"].rglob("*.csv")]
    assert {file.parent.name for file in files} == {"tables"}
    for file in files:
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.reader(lines):
                for cell in row:
                    assert is_number(cell) or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
                    assert len(cell) < 10_000


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("verb", VERBS)
def test_a_study_is_not_stored_with_a_path_that_cannot_be_printed(
    tmp_path: Path, verb: str
) -> None:
    """It would be read again by every later verb."""
    folder = tmp_path / f"a{ESCAPE}"
    write_study(folder)
    before = files_below(folder)
    refused(
        rankscope(verb, folder / "study.yaml"),
        where="study.yaml:5: tasks.0.train",
        found="with characters that cannot be printed",
        expected="expected a name without them",
        do="rename it",
    )
    assert files_below(folder) == before
