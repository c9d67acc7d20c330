"""One frozen linear layer, many LoRA adapters (Hu et al., 2106.09685): the packed layer.

Tokens of one adapter are contiguous, so each adapter works on a slice: y = W x + s_i B_i A_i x_i.
The frozen product runs once for all adapters, whatever their ranks.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.errors import BadInput
from rankscope.records import TrialSpec


class Segment(NamedTuple):
    """A span of tokens that belongs to one adapter; ``slot`` None is the bare base."""

    slot: str | None
    start: int
    stop: int


@dataclass(slots=True)
class Adapter:
    """One LoRA adapter: A and B of every matrix it changes, in float32.

    Attributes:
        slot: its name in the pack, the trial id.
        a: module name -> (r, in); b: module name -> (out, r).
        scaling: s in W0 + s B A.
        dropout: probability on the adapter's input while training.
        generator: draws the dropout masks; its own, so that neighbours in a pack change nothing.
    """

    slot: str
    rank: int
    alpha: float
    scaling: float
    targets: tuple[str, ...]
    a: dict[str, nn.Parameter]
    b: dict[str, nn.Parameter]
    dropout: float = 0.0
    generator: torch.Generator = field(default_factory=torch.Generator)

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every module, in module order."""
        return [p for name in self.a for p in (self.a[name], self.b[name])]

    def to(self, device: torch.device) -> "Adapter":
        """The adapter itself, with A and B moved to ``device``."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)
        return self


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer by module name, in model order, with adapters unwrapped."""
    found: dict[str, nn.Linear] = {}
    inside = set()
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLinear):
            found[name] = layer.linear
            inside.add(layer.linear)
        elif isinstance(layer, nn.Linear) and layer not in inside:
            found[name] = layer
    return found


def output_layer(model: nn.Module) -> nn.Linear | None:
    """The linear layer that gives the logits, adapters unwrapped; None where there is none."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    head = head.linear if isinstance(head, PackedLinear) else head
    return head if isinstance(head, nn.Linear) else None


def target_linears(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers an adapter goes on: full module name -> layer, in model order.

    A target is the last part of a module's name, or a whole dotted name. The output head never
    counts as a target unless named.

    Raises:
        BadInput: a target that matches no linear layer.
    """
    linears = linear_layers(model)
    chosen: set[str] = set()
    for target in targets:
        matched = {n for n in linears if n == target or n.endswith("." + target)}
        if not matched:
            candidates = ", ".join(sorted({n.rsplit(".", 1)[-1] for n in linears}))
            raise BadInput(
                f"target module {target!r} matches no linear layer of this model; "
                f"expected one of: {candidates}"
            )
        chosen |= matched
    return {name: layer for name, layer in linears.items() if name in chosen}


def new_adapter(model: nn.Module, trial: TrialSpec) -> Adapter:
    """A fresh adapter: A uniform in +-1/sqrt(in) (PEFT's Kaiming default), B zero.

    Each matrix draws from its own seed, (trial seed, module name), so an adapter's start does not
    depend on which other modules or adapters exist.
    """
    if trial.rank is None or trial.alpha is None:
        raise ValueError(f"{trial.label}: not a LoRA trial")
    a: dict[str, nn.Parameter] = {}
    b: dict[str, nn.Parameter] = {}
    for name, layer in target_linears(model, trial.targets).items():
        generator = torch.Generator().manual_seed(seed_of("init", trial.seed, name))
        bound = 1 / math.sqrt(layer.in_features)
        start = torch.empty(trial.rank, layer.in_features)
        start.uniform_(-bound, bound, generator=generator)
        device = layer.weight.device
        a[name] = nn.Parameter(start.to(device))
        b[name] = nn.Parameter(torch.zeros(layer.out_features, trial.rank, device=device))
    device = next(iter(a.values())).device
    return Adapter(
        slot=trial.trial_id,
        rank=trial.rank,
        alpha=trial.alpha,
        scaling=trial.scaling,
        targets=trial.targets,
        a=a,
        b=b,
        dropout=trial.dropout,
        generator=torch.Generator(device).manual_seed(seed_of("dropout", trial.seed)),
    )


class PackedLinear(nn.Module):
    """A frozen linear layer with the adapters of every trial that targets it.

    ``slots`` maps a slot to its adapter, and ``segments`` says which tokens are whose; both are
    shared with the :class:`Pack` that installed the layer.
    """

    def __init__(self, linear: nn.Linear, name: str, pack: "Pack", is_head: bool) -> None:
        super().__init__()
        self.linear = linear
        self.name = name
        self.is_head = is_head  # the output layer sees the kept positions alone
        self._pack = [pack]  # in a list: the pack is no submodule

    def forward(self, x: Tensor) -> Tensor:
        """(1, N, in) -> (1, N, out); M kept positions in place of N in the output layer."""
        y: Tensor = self.linear(x)
        pack = self._pack[0]
        parts: list[Tensor] = []
        for slot, start, stop in pack.kept_segments if self.is_head else pack.segments:
            part = y[:, start:stop]
            adapter = pack.adapters[slot] if slot is not None else None
            if adapter is not None and self.name in adapter.a:
                delta = self.delta(adapter, x[:, start:stop], training=pack.training)
                part = part + delta.to(y.dtype)
            parts.append(part)
        if not parts:
            return y
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def delta(self, adapter: Adapter, x: Tensor, training: bool) -> Tensor:
        """s B A x for one adapter's tokens, (1, n, in) -> (1, n, out), in float32."""
        a, b = adapter.a[self.name], adapter.b[self.name]
        x = x.to(a.dtype)
        if training and adapter.dropout > 0:
            keep = torch.rand(x.shape, generator=adapter.generator, device=x.device)
            x = x * (keep >= adapter.dropout) / (1 - adapter.dropout)
        return F.linear(F.linear(x, a), b) * adapter.scaling


class Pack:
    """The adapters that share one base; installs itself into the model's linear layers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.segments: tuple[Segment, ...] = ()
        self.kept_segments: tuple[Segment, ...] = ()
        self.training = False

    def attach(self, adapter: Adapter) -> None:
        """Make an adapter usable in segments named after its slot; one refused changes nothing.

        Raises:
            BadInput: it changes a module this model does not have, or of another shape.
        """
        modules = dict(self.model.named_modules())
        unwrapped: dict[str, nn.Linear] = {}
        for name, a in adapter.a.items():
            layer = modules.get(name)
            linear = layer.linear if isinstance(layer, PackedLinear) else layer
            if not isinstance(linear, nn.Linear):
                raise BadInput(f"the adapter changes {name!r}, which this model does not have")
            found = (adapter.b[name].shape[0], a.shape[1])
            if found != (linear.out_features, linear.in_features):
                raise BadInput(
                    f"the adapter's {name!r} fits a {found} matrix, this model's is "
                    f"{(linear.out_features, linear.in_features)}: it was made for another base"
                )
            if not isinstance(layer, PackedLinear):
                unwrapped[name] = linear
        head = output_layer(self.model)
        for name, linear in unwrapped.items():
            parent, _, leaf = name.rpartition(".")
            setattr(modules[parent], leaf, PackedLinear(linear, name, self, linear is head))
        self.adapters[adapter.slot] = adapter

    def detach(self, slot: str) -> None:
        """Forget an adapter; its tokens would see the bare base."""
        del self.adapters[slot]

    def clear(self) -> None:
        """Forget every adapter."""
        self.adapters.clear()


def delta_weight(adapter: Adapter, name: str) -> Tensor:
    """s B A of one module, (out, in) float32."""
    return adapter.scaling * (adapter.b[name].detach() @ adapter.a[name].detach())
