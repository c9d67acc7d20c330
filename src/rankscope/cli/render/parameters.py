"""What ``params`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.device import choose_device, choose_dtype
from rankscope.formatting import byte_size
from rankscope.models.parameters import (
    ADAMW_STATES,
    FLOAT32_BYTES,
    Architecture,
    largest_useful_rank,
    lora_parameters,
)


def parameters_table(
    shapes: Architecture, ranks: Sequence[int], targets: Sequence[str]
) -> RenderableType:
    dtype = choose_dtype("auto", choose_device("auto"))
    counts = {str(rank): lora_parameters(shapes, rank, targets) for rank in ranks}
    counts["full"] = shapes.num_parameters
    rows = [
        {
            "rank": label,
            "trainable": f"{count:,}",
            "share": f"{count / shapes.num_parameters:.2%}",
            "weights": byte_size(count * FLOAT32_BYTES),
            "gradients": byte_size(count * FLOAT32_BYTES),
            "AdamW": byte_size(count * FLOAT32_BYTES * ADAMW_STATES),
            "per token": byte_size(shapes.activation_values_per_token * dtype.itemsize),
        }
        for label, count in counts.items()
    ]
    size = byte_size(shapes.num_parameters * dtype.itemsize)
    lines = [
        f"{shapes.num_parameters:,} parameters in the base: {size} in "
        f"{str(dtype).removeprefix('torch.')}. "
        "'per token' estimates the activations kept for the backward pass."
    ]
    cap = largest_useful_rank(shapes, targets)
    if any(rank > cap for rank in ranks):
        lines.append(
            f"Ranks above {cap}, the smaller dimension of the smallest target, add no directions."
        )
    table = terminal_table(rows, f"LoRA on {', '.join(targets)}", right=tuple(rows[0]))
    return Group(table, Text("\n".join(lines)))
