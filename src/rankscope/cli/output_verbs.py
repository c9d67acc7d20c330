"""The verb for a study's weights: ``export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rankscope.cli.application import StudyFolder, check_study, verb
from rankscope.cli.terminal import Reply, print_line, print_message
from rankscope.errors import UserError
from rankscope.registry import extension_file
from rankscope.tools.formats import PEFT

if TYPE_CHECKING:
    from rankscope.tools.export import ExportRequest


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
