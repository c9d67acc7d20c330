"""Verbs that look into tuned models."""

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, app
from rankscope.cli.terminal import err_console, print_json, show, tell


@app.command()
def inspect(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Model folder, hub id, 'pocket' or fetched name.")
    ],
    tuned: Annotated[
        list[Path], typer.Argument(metavar="TUNED...", help="PEFT adapters or full checkpoints.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables, JSON and the HTML page.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Singular vectors compared; by default min(500, d/4).")
    ] = None,
    intruder_k: Annotated[int, typer.Option(help="Leading vectors examined for intruders.")] = 10,
    epsilon: Annotated[float, typer.Option(help="Cosine below which one is an intruder.")] = 0.5,
    force: Annotated[
        bool, typer.Option("--force", help="Take adapters that were made for another base.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look through adapters and checkpoints; nothing is trained.

    Size, spectrum and new directions of each matrix's update against the base.

    Example: rankscope inspect ./base ./adapter-r8 ./adapter-r64 --out looked
    """
    from rankscope.inspection import InspectSettings
    from rankscope.inspection import inspect as look
    from rankscope.screens import inspection_screen
    from rankscope.watch import Screen

    settings = InspectSettings(top_k, intruder_k, epsilon)
    with Screen(err_console) as screen:
        found = look(base, tuned, settings, any_base=force, watcher=screen)
    if out is not None:
        from rankscope.inspection import write_inspection

        write_inspection(found, out)
        tell(f"written to {out}")
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show(inspection_screen(found))
