"""Verbs for models and adapters, without a study."""

import sys
from typing import Annotated

import typer

from rankscope.cli.application import AsJson, app
from rankscope.cli.terminal import print_json, print_message, print_result


@app.command("params")
def params_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder with config.json, hub id or 'pocket'.")
    ],
    rank: Annotated[
        list[int] | None, typer.Option(min=1, help="LoRA rank; may be repeated.")
    ] = None,
    targets: Annotated[
        str, typer.Option(help="attention, mlp, all-linear, or names separated by commas.")
    ] = "attention",
    as_json: AsJson = False,
) -> None:
    """Count trainable parameters and memory.

    For LoRA at each rank and for full fine-tuning. Needs no weights.

    Example: rankscope params ./llama-3.1-8b --rank 8 --rank 64
    """
    from rankscope.cli.render.parameters import parameters_table
    from rankscope.config.arm import TARGET_GROUPS
    from rankscope.models.load import shapes_folder
    from rankscope.models.parameters import architecture, lora_parameters, read_model_config

    ranks = rank or [8, 16, 32, 64, 128]
    names = TARGET_GROUPS.get(targets) or tuple(part.strip() for part in targets.split(","))
    shapes = architecture(read_model_config(shapes_folder(model, weights=False)))
    if as_json:
        counts = {str(r): lora_parameters(shapes, r, names) for r in ranks}
        print_json({"parameters": shapes.num_parameters, "trainable": counts})
    else:
        print_result(parameters_table(shapes, ranks, names))


@app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model such as smollm2-135m.")],
) -> None:
    """Download a small real model into the cache.

    Prints the path of a plain Hugging Face folder.

    Example: rankscope fetch smollm2-135m
    """
    from rankscope.models.fetch import fetch_model

    sys.stdout.write(f"{fetch_model(name, say=print_message)}\n")
