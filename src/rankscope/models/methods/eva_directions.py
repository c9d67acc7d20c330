"""EVA's start (Paischer et al., 2410.07170): A is what a module mostly sees of the training rows.

The right singular vectors of each target's centred inputs are followed batch by batch until they
stay where they are. Then the ranks are shared out: of all vectors of all modules the ones that
explain most of their own module's variance are taken, as many as the modules had ranks together.
The procedure and its numbers are those of PEFT's ``initialize_lora_eva_weights``, over every valid
token (there ``use_label_mask=False``), since a row may have one label alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from rankscope.data.encode import EncodedRow
from rankscope.errors import UserError
from rankscope.models.base import Base, Row, RowBatch, batches_of
from rankscope.models.methods.eva import RHO

CONVERGED = 0.99
"""Cosine between a vector before and after a batch, from which on it is taken to stay."""
BATCH_TOKENS = 2048
"""Tokens of a batch, or twice the vectors that are followed if that is more."""
MAX_BATCHES = 100
"""After so many the vectors are taken as they are; the rows are gone through again and again."""
SEED = 42
"""Of the randomized decomposition, PEFT's."""


@dataclass(slots=True)
class Inputs:
    """The principal directions of what one module, or several alike, sees."""

    pca: IncrementalPCA
    num_components: int
    stays: Tensor = field(init=False)
    """(num_components,) bool: directions that the last batch did not turn."""

    def __post_init__(self) -> None:
        self.stays = torch.zeros(self.num_components, dtype=torch.bool)

    @property
    def directions(self) -> Tensor | None:
        """(num_components, in), most variance first; None before the first batch."""
        found: Tensor | None = getattr(self.pca, "components_", None)
        return found

    def see(self, x: Tensor) -> None:
        """Take in a batch of inputs, (N, in); one with fewer rows than directions is left out."""
        if len(x) < self.num_components:
            return
        before = self.directions
        # Means are taken in float64, which MPS does not have.
        x = x.float().cpu() if x.device.type == "mps" else x.float()
        self.pca.partial_fit(x)  # type: ignore[no-untyped-call]
        if before is not None:
            similarity = torch.cosine_similarity(self.pca.components_, before)
            self.stays = (similarity >= CONVERGED).cpu()


def input_directions(
    base: Base, targets: Mapping[str, nn.Linear], rows: Sequence[EncodedRow], rank: int
) -> dict[str, Tensor]:
    """Module -> A, (r, in) float32 with orthonormal rows; no entry where its share is no rank.

    Args:
        targets: the modules, in model order; the sum of their ranks is ``rank`` times their number.
        rows: training rows, in the order in which they are looked at.

    Raises:
        UserError: the rows have fewer tokens than a module has directions to be found.
    """
    most = {name: min(round(RHO * rank), layer.in_features) for name, layer in targets.items()}
    size = max(BATCH_TOKENS, 2 * max(most.values()))
    all_rows = [Row(row.input_ids, [len(row.input_ids) - 1]) for row in rows]
    batches = [RowBatch.of(part, base.device) for part in batches_of(all_rows, size)]
    tokens = max(sum(batch.lengths) for batch in batches)
    if tokens < max(most.values()):
        raise UserError(
            f"method eva, rank {rank}: the training rows have {tokens} tokens, expected at least "
            f"{max(most.values())} to find as many directions in; choose a smaller rank"
        )
    leaders = shared_inputs(base, targets, batches[0])
    inputs = {leader: new_inputs(targets[leader], most[leader]) for leader in leaders.values()}
    ranks = dict(most)
    for batch in islice(cycle(batches), MAX_BATCHES):
        moving = [name for name, seen in inputs.items() if not seen.stays[: ranks[name]].all()]
        if not moving:
            break
        run(base, batch, {name: (targets[name], inputs[name]) for name in moving})
        if all(seen.directions is not None for seen in inputs.values()):
            ranks = shared_out(inputs, leaders, rank * len(targets))
    found = {name: inputs[leader].directions for name, leader in leaders.items()}
    return {n: v[: ranks[n]].float() for n, v in found.items() if v is not None and ranks[n]}


def new_inputs(layer: nn.Linear, num_components: int) -> Inputs:
    """Nothing seen yet; the decomposition is randomized where that can pay, else exact."""
    lowrank = 2 * num_components <= layer.in_features
    seed = SEED if lowrank else None
    pca = IncrementalPCA(num_components, copy=True, lowrank=lowrank, lowrank_seed=seed)
    return Inputs(pca, num_components)


@torch.no_grad()
def shared_inputs(base: Base, targets: Mapping[str, nn.Linear], batch: RowBatch) -> dict[str, str]:
    """Module -> the first module that sees the very same tensor, such as q_proj for k_proj."""
    leaders: dict[str, str] = {}
    last: list[tuple[str, Tensor]] = []

    def note(name: str, x: Tensor) -> None:
        if last and last[0][1] is x:
            leaders[name] = last[0][0]
        else:
            leaders[name] = name
            last[:] = [(name, x)]

    with ExitStack() as hooks:
        for name, layer in targets.items():
            hook = layer.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
            hooks.callback(hook.remove)
        base.logits(batch)
    if leaders.keys() != targets.keys():
        unseen = sorted(targets.keys() - leaders.keys())
        raise RuntimeError(f"{unseen[0]}: a forward pass did not go through this module")
    return {name: leaders[name] for name in targets}


@torch.no_grad()
def run(base: Base, batch: RowBatch, watched: Mapping[str, tuple[nn.Linear, Inputs]]) -> None:
    """One forward pass through the bare base; each watched module's inputs are taken in."""
    with ExitStack() as hooks:
        for layer, inputs in watched.values():
            hook = layer.register_forward_pre_hook(
                lambda _, args, inputs=inputs: inputs.see(args[0].flatten(0, -2))
            )
            hooks.callback(hook.remove)
        base.logits(batch)


def shared_out(
    inputs: Mapping[str, Inputs], leaders: Mapping[str, str], budget: int
) -> dict[str, int]:
    """Module -> rank: the ``budget`` directions that explain most of their module's variance.

    Of modules that see the same, the first has the highest rank, since it is the one followed.
    """
    followers: Iterable[str] = [name for name, leader in leaders.items() if name != leader]
    names = [*inputs, *followers]
    shares = [inputs[leaders[name]].pca.explained_variance_ratio_ for name in names]
    owners = [name for name, share in zip(names, shares, strict=True) for _ in share]
    order = torch.cat(shares).argsort(descending=True, stable=True)[:budget].tolist()
    counts = Counter(owners[i] for i in order)
    ranks = {name: counts[name] for name in names}
    for name in followers:
        leader = leaders[name]
        ranks[name], ranks[leader] = sorted((ranks[name], ranks[leader]))
    return ranks
