"""How each method starts: one function per way of filling A and B.

m, n  outputs and inputs of a module      r  rank      s  scaling
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rankscope.data.encode import EncodedRow
from rankscope.data.sampler import RowSampler
from rankscope.errors import UserError
from rankscope.models.adapters.folder import adapter_sha256, load_adapter
from rankscope.models.base import Base
from rankscope.models.lora import Adapter, derive_seed
from rankscope.models.methods.eva_directions import input_directions
from rankscope.models.multi_lora import target_linears
from rankscope.models.quantize import dense_weight
from rankscope.records import TrialSpec


@dataclass(slots=True)
class InitContext:
    """What adapters of one multi_lora start from besides a seed, each thing computed once.

    What a trial gets does not depend on the other trials: of a matrix the whole decomposition is
    made and as much of it kept as the largest rank among ``trials`` needs.
    """

    base: Base
    rows: Sequence[EncodedRow]
    trials: Sequence[TrialSpec]
    _principal: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    _directions: dict[tuple[object, ...], dict[str, Tensor]] = field(default_factory=dict)

    def principal(self, name: str, layer: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, k), S (k,) and V^T (k, n) of W0, the k largest singular values, float32."""
        if name not in self._principal:
            ranks = [t.rank for t in self.trials if t.method == "pissa" and t.rank is not None]
            u, s, vt = torch.linalg.svd(dense_weight(layer).float(), full_matrices=False)
            k = max(ranks)
            self._principal[name] = (u[:, :k].clone(), s[:k].clone(), vt[:k].clone())
        return self._principal[name]

    def directions(self, trial: TrialSpec, rank: int) -> dict[str, Tensor]:
        """EVA's A by module, from the rows in the trial's own order."""
        key = (trial.seed, rank, trial.targets)
        if key not in self._directions:
            order = RowSampler(len(self.rows), 1, 1, trial.seed).epoch(0)
            self._directions[key] = input_directions(
                self.base,
                target_linears(self.base.model, trial.targets),
                [self.rows[i] for i in order],
                rank,
            )
        return self._directions[key]


def new_adapter(model: nn.Module, trial: TrialSpec, starts: InitContext | None = None) -> Adapter:
    """A trial's adapter before its first step.

    A fresh one's module computes what the base's does, up to rounding; one that goes on from an
    adapter on disk (``init_from``) computes what that one does.

    Args:
        starts: shared by the trials of a multi_lora. Without it decompositions are made for this adapter
            alone, and EVA, which looks at rows, cannot start.

    Raises:
        UserError: a target that matches nothing; PiSSA at a rank that a matrix does not have; EVA on
            too few rows; an adapter on disk that changed since the study was read.
    """
    if trial.rank is None or trial.alpha is None:
        raise ValueError(f"{trial.label}: not a LoRA trial")
    adapter = Adapter(
        name=trial.trial_id,
        rank=trial.rank,
        alpha=trial.alpha,
        scaling=trial.scaling,
        targets=trial.targets,
        a={},
        b={},
        dropout=trial.dropout,
        dropout_seed=trial.seed,
    )
    layers = target_linears(model, trial.targets)
    if trial.init_from is not None:
        start_from_folder(adapter, layers, trial, Path(trial.init_from))
        return adapter
    if trial.method == "eva":
        if starts is None:
            raise ValueError(f"{trial.label}: EVA starts from training rows, none were given")
        start_from_inputs(adapter, layers, starts.directions(trial, trial.rank))
        return adapter
    fill = START.get(trial.method, start_at_zero)
    for name, layer in layers.items():
        fill(adapter, name, layer, starts)
    return adapter


def start_at_zero(
    adapter: Adapter, name: str, layer: nn.Linear, starts: InitContext | None = None
) -> None:
    """A uniform in +-1/sqrt(n), PEFT's Kaiming default, B zero (Hu et al., 2106.09685).

    Each matrix draws from its own seed, (trial seed, module name), so an adapter's start does not
    depend on which other modules or adapters exist.
    """
    generator = torch.Generator().manual_seed(derive_seed("init", adapter.dropout_seed, name))
    bound = 1 / math.sqrt(layer.in_features)
    a = torch.empty(adapter.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
    device = layer.weight.device
    put(adapter, name, a.to(device), torch.zeros(layer.out_features, adapter.rank, device=device))


def start_with_magnitude(
    adapter: Adapter, name: str, layer: nn.Linear, starts: InitContext | None = None
) -> None:
    """DoRA (Liu et al., 2402.09353, eq. 5): LoRA's start, and m the length of W0's rows."""
    start_at_zero(adapter, name, layer)
    adapter.magnitude[name] = nn.Parameter(dense_weight(layer).float().norm(dim=1))


def start_as_principal_part(
    adapter: Adapter, name: str, layer: nn.Linear, starts: InitContext | None = None
) -> None:
    """PiSSA (Meng et al., 2404.02948, eq. 2-4): s B0 A0 = U_r S_r V_r^T, the part of W0 trained.

    A0 = sqrt(S_r / s) V_r^T and B0 = U_r sqrt(S_r / s), as in PEFT. The base stays whole and
    shared; ``Adapter.start`` remembers what is to be subtracted from it.
    """
    rank, shape = adapter.rank, (layer.out_features, layer.in_features)
    if rank > min(shape):
        raise UserError(
            f"method pissa: rank {rank} is above {min(shape)}, the smaller dimension of {name!r} "
            f"{shape}: it has no {rank} singular vectors to start from"
        )
    if starts is not None:
        u, sigma, vt = starts.principal(name, layer)
    else:
        u, sigma, vt = torch.linalg.svd(dense_weight(layer).float(), full_matrices=False)
    root = (sigma[:rank] / adapter.scaling).sqrt()
    a, b = root[:, None] * vt[:rank], u[:, :rank] * root
    adapter.start[name] = (a, b)
    put(adapter, name, a.clone(), b.clone())


def start_from_inputs(
    adapter: Adapter, layers: dict[str, nn.Linear], directions: dict[str, Tensor]
) -> None:
    """EVA: A as given, of each module's own rank; B zero. A module left out has no adapter."""
    for name, layer in layers.items():
        if name in directions:
            a = directions[name].to(layer.weight.device, copy=True)
            put(adapter, name, a, torch.zeros(layer.out_features, len(a), device=a.device))


def start_from_folder(
    adapter: Adapter, layers: dict[str, nn.Linear], trial: TrialSpec, folder: Path
) -> None:
    """A, B and DoRA's m as they lie in ``folder``, of each module's own rank."""
    if adapter_sha256(folder) != trial.init_sha256:
        raise UserError(
            f"adapter {folder}: changed while the study was running; the same command reads it anew"
        )
    stored = load_adapter(folder, trial.trial_id)
    for name, layer in layers.items():
        device = layer.weight.device
        put(adapter, name, stored.a[name].detach().to(device), stored.b[name].detach().to(device))
        if name in stored.magnitude:
            adapter.magnitude[name] = nn.Parameter(stored.magnitude[name].detach().to(device))


def put(adapter: Adapter, name: str, a: Tensor, b: Tensor) -> None:
    """Give a module its A (r, n) and B (m, r), which train."""
    adapter.a[name] = nn.Parameter(a.contiguous())
    adapter.b[name] = nn.Parameter(b.contiguous())


START: dict[str, Callable[[Adapter, str, nn.Linear, InitContext | None], None]] = {
    "dora": start_with_magnitude,
    "pissa": start_as_principal_part,
}
"""By method, what fills one module; :func:`start_at_zero` for any other."""
