"""Verbs of a study: from writing its file to copying a trial's weights out of it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import (
    INTEGRITY,
    SOME_FAILED,
    AsJson,
    Overrides,
    StudyFile,
    StudyFolder,
    app,
)
from rankscope.cli.terminal import err_console, print_json, say, show, tell
from rankscope.errors import UserError
from rankscope.filesystem import replace_text


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where the study goes.")] = Path("studies/pocket"),
    as_json: AsJson = False,
) -> None:
    """Run the built-in study, offline, in minutes.

    The whole walk on the pocket model, a tiny language model that the package holds.

    Example: rankscope quickstart --out studies/pocket
    """
    from rankscope.config.presets import study_template

    out.mkdir(parents=True, exist_ok=True)
    file = out / "quickstart.yaml"
    replace_text(file, study_template("pocket"))
    run_study(file, [], out, as_json)


@app.command()
def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.yaml", help="Where to write it.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Which ready-made study.")] = "default",
    model: Annotated[str | None, typer.Option(help="Model folder, hub id or 'pocket'.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your training rows (JSONL, Parquet).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the named tasks.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the study file's JSON schema instead.")
    ] = False,
) -> None:
    """Write a commented study file.

    Example: rankscope init study.yaml --preset rank-sanity --model ./my-model
    """
    from rankscope.config.loader import published_schema
    from rankscope.config.presets import model_for_study_file, path_for_study_file, study_template

    if schema:
        sys.stdout.write(published_schema())
        return
    if file is None:
        raise UserError("init: no file given; expected a name such as 'rankscope init study.yaml'")
    text = study_template(
        preset,
        model_for_study_file(model, file) if model else None,
        path_for_study_file(data, file) if data else None,
        path_for_study_file(data_dir, file) if data_dir else None,
    )
    if file.exists() and not (force and file.is_file()):
        remedy = "give another name" + (", or --force to overwrite it" if file.is_file() else "")
        raise UserError(f"{file}: exists already; {remedy}")
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, text)
    say(f"wrote {file}; next: rankscope check {file}")


@app.command()
def check(
    file: StudyFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Training rows to show per task.")] = 3,
) -> None:
    """Validate a study file and show its rows.

    How rows become tokens and labels; train/test contamination; what would be refused. Touches no GPU.

    Example: rankscope check study.yaml --set data_dir=../data --rows 5
    """
    from rankscope.cli.render.study import check_screen
    from rankscope.run.study import Study

    show(check_screen(Study.load(file, overrides or []).check(), rows))


@app.command()
def plan(file: StudyFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a study will take.

    Trials, groups, steps, tokens, memory, disk and time, before anything runs.

    Example: rankscope plan study.yaml --set seeds=[0]
    """
    from rankscope.cli.render.study import plan_screen
    from rankscope.run.study import Study

    made = Study.load(file, overrides or []).plan()
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        show(plan_screen(made))


@app.command()
def run(
    file: StudyFile,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; by default studies/<name>.")
    ] = None,
    overrides: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Plan trials that failed before again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study, or continue where it stopped.

    The same command continues, whatever stopped it, and repeats nothing that is finished.

    Example: rankscope run study.yaml --out studies/mine --set train.epochs=1
    """
    run_study(file, overrides or [], out, as_json, retry_failed=retry_failed)


def run_study(
    file: Path,
    overrides: list[str],
    out: Path | None,
    as_json: bool,
    *,
    retry_failed: bool = False,
) -> None:
    """Run a study with a screen, write_outputs it, print the answer."""
    from rankscope.progress import ConsoleReporter
    from rankscope.records import FAILED
    from rankscope.report.answer import NEXT_STEPS_TITLES
    from rankscope.report.tables import summary_table
    from rankscope.run.study import Study, write_outputs

    study = Study.load(file, overrides)
    folder = out or Path("studies") / study.config.name
    if retry_failed:
        study.check()  # a study that is refused keeps its failures
        plan_failed_again(folder)
    with ConsoleReporter(err_console) as screen:
        study.run(folder, screen)
    records, recommendation = write_outputs(folder)
    if as_json:
        print_json(recommendation.model_dump(mode="json"))
    else:
        show(summary_table(records, recommendation))
        for advice in recommendation.advice:
            say(f"{advice.task}: {advice.headline}", "bold")
            for reason in advice.reasons:
                say(f"  - {reason.text}")
            if advice.next_steps:
                say(f"  {NEXT_STEPS_TITLES[advice.confidence]}:")
            for step in advice.next_steps:
                say(f"  - {step.text}")
        say(f"report: {folder / 'report.html'}")
    if any(trial.status in FAILED for trial in records.trials):
        raise typer.Exit(SOME_FAILED)


def plan_failed_again(folder: Path) -> None:
    """Forget that trials failed, diverged or ran out of memory; no study there is fine."""
    from rankscope.records import FAILED
    from rankscope.store import Ledger

    if (folder / "ledger.sqlite").is_file():
        with Ledger.open(folder, write=True) as ledger:
            statuses = ledger.statuses()
            ledger.retry_trials([trial for trial in statuses if statuses[trial] in FAILED])


@app.command()
def status(folder: StudyFolder, as_json: AsJson = False) -> None:
    """Say where every trial of a study stands.

    Example: rankscope status studies/pocket
    """
    from rankscope.cli.render.study import status_screen, trial_status
    from rankscope.store import Ledger

    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    if as_json:
        print_json([trial_status(trial) for trial in study.trials])
    else:
        show(status_screen(study))


@app.command()
def report(
    folder: StudyFolder,
    tables: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write its tables there: Markdown, CSV, LaTeX."),
    ] = None,
) -> None:
    """Write the report again from the records.

    Both report.html and recommendation.json; with --tables the study's main tables as files, too.

    Example: rankscope report studies/pocket --tables tables
    """
    from rankscope.report.tables import summary_table
    from rankscope.run.study import write_outputs
    from rankscope.tools.export import check_tables, write_tables

    if tables is not None:
        check_tables(folder, tables)
    records, recommendation = write_outputs(folder)
    written = write_tables(folder, records, recommendation, tables) if tables is not None else []
    show(summary_table(records, recommendation))
    for advice in recommendation.advice:
        say(f"{advice.task}: {advice.headline}", "bold")
    say(f"report: {folder / 'report.html'}")
    if written:
        say(f"tables: {len(written)} files in {tables}")


@app.command()
def verify(folder: StudyFolder) -> None:
    """Re-hash everything that a study stored.

    Exit code 4 where a record or an artifact was altered.

    Example: rankscope verify studies/pocket
    """
    from rankscope.store import Ledger

    with Ledger.open(folder, write=False) as ledger:
        problems = ledger.verify()
        count = 0 if problems else len(ledger.artifacts())
    for problem in problems:
        tell(str(problem), "red")
    if problems:
        raise typer.Exit(INTEGRITY)
    say(f"{count} artifacts are as they were written.")


@app.command()
def export(
    folder: StudyFolder,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's id, or its beginning.")],
    out: Annotated[Path, typer.Option(help="Where the weights go: a new or empty folder.")],
    step: Annotated[
        int | None, typer.Option(help="Weights kept after so many steps, not the last ones.")
    ] = None,
) -> None:
    """Copy a trial's weights out of a study.

    A plain PEFT adapter or, of full fine-tuning, a plain model folder; hashes are compared first.

    Example: rankscope export studies/pocket 3f2a --out ./adapter
    """
    from rankscope.tools.export import export_trial

    spec = export_trial(folder, trial, out, step)
    say(f"{spec.label}: {'model' if spec.is_full else 'adapter'} written to {out}")
