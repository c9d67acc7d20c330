"""Verbs for models and adapters, without a study."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rankscope.cli.application import Overrides, TrustTaskCode, by_commas, verb
from rankscope.cli.terminal import (
    Reply,
    err_console,
    print_line,
    print_message,
    print_result,
    terminal_table,
)
from rankscope.errors import OK, UNFINISHED, UserError
from rankscope.formatting import byte_size
from rankscope.progress import ConsoleReporter
from rankscope.report.columns import Column

if TYPE_CHECKING:
    from rankscope.models.parameters import Architecture
    from rankscope.records import ModelScore

AnyBase = Annotated[bool, Option("--force", help="Accept adapters of another base.")]
Adapters = Annotated[
    list[str] | None, Option(metavar="PATH", help="Folder of a PEFT adapter; may be repeated.")
]
Tasks = Annotated[
    str,
    Option(help="Task names, task files (.yaml), data files or folders, SOURCE:NAME; by commas."),
]
NumFewshot = Annotated[int | None, Option(min=0, max=5, help="Solved questions before each.")]


def print_failures(failures: Sequence[str]) -> None:
    for failure in failures:
        print_message(failure, "red")


@verb("eval", "Reading {model} ...")
def _eval_command(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder, hub id or 'pocket'.")],
    tasks: Tasks,
    adapter: Adapters = None,
    data_dir: Annotated[
        Path | None, Option(help="Folder with the data of named tasks; default: the hub.")
    ] = None,
    split: Annotated[str, Option(help="test or validation.")] = "test",
    max_items: Annotated[int | None, Option(min=1, help="Limit of items per task.")] = None,
    num_fewshot: NumFewshot = None,
    out: Annotated[Path | None, Option(help="Folder of the study that keeps the scores.")] = None,
    overrides: Overrides = None,
    force: AnyBase = False,
    trust_task_code: TrustTaskCode = False,
) -> Reply:
    """Score a model and its adapters on tasks.

    The base is always scored as well. Scores that --out already holds are not computed again.

    Example: rankscope eval pocket --tasks pocket_med --max-items 20
    """
    from rankscope.config.loader import override_values
    from rankscope.records import failures
    from rankscope.tools.evaluate import score

    settings = {} if data_dir is None else {"data_dir": str(data_dir.absolute())}
    with ConsoleReporter(err_console) as reporter:
        records, scores = score(
            model,
            by_commas([tasks]),
            adapter or (),
            settings | override_values(overrides or []),
            out,
            num_fewshot=num_fewshot,
            any_base=force,
            reporter=reporter,
            split=split,
            max_items=max_items,
        )
    failed = failures(records)

    def show() -> None:
        print_scores(scores)
        if out is not None:
            print_line(f"kept in {out}")
        print_failures(failed)

    data = {"scores": scores, "failed": failed, "notes": records.notes}
    return Reply(data, show, UNFINISHED if failed else OK)


def print_scores(scores: Sequence["ModelScore"]) -> None:
    """Print a table per task: the base and its adapters."""
    from rankscope.report.tables import given_table

    for title, of_task in groupby(scores, lambda s: f"{s.record.task}: {s.record.metric}"):
        frame = given_table(list(of_task)).drop(columns=["task", "metric"])
        print_result(terminal_table(frame, title))
    if any(score.change for score in scores):
        print_line("changes against the base on the same items; ± is half the 95 % interval")


@verb("params", "Reading {model} ...")
def _params_command(
    model: Annotated[
        str, Argument(metavar="MODEL", help="Folder with config.json, hub id or 'pocket'.")
    ],
    rank: Annotated[
        list[str] | None, Option(metavar="RANK", help="LoRA ranks, by commas; default: 8 to 128.")
    ] = None,
    targets: Annotated[
        str, Option(help="attention, mlp, all-linear, or names by commas.")
    ] = "attention",
) -> Reply:
    """Count trainable parameters and memory.

    For LoRA at each rank and for full fine-tuning. Needs no weights.

    Example: rankscope params ./llama-3.1-8b --rank 8,64
    """
    from rankscope.config.arm import TARGET_GROUPS
    from rankscope.models.model_folder import shapes_folder

    folder = shapes_folder(model, weights=False)
    from rankscope.models.parameters import architecture, lora_parameters, read_model_config

    ranks = [_rank(word) for word in by_commas(rank or ["8,16,32,64,128"])]
    names = TARGET_GROUPS.get(targets) or tuple(by_commas([targets]))
    shapes = architecture(read_model_config(folder))
    trainable = {str(r): lora_parameters(shapes, r, names) for r in ranks}

    return Reply(
        {"parameters": shapes.num_parameters, "trainable": trainable},
        lambda: _show_parameters(shapes, trainable, names),
    )


def _rank(word: str) -> int:
    if not word.isdecimal() or word == "0":
        raise UserError("--rank", repr(word), "whole numbers from 1 on, such as 8,64")
    return int(word)


def _show_parameters(
    shapes: "Architecture", trainable: Mapping[str, int], targets: Sequence[str]
) -> None:
    from rankscope.device import choose_device, choose_dtype
    from rankscope.models.parameters import ADAMW_STATES, FLOAT32_BYTES, largest_useful_rank

    total = shapes.num_parameters
    rows = [
        {
            "rank": rank,
            "trainable": count,
            "share": count / total,
            "weights": count * FLOAT32_BYTES,
            "gradients": count * FLOAT32_BYTES,
            "AdamW": count * FLOAT32_BYTES * ADAMW_STATES,
        }
        for rank, count in {**trainable, "full": total}.items()
    ]
    columns = {"trainable": Column(digits=0), "share": Column(text="{:.2%}".format)}
    columns |= dict.fromkeys(("weights", "gradients", "AdamW"), Column(text=byte_size))
    print_result(terminal_table(rows, f"LoRA on {', '.join(targets)}", columns))
    dtype = choose_dtype("auto", choose_device("auto"))
    size = f"{byte_size(total * dtype.itemsize)} in {str(dtype).removeprefix('torch.')}"
    print_line(f"{total:,} parameters in the base: {size}.")
    cap = largest_useful_rank(shapes, targets)
    if any(int(rank) > cap for rank in trainable):
        print_line(
            f"Ranks above {cap}, the smaller dimension of the smallest target, add no directions."
        )
