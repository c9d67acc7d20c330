"""Main directions of each module's inputs, from which EVA starts (Paischer et al., 2410.07170).

The right singular vectors of each target's centered inputs are updated batch by batch until they
converge. Then the ranks are redistributed. The vectors of all modules that explain most of their
own module's variance stay, as many as the modules' ranks in sum. Procedure and constants follow
PEFT's ``initialize_lora_eva_weights`` with ``use_label_mask=False``: every valid token counts,
because a row may have a single label.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from rankscope.data.encode import EncodedRow
from rankscope.models.base import Base, Row, RowBatch, batches_of

CONVERGED = 0.99  # Cosine between a vector before and after a batch that leaves it in place
EVA_BATCH_TOKENS = 2048  # Tokens of a batch, or twice the number of vectors if that is more
MAX_BATCHES = 100  # Stops the updates; the rows are repeated as often as needed
PCA_SEED = 42  # Seed of the randomized decomposition, PEFT's


class _InputDirections:
    """The principal directions of the inputs of one module, or of several with the same inputs."""

    def __init__(self, linear: nn.Linear, num_components: int) -> None:
        lowrank = 2 * num_components <= linear.in_features  # randomized, if that can be faster
        seed = PCA_SEED if lowrank else None
        self.pca = IncrementalPCA(num_components, copy=True, lowrank=lowrank, lowrank_seed=seed)
        self.num_components = num_components
        self.converged = torch.zeros(num_components, dtype=torch.bool)  # By the last batch

    @property
    def directions(self) -> Tensor | None:
        """Principal directions, (num_components, in), most variance first; None before the first
        batch."""
        components: Tensor | None = getattr(self.pca, "components_", None)
        return components

    def update(self, x: Tensor) -> None:
        """Add a batch of inputs, (1, N, in); skips a batch with fewer rows than directions."""
        x = x.flatten(0, -2)
        if len(x) < self.num_components:
            return
        before = self.directions
        # Means are taken in float64, which MPS does not have.
        x = x.float().cpu() if x.device.type == "mps" else x.float()
        self.pca.partial_fit(x)  # type: ignore[no-untyped-call]
        if before is not None:
            similarity = torch.cosine_similarity(self.pca.components_, before)
            self.converged = (similarity >= CONVERGED).cpu()


def input_directions(
    base: Base,
    targets: Mapping[str, nn.Linear],
    rows: Sequence[EncodedRow],
    rank: int,
    most_times: float,
) -> dict[str, Tensor]:
    """Return A by module, (r, in) float32 with orthonormal rows; modules without a rank are left
    out.

    Args:
        targets: layers in model order; the sum of their ranks is ``rank`` times their number.
        rows: in the order of reading.
        most_times: no module gets more than this times ``rank``.
    """
    most = round(most_times * rank)
    ranks = {name: min(most, linear.in_features) for name, linear in targets.items()}
    most = max(ranks.values())
    all_rows = [Row(row.input_ids, [len(row.input_ids) - 1]) for row in rows]
    parts = batches_of(all_rows, max(EVA_BATCH_TOKENS, 2 * most))
    batches = [RowBatch.of(part, base.device) for part in parts]
    leaders = shared_inputs(base, targets, batches[0])
    inputs = {
        leader: _InputDirections(targets[leader], ranks[leader]) for leader in leaders.values()
    }
    for batch in islice(cycle(batches), MAX_BATCHES):
        moving = [name for name, seen in inputs.items() if not seen.converged[: ranks[name]].all()]
        if not moving:
            break
        _run_watched(base, batch, {targets[name]: inputs[name].update for name in moving})
        if all(seen.directions is not None for seen in inputs.values()):
            ranks = _redistributed_ranks(inputs, leaders, rank * len(targets))
    directions = {name: inputs[leader].directions for name, leader in leaders.items()}
    return {n: v[: ranks[n]].float() for n, v in directions.items() if v is not None and ranks[n]}


def shared_inputs(base: Base, targets: Mapping[str, nn.Linear], batch: RowBatch) -> dict[str, str]:
    """Map each module to the first module with the very same input tensor, such as k_proj to
    q_proj."""
    leaders: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []

    def note(name: str, x: Tensor) -> None:
        if last and last[0][1] is x:
            leaders[name] = last[0][0]
        else:
            leaders[name] = name
            last[:] = [(name, x)]

    calls = {linear: partial(note, name) for name, linear in targets.items()}
    _run_watched(base, batch, calls)
    return {name: leaders[name] for name in targets}


@torch.no_grad()
def _run_watched(
    base: Base, batch: RowBatch, calls: Mapping[nn.Linear, Callable[[Tensor], object]]
) -> None:
    """Run a batch through the bare base, and call a function with the input of each layer."""
    of_rows: dict[nn.Linear, list[Tensor]] = {linear: [] for linear in calls}
    with ExitStack() as hooks:
        for linear, call in calls.items():
            seen = call if base.packs else of_rows[linear].append
            hook = linear.register_forward_pre_hook(lambda _, args, seen=seen: seen(args[0]))
            hooks.callback(hook.remove)
        base.logits(batch)
    for linear, inputs in of_rows.items():
        if inputs:
            calls[linear](torch.cat(inputs, -2))


def _redistributed_ranks(
    inputs: Mapping[str, _InputDirections], leaders: Mapping[str, str], budget: int
) -> dict[str, int]:
    """Return the rank of each module, from the ``budget`` directions that explain most variance.

    Variance is the share of a module's own. Of modules with the same inputs the first gets the
    highest rank, because only its directions are checked for convergence.
    """
    followers = [name for name, leader in leaders.items() if name != leader]
    names = [*inputs, *followers]
    ratios = [inputs[leaders[name]].pca.explained_variance_ratio_ for name in names]
    owners = [name for name, ratio in zip(names, ratios, strict=True) for _ in ratio]
    order = torch.cat(ratios).argsort(descending=True, stable=True)[:budget].tolist()
    counts = Counter(owners[i] for i in order)
    ranks = {name: counts[name] for name in names}
    for name in followers:
        leader = leaders[name]
        ranks[name], ranks[leader] = sorted((ranks[name], ranks[leader]))
    return ranks
