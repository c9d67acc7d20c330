"""The evaluation engine without a study."""

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import SOME_FAILED, AsJson, app
from rankscope.cli.terminal import err_console, print_json, say, show, tell


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, hub id, fetched model or 'pocket'.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Names, task files (.yaml), files and folders of rows, or lm_eval:NAME; by commas."
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A PEFT adapter's folder; may be repeated."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the named tasks' rows; else the hub.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    max_items: Annotated[
        int | None, typer.Option(min=1, help="At most so many items of a task.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, max=5, help="Answered questions before each one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scores and per-item tables.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:0.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    prompt_format: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    too_long: Annotated[
        str, typer.Option(help="Items beyond the context: refuse or truncate_left.")
    ] = "refuse",
    batch_tokens: Annotated[int, typer.Option(min=64, help="Tokens per forward pass.")] = 4096,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer.")] = 256,
    force: Annotated[
        bool, typer.Option("--force", help="Take adapters made for other weights.")
    ] = False,
    trust_task_code: Annotated[
        bool, typer.Option("--trust-task-code", help="Run the Python that lm_eval: tasks name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a model and its adapters on tasks.

    The base is always among them; what --out holds already is not scored again.

    Example: rankscope eval pocket --tasks pocket_med --max-items 20
    """
    from rankscope.cli.render.scores import scores_screen
    from rankscope.progress import ConsoleReporter
    from rankscope.tools.evaluate import EvalRequest, score
    from rankscope.tools.evaluate.request import evaluation_settings

    settings = evaluation_settings(
        max_items=max_items,
        batch_tokens=batch_tokens,
        max_new_tokens=max_new_tokens,
        too_long=too_long,
    )
    asked = EvalRequest(
        model=model,
        adapters=tuple(adapter or ()),
        tasks=tuple(part.strip() for part in tasks.split(",") if part.strip()),
        data_dir=data_dir,
        split=split,
        num_fewshot=num_fewshot,
        device=device,
        dtype=dtype,
        prompt_format=prompt_format,
        force=force,
        trust_task_code=trust_task_code,
        settings=settings,
    )
    with ConsoleReporter(err_console) as screen:
        scored = score(asked, out, screen)
    for note in scored.notes:
        tell(f"note: {note}")
    if as_json:
        print_json(scored.as_json())
    else:
        show(scores_screen(scored.scores))
        if out is not None:
            say(scored.summary(out))
    for failure in scored.failed:
        tell(failure, "red")
    if scored.failed:
        raise typer.Exit(SOME_FAILED)
