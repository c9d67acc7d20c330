"""Verbs that look into tuned models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, app
from rankscope.cli.terminal import err_console, print_json, show, tell


def check_idle(ctx: typer.Context, names: Sequence[str], needed: str) -> None:
    """Raise UserError for options that were given and do nothing without another."""
    from rankscope.errors import UserError

    for name in names:
        if (source := ctx.get_parameter_source(name)) is not None and source.name != "DEFAULT":
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{ctx.info_name}: {option} does nothing without {needed}")


@app.command()
def inspect(
    ctx: typer.Context,
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
    heads: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Look at attention heads too, on this task's items."),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK", help="With --heads: remove each head, then all of a layer, and score."
        ),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="With --heads: at most so many.")] = 64,
    data_dir: Annotated[
        Path | None, typer.Option(help="With --heads: folder of the named tasks' files.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="With --heads: float32, bfloat16 or auto, the machine's fast one.")
    ] = "float32",
    as_json: AsJson = False,
) -> None:
    """Look through adapters and checkpoints; nothing is trained.

    Size, spectrum and new directions of each matrix's update against the base.

    Example: rankscope inspect ./base ./adapter-r8 ./adapter-r64 --out looked
    """
    from rankscope.cli.render.inspection import inspection_screen
    from rankscope.filesystem import output_folder
    from rankscope.progress import ConsoleReporter
    from rankscope.tools.inspect import InspectSettings
    from rankscope.tools.inspect import inspect as look

    if heads is None:
        idle = ("ablate", "items", "data_dir", "dtype")
        check_idle(ctx, idle, "--heads TASK, the task that was trained on")
    settings = InspectSettings(top_k, intruder_k, epsilon)
    with output_folder(out), ConsoleReporter(err_console) as screen:
        if heads is None:
            found = look(base, tuned, settings, any_base=force, reporter=screen)
        else:
            from rankscope.tools.inspect_heads import HeadSettings, check_heads, inspect_heads

            asked = HeadSettings(heads, tuple(ablate or ()), items, data_dir, dtype)
            check_heads(base, asked)
            found = look(base, tuned, settings, any_base=force, reporter=screen)
            found = inspect_heads(found, asked, reporter=screen)
    if out is not None:
        from rankscope.tools.inspect import write_inspection_folder

        write_inspection_folder(found, out)
        tell(f"written to {out}")
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show(inspection_screen(found))


@app.command()
def shrink(
    ctx: typer.Context,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT adapter's folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    rank: Annotated[int | None, typer.Option(help="Cut to this rank, optimally.")] = None,
    scale: Annotated[float | None, typer.Option(help="Multiply the whole update.")] = None,
    layer_scale: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Multiply it linearly over layers.")
    ] = None,
    mitigate: Annotated[
        str | None, typer.Option(metavar="intruders", help="Scale intruder dimensions by --lambda.")
    ] = None,
    factor: Annotated[
        float | None, typer.Option("--lambda", help="1 changes nothing, 0 removes intruders.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model; for --mitigate, DoRA and PiSSA.")
    ] = None,
    intruder_k: Annotated[int, typer.Option(help="Leading vectors examined for intruders.")] = 10,
    epsilon: Annotated[float, typer.Option(help="Cosine below which one is an intruder.")] = 0.5,
    force: Annotated[
        bool, typer.Option("--force", help="Take an adapter that was made for another base.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an adapter smaller or milder.

    Writes an ordinary PEFT adapter; a mitigation writes two, the second its norm-matched control.

    Example: rankscope shrink ./adapter-r64 --rank 16 --out adapter-r16
    """
    from rankscope.cli.render.inspection import change_screen
    from rankscope.errors import UserError
    from rankscope.filesystem import check_taken, output_folder
    from rankscope.tools import shrink as shrinking
    from rankscope.tools.inspect import InspectSettings

    named = {"--rank": rank, "--scale": scale, "--layer-scale": layer_scale, "--mitigate": mitigate}
    action = shrinking.the_one_action(named)
    if (mitigate is None) != (factor is None) or mitigate not in (None, "intruders"):
        raise UserError("shrink: expected '--mitigate intruders' together with '--lambda L'")
    if mitigate is None:
        check_idle(ctx, ("intruder_k", "epsilon"), "--mitigate intruders")
    with output_folder(out):
        if mitigate is None:
            check_taken(out)  # before a base is read; a mitigation writes two folders in it
        source = shrinking.SourceAdapter.open(adapter, base, any_base=force)
        if action == "--rank" and rank is not None:
            changes = [shrinking.truncate(source, out, rank)]
        elif action == "--scale" and scale is not None:
            changes = [shrinking.scale(source, out, scale)]
        elif action == "--layer-scale" and layer_scale is not None:
            changes = [
                shrinking.layer_scale(source, out, *shrinking.parse_layer_factors(layer_scale))
            ]
        else:
            settings = InspectSettings(None, intruder_k, epsilon)
            changes = [*shrinking.mitigate(source, out, factor or 0.0, settings)]
    if as_json:
        print_json([change.model_dump(mode="json") for change in changes])
    else:
        show(change_screen(changes))
