"""Verbs that analyze or change tuned models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, app
from rankscope.cli.terminal import err_console, print_json, print_message, print_result

IntruderK = Annotated[int, typer.Option(help="Leading vectors examined for intruders.")]
Epsilon = Annotated[float, typer.Option(help="Cosine below which a vector is an intruder.")]
AnyBase = Annotated[bool, typer.Option("--force", help="Accept adapters of another base.")]


def check_no_effect(ctx: typer.Context, names: Sequence[str], required: str) -> None:
    """Raise UserError for a given option that has no effect without another one."""
    from rankscope.errors import UserError

    for name in names:
        if (source := ctx.get_parameter_source(name)) is not None and source.name != "DEFAULT":
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{ctx.info_name}: {option} does nothing without {required}")


@app.command("inspect")
def inspect_command(
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
        int | None, typer.Option(help="Singular vectors to compare; default: min(500, d/4).")
    ] = None,
    intruder_k: IntruderK = 10,
    epsilon: Epsilon = 0.5,
    force: AnyBase = False,
    heads: Annotated[
        str | None, typer.Option(metavar="TASK", help="Also analyze attention heads on this task.")
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK", help="With --heads: remove each head, then each layer's, and score."
        ),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="With --heads: limit of items.")] = 64,
    data_dir: Annotated[
        Path | None, typer.Option(help="With --heads: folder with the data of named tasks.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="With --heads: float32, bfloat16 or auto.")
    ] = "float32",
    as_json: AsJson = False,
) -> None:
    """Analyze adapters and checkpoints, without training.

    Shows the size, spectrum and new directions of each matrix's update against the base.

    Example: rankscope inspect ./base ./adapter-r8 --out inspection
    """
    from rankscope.cli.render.inspection import inspection_tables
    from rankscope.filesystem import output_folder
    from rankscope.progress import ConsoleReporter
    from rankscope.tools import inspect, inspect_heads

    if heads is None:
        unused = ("ablate", "items", "data_dir", "dtype")
        check_no_effect(ctx, unused, "--heads TASK, the task that was trained on")
    settings = inspect.InspectSettings(top_k, intruder_k, epsilon)
    with output_folder(out), ConsoleReporter(err_console) as reporter:
        if heads is not None:
            head_settings = inspect_heads.HeadSettings(
                heads, tuple(ablate or ()), items, data_dir, dtype
            )
            inspect_heads.check_heads(base, head_settings)
        result = inspect.inspect(base, tuned, settings, any_base=force, reporter=reporter)
        if heads is not None:
            result = inspect_heads.inspect_heads(result, head_settings, reporter=reporter)
    if out is not None:
        inspect.write_inspection_folder(result, out)
        print_message(f"written to {out}")
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        print_result(inspection_tables(result))


@app.command("shrink")
def shrink_command(
    ctx: typer.Context,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a PEFT adapter.")],
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    rank: Annotated[int | None, typer.Option(help="Truncate to this rank, optimally.")] = None,
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
    intruder_k: IntruderK = 10,
    epsilon: Epsilon = 0.5,
    force: AnyBase = False,
    as_json: AsJson = False,
) -> None:
    """Make an adapter smaller, or its update weaker.

    Writes an ordinary PEFT adapter. A mitigation writes two: the second is its norm-matched
    control.

    Example: rankscope shrink ./adapter-r64 --rank 16 --out adapter-r16
    """
    from rankscope.cli.render.inspection import changes_tables
    from rankscope.errors import UserError
    from rankscope.filesystem import check_taken, output_folder
    from rankscope.tools import shrink
    from rankscope.tools.inspect import InspectSettings

    options = {
        "--rank": rank,
        "--scale": scale,
        "--layer-scale": layer_scale,
        "--mitigate": mitigate,
    }
    action = shrink.the_one_action(options)
    if (mitigate is None) != (factor is None) or mitigate not in (None, "intruders"):
        raise UserError("shrink: expected '--mitigate intruders' together with '--lambda L'")
    if mitigate is None:
        check_no_effect(ctx, ("intruder_k", "epsilon"), "--mitigate intruders")
    with output_folder(out):
        if mitigate is None:
            check_taken(out)  # before the base is read; a mitigation writes two folders in it
        source = shrink.SourceAdapter.open(adapter, base, any_base=force)
        if action == "--rank" and rank is not None:
            changes = [shrink.truncate(source, out, rank)]
        elif action == "--scale" and scale is not None:
            changes = [shrink.scale(source, out, scale)]
        elif action == "--layer-scale" and layer_scale is not None:
            changes = [shrink.layer_scale(source, out, *shrink.parse_layer_factors(layer_scale))]
        else:
            settings = InspectSettings(None, intruder_k, epsilon)
            changes = [*shrink.mitigate(source, out, factor or 0.0, settings)]
    if as_json:
        print_json([change.model_dump(mode="json") for change in changes])
    else:
        print_result(changes_tables(changes))
