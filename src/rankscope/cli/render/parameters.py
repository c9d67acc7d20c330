"""What ``params`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.table import terminal_table
from rankscope.device import choose_device, choose_dtype
from rankscope.formatting import byte_size
from rankscope.models.parameters import (
    Architecture,
    largest_useful_rank,
    lora_parameters,
    training_cost,
)


def parameters_table(
    shapes: Architecture, ranks: Sequence[int], targets: Sequence[str]
) -> RenderableType:
    dtype = choose_dtype("auto", choose_device("auto"))
    counts = {str(rank): lora_parameters(shapes, rank, targets) for rank in ranks}
    counts["full"] = shapes.num_parameters
    costs = {name: training_cost(count, shapes, dtype) for name, count in counts.items()}
    rows = [
        {
            "rank": label,
            "trainable": f"{cost.trainable_parameters:,}",
            "share": f"{cost.trainable_parameters / shapes.num_parameters:.2%}",
            "weights": byte_size(cost.weight_bytes),
            "gradients": byte_size(cost.gradient_bytes),
            "AdamW": byte_size(cost.optimizer_bytes),
            "per token": byte_size(cost.activation_bytes_per_token),
        }
        for label, cost in costs.items()
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
