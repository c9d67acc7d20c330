"""Verbs to begin with: the built-in study, a study file of your own, and its check."""

import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from rankscope.cli.application import (
    STUDY_FILE,
    Overrides,
    StudyFile,
    TrustTaskCode,
    by_commas,
    verb,
)
from rankscope.cli.terminal import Reply, err_console, print_line, print_message, print_result
from rankscope.config.presets import PRESETS
from rankscope.errors import OK, UNFINISHED, UserError
from rankscope.filesystem import make_folder, replace_text, user_path
from rankscope.progress import ConsoleReporter
from rankscope.registry import extension_file

if TYPE_CHECKING:
    from rankscope.data.encode import EncodedRow
    from rankscope.run.prepared import PreparedStudy

PRESET_LINES = "\n".join(f"  {name}: {purpose}" for name, purpose in PRESETS.items())


@verb("quickstart", "Writing the study file {out}/quickstart.yaml ...")
def _quickstart_command(
    out: Annotated[Path, Option(help="Folder of the study.")] = Path("studies/pocket"),
) -> Reply:
    """Run the built-in study, offline, in minutes.

    It trains the pocket model, a tiny language model inside the package.

    Example: rankscope quickstart --out studies/pocket
    """
    from rankscope.cli.study_verbs import run_command
    from rankscope.tools.new_study import study_template

    make_folder(out)
    file = out / "quickstart.yaml"
    replace_text(file, study_template("pocket"))
    reply: Reply = run_command(file, out)
    return reply


def _init_command(
    file: Annotated[
        Path, Argument(metavar="FILE.yaml", help="The study file to write.")
    ] = STUDY_FILE,
    preset: Annotated[
        str,
        Option(help="A ready-made study, one of those above.", autocompletion=lambda: [*PRESETS]),
    ] = "default",
    model: Annotated[str | None, Option(help="Model folder, hub id or 'pocket'.")] = None,
    data: Annotated[
        Path | None, Option(help="Your training rows: a file, or a folder with train, test, ...")
    ] = None,
    data_dir: Annotated[Path | None, Option(help="Folder with the data of named tasks.")] = None,
    retention: Annotated[
        list[str] | None, Option(metavar="TASK", help="What must not be lost, by commas.")
    ] = None,
    may_lose: Annotated[
        float | None, Option(metavar="POINTS", min=0, max=100, help="What may be lost there.")
    ] = None,
    minutes: Annotated[
        float | None, Option(metavar="N", min=0, help="What the search may spend here.")
    ] = None,
    anyway: Annotated[
        bool, Option("--anyway", help="Write it although the minutes are too few for an answer.")
    ] = False,
    source: Annotated[
        Path | None,
        Option("--from", metavar="FILE", help="Your run, in another trainer's file."),
    ] = None,
    force: Annotated[bool, Option("--force", help="Overwrite an existing file.")] = False,
    list_presets: Annotated[bool, Option("--list", help="List the ready-made studies.")] = False,
    schema: Annotated[bool, Option("--schema", help="Print the file's JSON schema.")] = False,
) -> Reply:
    if list_presets:
        return Reply(PRESETS, lambda: print_line(PRESET_LINES))
    import rankscope.tools.new_study as new_study
    from rankscope.config.loader import load_study_file, published_schema, study_json_schema

    if schema:
        return Reply(study_json_schema(), lambda: print(published_schema(), end=""))
    if file.exists() and not (force and file.is_file()):
        remedy = "give another name" + (", or --force to overwrite it" if file.is_file() else "")
        raise UserError(file, "a file or folder of that name", "a new name", remedy)
    names = by_commas(retention or ())
    if source is not None and minutes is not None:
        raise UserError("init --from", "--minutes", "none", "its grid is around the file's values")
    if source is None and on_a_terminal() and new_study.takes_own_rows(preset):
        model, data, names = _ask_what_is_missing(model, data, names)
        may_lose = _ask_for_limit() if may_lose is None else may_lose
    model, task, around, summary, problem = _described_run(source, preset, file, model, data)
    text = new_study.study_template(
        preset,
        new_study.model_for_study_file(model, file) if model else None,
        task,
        new_study.path_for_study_file(data_dir, file) if data_dir else None,
        names,
        may_lose,
    )
    make_folder(file.parent)
    text, fit = around(text), dict[str, object]()
    if minutes is not None:
        with ConsoleReporter(err_console) as reporter:
            text, fit = new_study.fit_to_minutes(text, file, minutes, reporter, anyway=anyway)
    config = load_study_file(file, text=text)
    replace_text(file, text)
    missing = new_study.missing_pieces(config)
    missing += [problem] if problem else []
    hub = [] if missing else new_study.hub_pieces(config)
    step = shlex.join(["rankscope", "check", str(file)])
    written = {"file": file, "task": task, "missing": missing, "from_hub": hub, "next": step, **fit}
    code = UNFINISHED if missing else OK
    return Reply(written, lambda: _show_written(written, "" if problem else summary), code)


_init_command.__doc__ = f"""Write a commented study file.

On a terminal it asks for the model, the rows, what must not be lost and how much of it may be,
unless options say so. --from makes the study of a run that another trainer's file describes: its
rank and rate are in the middle of the grid, and the head of the study lists every key.

Example: rankscope init study.yaml --model ./my-model --data rows.jsonl

\b
Presets:
{PRESET_LINES}
"""
verb("init")(_init_command)


DescribedRun = tuple[str | None, dict[str, Any] | None, Callable[[str], str], str, str]
"""Model, task, the remaining change of the preset's text, a summary of the file, and a problem."""


def _described_run(
    source: Path | None, preset: str, file: Path, model: str | None, data: Path | None
) -> DescribedRun:
    if source is not None:
        if preset != "default":
            raise UserError("init --from", f"--preset {preset}", "none", "leave --preset out")
        trainers = extension_file("init_from", "trainers", "init --from")
        run: DescribedRun = trainers.study_of_trainer_file(source, file, model, data)
        return run
    from rankscope.tools.new_study import own_rows

    task, summary, problem = own_rows(data, file) if data else (None, "", "")
    return model, task, str, summary, problem


def on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask_what_is_missing(
    model: str | None, data: Path | None, retention: list[str]
) -> tuple[str, Path, list[str]]:
    """Return (model, rows, retention tasks); ask on the terminal for those not given."""
    from rankscope.data.registry import named_tasks
    from rankscope.data.sources import READERS
    from rankscope.tools.new_study import default_rows, split_files

    if model is None:
        model = typer.prompt("Base model (folder, hub id, or pocket)", err=True)
    while data is None:
        question = f"Training rows (file or folder: {', '.join(READERS)})"
        answer = typer.prompt(question, default_rows(), err=True)
        try:
            answer = user_path(answer)
            split_files(answer)
            data = answer
        except UserError as error:
            print_message(f"{error}", "red")
    while not retention:
        answers = typer.prompt("What must not be lost (tasks, by comma)", "common_facts", err=True)
        retention = by_commas([answers])
        if unknown := [name for name in retention if name not in named_tasks()]:
            known = ", ".join(named_tasks())
            print_message(f"no task is called {', '.join(unknown)}; expected {known}", "red")
            retention = []
    return model, data, retention


def _ask_for_limit() -> float | None:
    """Ask for the points of retention that an arm may lose; None without a limit."""
    question = "Points of it that may be lost (empty: no limit)"
    while answer := str(typer.prompt(question, "", err=True)):
        with suppress(ValueError):
            if 0 <= (points := float(answer)) <= 100:
                return points
        print_message(f"found {answer!r}, expected a number from 0 to 100, or nothing", "red")
    return None


def _show_written(data: Mapping[str, Any], summary: str) -> None:
    print_line(f"wrote {data['file']}")
    if summary:
        print_line(summary)
    for cut in data.get("cuts", ()):
        print_line(f"cut: {cut}")
        for note in data["notes"]:
            print_line(f"note: {note}")
    if data["from_hub"]:
        print_line(f"from the hub, which needs a connection: {', '.join(data['from_hub'])}")
    if not data["missing"]:
        print_line(f"next: {data['next']}")
        return
    print_line("it cannot run yet:")
    for problem in data["missing"]:
        print_line(f"  {problem}")
    print_line(f"fix these, then run: {data['next']}")


@verb("check", "Reading {file} ...")
def _check_command(
    file: StudyFile = STUDY_FILE,
    overrides: Overrides = None,
    rows: Annotated[int, Option(min=0, help="Training rows to show per task.")] = 3,
    trust_task_code: TrustTaskCode = False,
) -> Reply:
    """Validate a study file and show its rows.

    Shows how rows become tokens and labels, test rows that overlap training rows, and every
    problem that would stop a run. Uses no GPU.

    Example: rankscope check study.yaml --set data_dir=../data --rows 5
    """
    from rankscope.run.study import Study

    study = Study.load(file, overrides or [])
    names = [task.name for task in study.config.evaluation_tasks().values()]
    print_message(f"Reading the rows of {', '.join(names)} ...")
    with ConsoleReporter(err_console) as reporter:
        prepared = study.check(reporter)
    _check_that_rows_teach(prepared)
    data = {
        "trials": len(prepared.trials),
        "groups": len(prepared.groups),
        "tasks": prepared.task_records,
        "notes": prepared.notes,
    }

    plan = ["rankscope", "plan", str(file)]
    plan += [word for value in overrides or [] for word in ("--set", value)]
    plan += ["--trust-task-code"] if trust_task_code else []

    def show() -> None:
        from rankscope.cli.check import check_result

        print_result(check_result(prepared, rows, shlex.join(plan)))

    return Reply(data, show)


def _check_that_rows_teach(prepared: "PreparedStudy") -> None:
    """Refuse rows whose answers all agree: a model learns nothing from them but that answer.

    Raises:
        UserError: every training row of a task has the same labels.
    """
    for name, encoded in prepared.data.rows.items():
        rows = encoded.rows
        if not encoded.judges and len(rows) > 1 and len({_labels(row) for row in rows}) == 1:
            found = f"the same answer, as the model reads it, in all {len(rows):,} training rows"
            told = f"{{where}} cannot teach anything: it has {found}."
            raise UserError(f"task {name!r}", found, "several", "give other rows", (), told)


def _labels(row: "EncodedRow") -> tuple[int, ...]:
    return tuple(i for part in row.parts for i in compress(part.input_ids, part.is_label))
