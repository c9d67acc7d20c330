"""The verb that scores models without a study."""

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.application import SOME_FAILED, AsJson, app
from rankscope.cli.terminal import err_console, print_json, print_line, print_message, print_result


@app.command("eval")
def eval_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, hub id, fetched model or 'pocket'.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Task names, task files (.yaml), data files or folders, lm_eval:NAME; by commas."
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Folder of a PEFT adapter; may be repeated."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data of named tasks; default: the hub.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    max_items: Annotated[int | None, typer.Option(min=1, help="Limit of items per task.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, max=5, help="Solved examples before each question.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scores and per-item tables.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:0.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    prompt_format: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    too_long: Annotated[
        str, typer.Option(help="Items longer than the context: refuse or truncate_left.")
    ] = "refuse",
    batch_tokens: Annotated[int, typer.Option(min=64, help="Tokens per forward pass.")] = 4096,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer.")] = 256,
    force: Annotated[
        bool, typer.Option("--force", help="Accept adapters of another base.")
    ] = False,
    trust_task_code: Annotated[
        bool, typer.Option("--trust-task-code", help="Run Python code of lm_eval: tasks.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a model and its adapters on tasks.

    The base is always scored as well. Scores that --out already holds are not computed again.

    Example: rankscope eval pocket --tasks pocket_med --max-items 20
    """
    from rankscope.cli.render.scores import scores_table
    from rankscope.progress import ConsoleReporter
    from rankscope.tools.evaluate import EvalRequest, score
    from rankscope.tools.evaluate.request import evaluation_settings

    settings = evaluation_settings(
        max_items=max_items,
        batch_tokens=batch_tokens,
        max_new_tokens=max_new_tokens,
        too_long=too_long,
    )
    request = EvalRequest(
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
    with ConsoleReporter(err_console) as reporter:
        result = score(request, out, reporter)
    for note in result.notes:
        print_message(f"note: {note}")
    if as_json:
        print_json(result.as_json())
    else:
        print_result(scores_table(result.scores))
        if out is not None:
            print_line(result.summary(out))
    for failure in result.failed:
        print_message(failure, "red")
    if result.failed:
        raise typer.Exit(SOME_FAILED)
