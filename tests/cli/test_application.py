"""The command itself: help with examples, usage errors, exit codes."""

import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from command_line import rankscope as command

import rankscope.cli
from rankscope import errors
from rankscope.cli import main
from rankscope.cli.terminal import _HarmlessStream as HarmlessStream
from rankscope.tools import new_study

COMMANDS = typer.main.get_command(rankscope.cli.app).commands  # type: ignore[attr-defined]
VERBS = sorted(COMMANDS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_json_and_an_example_that_parses(verb: str) -> None:
    """The example uses this verb, as many arguments as it has, and options that it knows."""
    shown = command(verb, "--help")
    assert shown.code == 0
    example = re.search(r"Example: rankscope (.*)", shown.out)
    assert example is not None, shown.out
    first, *words = shlex.split(example[1])
    assert first == verb
    known = typer.main.get_command(rankscope.cli.app).commands[verb]  # type: ignore[attr-defined]
    assert any("--json" in option.opts for option in known.params)
    with known.make_context(verb, words) as context:
        assert {p.name for p in known.params if p.required} <= {
            name for name, value in context.params.items() if value is not None
        }


def test_the_verbs_there_are() -> None:
    shown = command("--help").out
    assert "Example: rankscope quickstart" in shown
    assert all((f"  {verb} " in shown) is not COMMANDS[verb].hidden for verb in VERBS)
    assert "..." not in shown.partition("A study:")[2]  # each verb's sentence fits its line
    assert command().told.startswith("Usage: rankscope")


def test_the_page_explains_every_exit_code() -> None:
    """Every class of errors ends with a code that the page explains."""
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.RankscopeError)}
    assert [int(code) for code in rows] == sorted(codes | {errors.OK})


@pytest.mark.parametrize(
    "words",
    [
        ("guess",), ("runn",), ("--guess",), ("check",), ("check", "a.yaml", "b.yaml"),
        ("check", "a.yaml", "--guess"), ("check", "a.yaml", "--rows", "many"),
        ("check", "a.yaml", "--rows", "-1"), ("run", "a.yaml", "--out"),
        ("export", "out", "trial"), ("params", "pocket", "--rank", "eight"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors(words: tuple[str, ...]) -> None:
    outcome = command(*words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "error: " in outcome.err
    assert re.search(r"See: rankscope|Did you mean|For example: |expected |init ", outcome.err)
    assert "Traceback" not in outcome.err


def test_version() -> None:
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"rankscope {version('rankscope')}\n")


def test_a_bug_shows_its_traceback_and_ends_in_1(tmp_path: Path) -> None:
    """In a process of its own, whose exit code is what a shell sees."""
    code = (
        "import sys\nfrom rankscope import cli\nfrom rankscope.tools import new_study\n"
        "new_study.study_template = lambda *arguments: 1 / 0\n"
        "sys.argv = ['rankscope', 'init', 'study.yaml']\ncli.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr.splitlines()[-1]


def test_errors_that_are_no_bugs_have_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends_with(error: BaseException) -> int | str | None:
        def study_template(*arguments: object) -> str:
            raise error

        monkeypatch.setattr(new_study, "study_template", study_template)
        monkeypatch.setattr(sys, "argv", ["rankscope", "init", "study.yaml"])
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code

    assert ends_with(KeyboardInterrupt()) == 130
    assert "give the same command again" in capsys.readouterr().err
    assert ends_with(PermissionError(errno.EACCES, "Permission denied", "there")) == 2
    assert (
        "error: there: found a fault (Permission denied); give another path"
        in capsys.readouterr().err
    )
    # A file that vanishes inside the program is a bug.
    with pytest.raises(FileNotFoundError):
        ends_with(FileNotFoundError(errno.ENOENT, "No such file", "inside"))


HOSTILE = "a\x1b[2J\u202eb"


def test_what_libraries_write_cannot_steer_the_terminal_either() -> None:
    """Warnings, logs and tracebacks; their progress bars still move."""
    inner = io.StringIO()
    stream = HarmlessStream(inner)
    print(f"{HOSTILE}\x9b2J\ud800 50 %\r\x1b[Aok", file=stream, flush=True)
    assert inner.getvalue() == "a[U+001B][2J[U+202E]b[U+009B]2J[U+D800] 50 %\r\x1b[Aok\n"


def test_errors_are_json_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = command("status", tmp_path / "none", "--json")
    assert outcome.code == 2
    error = json.loads(outcome.out)["error"]
    wrote = "a folder that 'rankscope run' or 'rankscope quickstart' wrote to"
    assert error == {
        "kind": "UserError",
        "message": f"{tmp_path / 'none'}: found no study here (no ledger.sqlite), "
        f"expected {wrote}; give its path",
        "where": f"{tmp_path / 'none'}",
        "found": "no study here (no ledger.sqlite)",
        "expected": wrote,
        "do": "give its path",
        "exit_code": 2,
    }
    assert f"error: {error['message']}\n" in outcome.err
    misspelled = json.loads(command("status", tmp_path, "--jsno", "--json").out)["error"]
    assert (misspelled["kind"], misspelled["exit_code"]) == ("UserError", 2)
    assert "--jsno" in misspelled["message"]
    monkeypatch.setattr(new_study, "study_template", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("init", tmp_path / "study.yaml", "--json")


HEAVY = {"torch", "transformers", "peft", "pandas", "plotly", "scipy", "datasets", "accelerate"}


def test_answers_that_need_no_model_import_nothing_heavy(tmp_path: Path) -> None:
    """One process, in which one command follows another: here everything is imported already."""
    (tmp_path / "bad.yaml").write_text("model: pocket\ntaks: []\n")
    arms = "arms: [{method: full, lr: 1e-4}]\n"
    (tmp_path / "model.yaml").write_text(f"model: ./nowhere\ntasks: [pocket_med]\n{arms}")
    (tmp_path / "rows.yaml").write_text(
        f"model: pocket\ntasks: [{{name: own, train: rows.jsno}}]\n{arms}"
    )
    calls = [
        *([verb, f"{what}.yaml"] for verb in ("run", "check") for what in ("model", "rows")),
        ["run", "model.yaml", "--retry", "all"],
        *([verb, "--help"] for verb in VERBS),
        *([verb, "nowhere.yaml"] for verb in ("run", "check", "plan")),
        *([verb, "bad.yaml"] for verb in ("run", "check", "plan")),
        *([verb, "nowhere"] for verb in ("status", "report", "verify", "params", "stop")),
        ["export", "nowhere", "x", "--out", "new"],
        ["inspect", "nowhere", "nowhere"],
        ["inspect", "pocket", "nowhere"],
        ["eval", "nowhere", "--tasks", "pocket_med"],
        ["eval", "pocket", "--tasks", "pocket_med", "--adapter", "nowhere"],
        ["compare", "nowhere", "elsewhere"],
        ["shrink", "nowhere", "--rank", "2", "--out", "new"],
        ["work", "nowhere", "unit"],
        ["init", "pocket.yaml", "--preset", "pocket"],
    ]
    code = (
        "import json, sys\nfrom rankscope.cli import run_command_line\n"
        f"for words in {calls!r}:\n"
        "    code = run_command_line(words)\n"
        f"    heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "    assert code == (0 if '--help' in words or 'init' in words else 2), (words, code)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("st", ["status", "stop"]),
        ("status ", ["studies/mine"]),  # not the folder without a ledger
        ("status studies/m", ["studies/mine"]),
        ("status studies/[", []),  # no pattern
        ("init --preset retention", ["retention-probe"]),
    ],
)
def test_a_shell_completes_verbs_studies_and_presets(
    tmp_path: Path, line: str, expected: list[str]
) -> None:
    """As bash asks, in a process that imports nothing heavy."""
    for name in ("mine", "other"):
        (tmp_path / "studies" / name).mkdir(parents=True)
    (tmp_path / "studies" / "mine" / "ledger.sqlite").touch()
    code = (
        "import sys\nfrom rankscope.cli import main\ntry:\n    main()\nfinally:\n"
        f"    assert not {HEAVY!r} & set(sys.modules)\n"
    )
    words = f"rankscope {line}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked | {"_RANKSCOPE_COMPLETE": "complete_bash"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == expected


def test_status_and_verify_import_nothing_heavy(tmp_path: Path) -> None:
    """A ledger is read, and its hashes are compared, without torch."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rankscope.store import Ledger\n"
        "Ledger.open(Path('study'), write=True).close()\n"
        "from rankscope.cli import run_command_line\n"
        "assert run_command_line(['verify', 'study', '--quick']) == 0\n"
        "assert run_command_line(['verify', 'study']) == 0\n"
        "run_command_line(['status', 'study'])\n"
        "import rankscope.cli.status\n"
        f"assert not {HEAVY!r} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
