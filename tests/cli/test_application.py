"""The command itself: help with examples, usage errors, exit codes."""

import errno
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
from rankscope.cli import exit_code_of, main
from rankscope.cli.application import BAD_INPUT, INTEGRITY, INTERRUPTED, SOME_FAILED
from rankscope.config import presets
from rankscope.errors import UserError

VERBS = sorted(typer.main.get_command(rankscope.cli.app).commands)  # type: ignore[attr-defined]
PROMISED = {"quickstart", "init", "check", "plan", "run", "status", "report", "export", "verify"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb: str) -> None:
    """The example uses this verb, as many arguments as it has, and options that it knows."""
    shown = command(verb, "--help")
    assert shown.code == 0
    example = re.search(r"Example: rankscope (.*)", shown.out)
    assert example is not None, shown.out
    first, *words = shlex.split(example[1])
    assert first == verb
    known = typer.main.get_command(rankscope.cli.app).commands[verb]  # type: ignore[attr-defined]
    with known.make_context(verb, words) as context:
        assert {p.name for p in known.params if p.required} <= {
            name for name, value in context.params.items() if value is not None
        }


def test_the_verbs_there_are() -> None:
    others = {"compare", "eval", "fetch", "inspect", "params", "predict", "shrink", "work"}
    assert set(VERBS) == PROMISED | others
    shown = command("--help").out
    assert "Example: rankscope quickstart" in shown
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert "..." not in shown.partition("Commands:")[2]  # each verb's sentence fits its line
    assert command().told.startswith("Usage: rankscope")


def test_the_page_lists_every_verb_and_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page.partition("## Exit codes")[0], re.MULTILINE) == list(
        typer.main.get_command(rankscope.cli.app).commands  # type: ignore[attr-defined]
    )
    codes = {BAD_INPUT, SOME_FAILED, INTEGRITY, INTERRUPTED, 0, 1}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == codes


@pytest.mark.parametrize(
    "words",
    [
        ("guess",),
        ("--guess",),
        ("check",),
        ("check", "a.yaml", "b.yaml"),
        ("check", "a.yaml", "--guess"),
        ("check", "a.yaml", "--rows", "many"),
        ("check", "a.yaml", "--rows", "-1"),
        ("run", "a.yaml", "--out"),
        ("export", "out", "trial"),
        ("params", "pocket", "--rank", "eight"),
    ],
    ids=" ".join,
)
def test_usage_errors(words: tuple[str, ...]) -> None:
    outcome = command(*words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Error: " in outcome.err
    assert "Traceback" not in outcome.err


def test_version() -> None:
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"rankscope {version('rankscope')}\n")


def test_a_bug_shows_its_traceback_and_ends_in_1(tmp_path: Path) -> None:
    """In a process of its own, whose exit code is what a shell sees."""
    code = (
        "import sys\nfrom rankscope import cli\nfrom rankscope.config import presets\n"
        "presets.study_template = lambda *arguments: 1 / 0\n"
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

        monkeypatch.setattr(presets, "study_template", study_template)
        monkeypatch.setattr(sys, "argv", ["rankscope", "init", "study.yaml"])
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code

    assert ends_with(KeyboardInterrupt()) == 130
    assert "give the same command again to continue" in capsys.readouterr().err
    assert ends_with(PermissionError(errno.EACCES, "Permission denied", "there")) == 2
    assert "error: there: Permission denied; give another path" in capsys.readouterr().err
    # A file that vanishes inside the program is a bug.
    with pytest.raises(FileNotFoundError):
        ends_with(FileNotFoundError(errno.ENOENT, "No such file", "inside"))


def test_messages_cannot_steer_the_terminal_and_are_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise UserError("a\x1b[2Jb " + "x" * 1_000_000)

    assert exit_code_of(fail) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: a[U+001B][2Jb xxx")
    assert len(message) < 30_000


def test_help_needs_no_heavy_import() -> None:
    """In a process of its own: here everything is imported already."""
    code = (
        "import sys, rankscope.cli\n"
        "assert not {'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
