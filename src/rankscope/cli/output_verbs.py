"""Verbs for finished studies: ``compare`` and ``export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Group
from rich.text import Text
from typer import Argument, Option

from rankscope.cli.application import StudyFolder, check_study, verb
from rankscope.cli.terminal import (
    Reply,
    folded,
    note_lines,
    print_line,
    print_message,
    print_result,
    terminal_table,
)
from rankscope.errors import UserError
from rankscope.filesystem import replace_text
from rankscope.formatting import join_names
from rankscope.registry import extension_file
from rankscope.tools.formats import PEFT

if TYPE_CHECKING:
    from rankscope.tools.compare import StudyComparison
    from rankscope.tools.export import ExportRequest


@verb("compare", "Reading {folders} ...")
def _compare_command(
    folders: Annotated[
        list[Path], Argument(metavar="DIR DIR...", help="Folders of finished studies.")
    ],
    out: Annotated[
        Path | None, Option(metavar="FILE.html", help="Also write an HTML page.")
    ] = None,
) -> Reply:
    """Compare two or more studies.

    Shows what they share, the arms that both have on the same items, and their answers. Every
    further study is compared with the first one.

    Example: rankscope compare studies/pocket studies/mine --out compared.html
    """
    for folder in folders:
        if (folder / "adapter_config.json").is_file():
            do = "compare scores: rankscope eval BASE --tasks TASK --adapter A --adapter B"
            raise UserError(folder, "an adapter", "the folder of a study", do)
        check_study(folder)
    from rankscope.tools.compare import check_page, compare, render_comparison

    if out is not None:
        check_page(out, folders)
    comparison = compare(folders)
    if out is not None:
        from rankscope.run.versions import provenance

        replace_text(out, render_comparison(comparison, provenance()))
        print_message(f"written to {out}")
    return Reply(comparison, lambda: _show_comparison(comparison))


def _show_comparison(comparison: "StudyComparison") -> None:
    """Print the answers; then, pair by pair, what is the same and how arms compare."""
    from rankscope.tools.compare import FACET_COLUMNS, compared_table, compared_text

    for name in comparison.training_tasks:
        for study in comparison.studies:
            trained = f"{study.label} ({study.base}, {study.done} of {study.trials} trials done)"
            for answer in study.answers:
                if answer["task"] == name:
                    told = f"{answer['verdict']} {answer['summary']}"
                    print_result(folded(f"{name}, {trained}: {told}"))
    print_result(Text())
    for pair in comparison.pairs:
        styles = ["" if facet["same"] else "yellow" for facet in pair.facets]
        against = f"{pair.second} against {pair.first}"
        print_result(terminal_table(pair.facets, against, FACET_COLUMNS, styles=styles))
        names = ("arm", "tested on", "first", "second", "difference")
        for task in dict.fromkeys(cell.trained_on for cell in pair.cells):
            cells = [cell for cell in pair.cells if cell.trained_on == task]
            title = "bases, untuned" if task is None else f"trained on {task}"
            print_result(terminal_table(compared_table(cells), title, names=names, sections=1))
            print_result(Group(folded(compared_text(cells)), Text()))
        for label, arms in ((pair.first, pair.only_first), (pair.second, pair.only_second)):
            if arms:
                print_result(folded(f"only in {label}: {join_names(arms)}"))
        print_result(Group(*note_lines(pair.notes)))
    print_line("In % and points, second minus first; ± is half the 95 % interval.")


@verb("export", "Reading {folder} ...")
def _export_command(
    folder: StudyFolder,
    out: Annotated[
        Path, Option(help="A new or empty folder for the weights; with --patch, a new file.")
    ],
    label: Annotated[
        str | None,
        Argument(metavar="[LABEL]", help="An arm's label from the report, or a trial's id."),
    ] = None,
    best: Annotated[bool, Option("--best", help="The recommended arm; the default.")] = False,
    best_lora: Annotated[bool, Option("--best-lora", help="The best LoRA arm.")] = False,
    task: Annotated[str | None, Option(help="Training task, if the study has several.")] = None,
    merge: Annotated[bool, Option("--merge", help="Merge the adapter into a full model.")] = False,
    form: Annotated[
        str,
        Option("--format", metavar="FORMAT", help="Another program's, such as gguf or mlx."),
    ] = PEFT,
    step: Annotated[int | None, Option(help="Export the weights kept at this step.")] = None,
    base_name: Annotated[
        str | None,
        Option(metavar="ID", help="Hub id of the base, if the study read it from a folder."),
    ] = None,
    patch: Annotated[
        Path | None,
        Option(metavar="FILE", help="Another trainer's file, to be written with the arm's values."),
    ] = None,
) -> Reply:
    """Export an adapter or a model from a study.

    Writes the weights, the tokenizer with its chat template, a model card with the commands to
    load and serve them, and the scores in the hub's format, after comparing all hashes. With
    --patch, no weights: a copy of the file that 'init --from' read, with the rank, alpha, targets,
    dropout and rate of the arm.

    Example: rankscope export studies/pocket --best-lora --out ./adapter
    """
    if (label is not None) + best + best_lora > 1:
        raise UserError("export", "several choices", "one of LABEL, --best and --best-lora")
    check_study(folder)
    if patch is not None:
        if merge or step is not None or base_name is not None or form != PEFT:
            raise UserError("export --patch", "an option for weights", "none", "leave it out")
        trainers = extension_file("export_patch", "trainers", "export --patch")
        reply: Reply = trainers.patched(folder, patch, out, label, task, best_lora=best_lora)
        return reply
    from rankscope.tools.export import ExportRequest

    request = ExportRequest(
        label=label,
        best_lora=best_lora,
        task=task,
        step=step,
        merge=merge,
        format=form,
        base_name=base_name,
    )
    return _exported(folder, out, request)


def _exported(folder: Path, out: Path, request: "ExportRequest") -> Reply:
    from rankscope.tools.export import export_trial

    spec, kind, notes = export_trial(folder, out, request)
    for note in notes:
        print_message(f"note: {note}")

    def show() -> None:
        print_line(f"{spec.label}: {kind} written to {out}")
        print_line(f"how to load and serve it: {out / 'README.md'}")

    data = {
        "trial": spec.trial_id,
        "label": spec.label,
        "kind": kind,
        "out": out,
        "notes": notes,
    }
    return Reply(data, show)
