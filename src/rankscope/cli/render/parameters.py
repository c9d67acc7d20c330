"""What ``params`` prints."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from rankscope.cli.render.tables import listing
from rankscope.device import choose_device, choose_dtype
from rankscope.formatting import byte_size
from rankscope.models.parameters import Architecture, full_cost, largest_useful_rank, lora_cost


def parameters_screen(
    shapes: Architecture, ranks: Sequence[int], targets: Sequence[str]
) -> RenderableType:
    """What ``params`` prints: trainable parameters and the memory they need, rank by rank."""
    dtype = choose_dtype("auto", choose_device("auto"))
    name = str(dtype).removeprefix("torch.")
    numbers = ("rank", "trainable", "share", "weights", "gradients", "AdamW", "per token")
    table = listing(f"LoRA on {', '.join(targets)}", numbers, frozenset(numbers))
    costs = [(str(r), lora_cost(shapes, r, targets, dtype)) for r in ranks]
    for label, cost in [*costs, ("full", full_cost(shapes, dtype))]:
        table.add_row(
            label,
            f"{cost.trainable_parameters:,}",
            f"{cost.trainable_parameters / shapes.num_parameters:.2%}",
            byte_size(cost.weight_bytes),
            byte_size(cost.gradient_bytes),
            byte_size(cost.optimizer_bytes),
            byte_size(cost.activation_bytes_per_token),
        )
    lines = [
        f"{shapes.num_parameters:,} parameters in the base: "
        f"{byte_size(shapes.num_parameters * dtype.itemsize)} in {name}. "
        "'per token' estimates the activations kept for the backward pass."
    ]
    cap = largest_useful_rank(shapes, targets)
    if any(rank > cap for rank in ranks):
        lines.append(
            f"Ranks above {cap}, the smaller dimension of the smallest target, add no directions."
        )
    return Group(table, Text("\n".join(lines)))
