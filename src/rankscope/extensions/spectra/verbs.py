"""Verbs for stored adapters and models: ``inspect`` and ``shrink``."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rankscope.cli.application import Overrides, verb
from rankscope.cli.model_verbs import AnyBase, print_failures
from rankscope.cli.terminal import Reply, err_console, print_message, print_result
from rankscope.errors import OK, UNFINISHED, UserError
from rankscope.progress import ConsoleReporter

Tuned = Annotated[Path, Argument(metavar="TUNED", help="PEFT adapter; to be cut, also a model.")]
Ranks = Annotated[
    str | None, Option(metavar="R,...", help="Truncate to this rank, optimally, or to several.")
]
ShrunkBase = Annotated[str | None, Option(help="The base; for a model, DoRA and PiSSA.")]


@verb("inspect", "Reading {base} ...")
def _inspect_command(
    base: Annotated[str, Argument(metavar="BASE", help="Model folder, hub id or 'pocket'.")],
    tuned: Annotated[
        list[Path], Argument(metavar="TUNED...", help="PEFT adapters or full checkpoints.")
    ],
    out: Annotated[
        Path | None, Option(help="Folder for the study, its page and its tables.")
    ] = None,
    overrides: Overrides = None,
    force: AnyBase = False,
) -> Reply:
    """Analyze adapters and checkpoints, without training.

    Shows the size, spectrum and new directions of each matrix's update against the base. Keys of
    --set are a study file's; analyses that are enabled there run the models.

    Example: rankscope inspect ./base ./adapter-r8 --out inspection
    """
    from rankscope.filesystem import output_folder
    from rankscope.models.model_folder import check_tuned_folder, shapes_folder

    shapes_folder(base)
    for folder in tuned:
        check_tuned_folder(folder)
    from rankscope.config.loader import override_values
    from rankscope.extensions.spectra.inspect import inspect, inspection_json, unfinished

    settings = override_values(overrides or ())
    with output_folder(out), ConsoleReporter(err_console) as reporter:
        study = inspect(base, tuned, settings, out, any_base=force, reporter=reporter)
    if out is not None:
        print_message(f"written to {out}; the page is {out / 'report.html'}")
    failed = unfinished(study)

    def show() -> None:
        from rankscope.extensions.spectra.tables import inspection_tables

        print_result(inspection_tables(study))
        print_failures(failed)

    return Reply(inspection_json(study), show, UNFINISHED if failed else OK)


@verb("shrink", "Reading {adapter} ...")
def _shrink_command(
    adapter: Tuned,
    out: Annotated[Path, Option(help="Folder of the new adapter; of several, folders in it.")],
    rank: Ranks = None,
    parameters: Annotated[int | None, Option(help="Truncate to so many, ranks by module.")] = None,
    scale: Annotated[float | None, Option(help="Multiply the whole update.")] = None,
    base: ShrunkBase = None,
    force: AnyBase = False,
) -> Reply:
    """Make an adapter smaller or weaker, or of a tuned model.

    Writes an ordinary PEFT adapter; for several ranks, one in r8, r32 ... each.

    Example: rankscope shrink ./adapter-r64 --rank 16 --out adapter-r16
    """
    from rankscope.filesystem import check_taken, output_folder
    from rankscope.models.model_folder import check_tuned_folder, shapes_folder

    names, values = ("--rank", "--parameters", "--scale"), (rank, parameters, scale)
    given = [name for name, value in zip(names, values, strict=True) if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UserError("shrink", found, f"exactly one of {', '.join(names)}", "give one")
    with output_folder(out):
        check_taken(out)  # before the base is read
        check_tuned_folder(adapter)
        if base is not None:
            shapes_folder(base)
        from rankscope.extensions.spectra import shrink
        from rankscope.extensions.spectra.tables import changes_tables

        ranks = None if rank is None else shrink.parse_ranks(rank)
        is_cut = rank is not None or parameters is not None
        source = shrink.SourceAdapter.open(adapter, base, any_base=force, accepts_full=is_cut)
        if ranks is not None:
            changes = shrink.truncate(source, out, ranks)
        elif parameters is not None:
            changes = shrink.allot(source, out, parameters)
        else:
            changes = shrink.scale(source, out, scale or 0.0)
    return Reply(changes, lambda: print_result(changes_tables(changes)))
