"""Verbs for a study: its plan, run, status, report, hashes and comparison."""

import os
import shlex
import signal
import socket
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from rankscope.cli.application import (
    STUDY_FILE,
    Overrides,
    StudyFile,
    StudyFolder,
    TrustTaskCode,
    by_commas,
    check_study,
    verb,
)
from rankscope.cli.terminal import (
    Reply,
    err_console,
    note_lines,
    print_line,
    print_message,
    print_result,
    terminal_table,
)
from rankscope.errors import INTEGRITY, OK, UNFINISHED, UserError, reading
from rankscope.formatting import byte_size, rough_duration
from rankscope.progress import ConsoleReporter
from rankscope.report.columns import Column

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig
    from rankscope.records import Recommendation, StudyRecords
    from rankscope.run.executors import Executor
    from rankscope.run.plan import Plan

WATCH_SECONDS = 2.0
MAX_PROBLEMS = 20  # Most problems that ``verify`` prints


@verb("plan", "Reading {file} ...")
def _plan_command(
    file: StudyFile = STUDY_FILE,
    overrides: Overrides = None,
    device: Annotated[
        str, Option(metavar="NAME", help="here, h100, h200, a100, l40s, l4, 4090, v100, t4 or m3.")
    ] = "here",
    gpus: Annotated[int, Option(min=1, help="Devices that groups are spread over.")] = 1,
    tokens_per_second: Annotated[
        float | None, Option(min=0.001, metavar="N", help="The pace of training, if you know it.")
    ] = None,
    trust_task_code: TrustTaskCode = False,
) -> Reply:
    """Estimate what a study will take, on this machine or another.

    Trials, groups, steps, tokens, memory, disk and time by stage, before anything
    runs.

    Example: rankscope plan study.yaml --device h100 --gpus 8
    """
    from rankscope.run.study import Study

    study = Study.load(file, overrides or [])
    with ConsoleReporter(err_console) as reporter:
        plan = study.plan(reporter, device, gpus, tokens_per_second)

    def show() -> None:
        from rankscope.run.plan import plan_sentences

        print_result(plan_table(plan))
        print_result(Group(*map(Text, plan_sentences(plan)), *note_lines(plan.notes)))

    return Reply(plan, show)


_PLAN_COLUMNS = {
    "num_tokens": Column("tokens"),
    "memory_bytes": Column("memory", text=byte_size),
    "seconds": Column("time", text=rough_duration),
    "limited_by": Column("limit", words={"all trials of the task": "all", "size limit": "size"}),
}


def plan_table(plan: "Plan") -> Table:
    """Show a row per group of trials."""
    several = len({group.task for group in plan.groups}) > 1
    names = ("group", *(["task"] * several), "trials", "steps", *_PLAN_COLUMNS)
    rows = [
        group.model_dump()
        | {
            "group": number,
            "trials": group.labels[0]
            if len(group.labels) == 1
            else f"{len(group.labels)} adapters",
        }
        for number, group in enumerate(plan.groups, 1)
    ]
    title = f"{plan.study} on {plan.model} ({plan.machine}, {plan.dtype})"
    return terminal_table(rows, title, _PLAN_COLUMNS, names)


Retry = Annotated[
    str,
    Option(
        metavar="WORDS",
        help="Run such runs again: failed, oom, diverged, a run's id or base; by commas.",
    ),
]
Workers = Annotated[
    int | None,
    Option(metavar="N", help="Run groups in N processes; default: one per GPU, or this one."),
]


@verb("run", "Reading {file} ...")
def run_command(
    file: StudyFile = STUDY_FILE,
    out: Annotated[
        Path | None, Option(help="Folder of the study; default: studies/<name>.")
    ] = None,
    overrides: Overrides = None,
    trust_task_code: TrustTaskCode = False,
    until: Annotated[
        float | None,
        Option(metavar="P", help="Search until the answer has this probability."),
    ] = None,
    minutes: Annotated[
        float | None, Option(metavar="M", help="End the search after so many minutes.")
    ] = None,
    anyway: Annotated[
        bool, Option("--anyway", help="Begin although the minutes are too few for an answer.")
    ] = False,
    retry: Retry = "",
    workers: Workers = None,
    executor: Annotated[
        str | None, Option(metavar="NAME", help="Where the processes run: local, ray or slurm.")
    ] = None,
    allow_mixed: Annotated[
        bool, Option("--allow-mixed", help="Add to results of other versions of libraries or code.")
    ] = False,
    take_over: Annotated[
        bool,
        Option(
            "--take-over",
            help="Run on a network disk, or after a run on another machine that did not end well.",
        ),
    ] = False,
    track: Annotated[
        str | None, Option(metavar="NAME", help="Send runs to mlflow, trackio or wandb meanwhile.")
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what SLURM would get, and submit nothing.")
    ] = False,
) -> Reply:
    """Run a study, or continue where it stopped.

    The same command continues after any interruption and repeats nothing that is finished.

    Example: rankscope run study.yaml --out studies/mine --set train.epochs=1
    """
    from rankscope.run.study import Study

    again = by_commas([retry])
    limits = {"until": until, "budget": None if minutes is None else f"{{hours: {minutes / 60}}}"}
    given = [f"{key}={value}" for key, value in limits.items() if value is not None]
    study = Study.load(file, [*(overrides or []), *given])
    from rankscope.run.executors import with_executor
    from rankscope.run.outputs import write_outputs

    study.config = with_executor(study.config, executor)
    folder = out or Path("studies") / study.config.name
    if dry_run:
        script = study.batch_script(folder, workers)
        return Reply({"script": script}, lambda: print_line(script))
    processes = _executor_of(study.config, workers)
    with ConsoleReporter(err_console) as reporter:
        records = study.run(
            folder,
            reporter,
            processes,
            again,
            allow_mixed=allow_mixed,
            take_over=take_over,
            anyway=anyway,
            track=track,
        )
    _, recommendation = write_outputs(folder, records)
    is_done = all(trial.status in {"done", "skipped"} for trial in records.trials)
    return Reply(
        recommendation,
        lambda: show_results(folder, records, recommendation, with_reasons=True),
        OK if is_done else UNFINISHED,
    )


def _executor_of(config: "StudyConfig", workers: int | None) -> "Executor | None":
    """Start the executor of a run; None if groups run in this process.

    Each of several GPUs of this machine has a worker.
    """
    from rankscope.device import visible_gpus
    from rankscope.run.executors import start_executor, with_executor

    has_gpus = config.device in ("auto", "cuda") and len(visible_gpus()) > 1
    is_shared = has_gpus and config.executor is None
    return start_executor(with_executor(config, "local" if is_shared else None), workers)


def show_results(
    folder: Path, records: "StudyRecords", recommendation: "Recommendation", *, with_reasons: bool
) -> None:
    from rankscope.cli.model_verbs import print_scores
    from rankscope.cli.summary import print_answer, summary_table

    if recommendation.advice:
        print_result(summary_table(records, recommendation))
    if recommendation.given:
        print_scores(recommendation.given)
    print_answer(recommendation, with_reasons=with_reasons)
    print_line(f"report: {folder / 'report.html'}")


@verb("work", hidden=True)
def _work_command(
    folder: StudyFolder,
    unit: Annotated[str, Argument(metavar="UNIT", help="A folder below DIR/units.")],
) -> Reply:
    """Run one unit of a study; executors start this.

    Example: rankscope work studies/mine 0123456789abcdef
    """
    from rankscope.store import UNITS

    if not (folder / UNITS / unit).is_dir():
        raise UserError(
            folder / UNITS / unit,
            "nothing",
            "a unit of work, which 'rankscope run --workers' makes",
        )
    from rankscope.run.workers.attempts import storing_errors
    from rankscope.run.workers.worker import work

    with storing_errors(folder / UNITS / unit):
        work(folder, unit)
    return Reply({"unit": unit, "sealed": True}, lambda: None)


@verb("status")
def _status_command(
    folder: StudyFolder,
    watch: Annotated[
        bool, Option("--watch", help="Keep showing it until no process runs the study.")
    ] = False,
) -> Reply:
    """Show the status of every run, and the answer.

    Example: rankscope status studies/pocket
    """
    from rankscope.cli.status import status_data, status_table
    from rankscope.store import Ledger, running_process

    records = Ledger.read(folder, with_analyses=False)
    if watch:
        live = Live(
            console=err_console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            while running_process(folder):
                live.update(status_table(status_data(records, folder)), refresh=True)
                time.sleep(WATCH_SECONDS)
                records = Ledger.read(folder, with_analyses=False)
    data = status_data(records, folder)
    return Reply(data, lambda: print_result(status_table(data)))


@verb("stop")
def _stop_command(folder: StudyFolder) -> Reply:
    """Ask the process that runs a study to stop.

    It ends at the next safe point; 'rankscope run' continues from there.

    Example: rankscope stop studies/pocket
    """
    from rankscope.store import running_process

    check_study(folder)
    process = running_process(folder)
    if process is None:
        text = f"nothing to stop: no process runs {folder}"
        return Reply({"process": None}, lambda: print_line(text))
    number, _, host = process.partition(" on ")
    if host != socket.gethostname():
        raise UserError(folder, f"process {process}", "a process of this machine that runs it")
    do = "ask its owner to stop it, or see 'rankscope status'"
    with reading(f"process {number} of {folder}", "one of yours, which has not ended", do=do):
        os.kill(int(number), signal.SIGTERM)
    status = shlex.join(["rankscope", "status", str(folder)])
    asked = f"asked process {number} to stop; to see when it has: {status}"
    return Reply({"process": int(number)}, lambda: print_line(asked))


@verb("open")
def _open_command(folder: StudyFolder) -> Reply:
    """Open the page of a study in the browser.

    Example: rankscope open studies/pocket
    """
    check_study(folder)
    page = (folder / "report.html").absolute()
    if not page.exists():
        do = f"write it: rankscope report {shlex.quote(str(folder))}"
        raise UserError(folder, "no report.html", "the page of the study", do)
    is_open = webbrowser.open(page.as_uri())
    return Reply({"page": page, "is_open": is_open}, lambda: print_line(f"page: {page}"))


@verb("report", "Reading {folder} ...")
def _report_command(
    folder: StudyFolder,
    tables: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Also write tables: Markdown, CSV, LaTeX, Parquet."),
    ] = None,
    figures: Annotated[
        Path | None, Option(metavar="FOLDER", help="Also write each figure as a file.")
    ] = None,
    file_format: Annotated[
        Literal["pdf", "svg", "png"] | None,
        Option("--format", help="With --figures; pdf by default."),
    ] = None,
) -> Reply:
    """Write the report again from the records.

    Writes report.html and recommendation.json.

    Example: rankscope report studies/pocket --tables tables --figures figures
    """
    if file_format is not None and figures is None:
        raise UserError("report", "--format alone", "it together with --figures FOLDER")
    from rankscope.store import Ledger

    records = Ledger.read(folder)
    from rankscope.filesystem import check_folder
    from rankscope.report.study_view import StudyView
    from rankscope.report.table_formats import write_tables
    from rankscope.report.tables import study_tables
    from rankscope.run.outputs import write_outputs

    if tables is not None:
        check_folder(folder, tables, "--tables")
    if figures is not None:
        from rankscope.tools.figure_files import check_figures, write_study_figures

        check_figures(folder, figures)
    _, recommendation = write_outputs(folder, records)
    made = study_tables(StudyView(records, recommendation)) if tables else {}
    files = write_tables(made, tables) if tables else []
    drawn = []
    if figures is not None:
        drawn = write_study_figures(records, recommendation, figures, file_format or "pdf")

    def show() -> None:
        show_results(folder, records, recommendation, with_reasons=False)
        if files:
            print_line(f"tables: {len(files)} files in {tables}")
        if drawn:
            print_line(f"figures: {len(drawn)} files in {figures}")

    return Reply(recommendation, show)


@verb("verify", "Reading {folder} ...")
def _verify_command(
    folder: StudyFolder,
    quick: Annotated[
        bool, Option("--quick", help="Of weights and items, compare sizes instead of hashes.")
    ] = False,
) -> Reply:
    """Hash everything a study stored and compare.

    Trials, records, weights, items, checkpoints, recommendation and report. For each difference it
    says what to do; the exit code is then 4.

    Example: rankscope verify studies/pocket
    """
    from rankscope.store import Ledger, find_problems

    problems, count = find_problems(folder, quick=quick), 0
    if not problems:
        with Ledger.open(folder, write=False) as ledger:
            count = len(ledger.artifacts())

    def show() -> None:
        for problem in problems[:MAX_PROBLEMS]:
            print_message(str(problem), "red")
        if len(problems) > MAX_PROBLEMS:
            print_message(f"and {len(problems) - MAX_PROBLEMS} more; --json lists all")
        if not problems:
            how = "present, with their sizes" if quick else "verified"
            print_line(f"OK: {count} artifacts {how}.")

    shown = [
        {"path": p.where, "expected": p.expected, "found": p.found, "do": p.do} for p in problems
    ]
    data = {"ok": not problems, "quick": quick, "artifacts": count, "problems": shown}
    return Reply(data, show, INTEGRITY if problems else OK)
