"""What a low-rank adapter is: LoRA (Hu et al., 2106.09685) and its kin.

``methods.py`` makes new ones, ``packed.py`` runs many of them on one frozen base.
"""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankscope.models.quantize import dense_weight


@dataclass(slots=True)
class Adapter:
    """One adapter: A and B of every matrix it changes, in float32.

    The layer becomes y = g * (W0 + s (B A - B0 A0)) x + bias. LoRA has neither g nor (A0, B0).

    Attributes:
        name: its name in the multi_lora, the trial id.
        rank: as asked for; a module's own is the number of rows of its A.
        scaling: s.
        a: module name -> (r, in); b: module name -> (out, r).
        magnitude: module name -> m, (out,), of DoRA (2402.09353): g = m / |W0 + s B A| per output,
            the norm taken as a constant in the gradient.
        start: module name -> (A0, B0) of a method that starts from a part of W0 (PiSSA,
            2404.02948): the base stays whole and shared, so that part is subtracted here.
        dropout: probability on the adapter's input while training.
        dropout_seed: what the masks depend on, besides module, step and order of the rows.
    """

    name: str
    rank: int
    alpha: float
    scaling: float
    targets: tuple[str, ...]
    a: dict[str, nn.Parameter]
    b: dict[str, nn.Parameter]
    magnitude: dict[str, nn.Parameter] = field(default_factory=dict)
    start: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    dropout: float = 0.0
    dropout_seed: int = 0
    step: int = 0
    _masks: dict[str, torch.Generator] = field(default_factory=dict)
    _begun: dict[str, Tensor] = field(default_factory=dict)
    _norms: dict[str, Tensor] = field(default_factory=dict)

    def parameters(self) -> list[nn.Parameter]:
        """What trains: A, B and, for DoRA, m of every module, in module order."""
        return [parameter for name in self.a for parameter in self.of_module(name)]

    def of_module(self, name: str) -> list[nn.Parameter]:
        """What trains in one module: A, B and, for DoRA, m."""
        magnitude = self.magnitude.get(name)
        return [self.a[name], self.b[name], *([] if magnitude is None else [magnitude])]

    def to(self, device: torch.device) -> "Adapter":
        """The adapter itself, with everything it holds moved to ``device``."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)
        self.start = {n: (a.to(device), b.to(device)) for n, (a, b) in self.start.items()}
        self.weights_changed()
        return self

    def begin_step(self, step: int) -> None:
        """Draw the dropout masks of optimizer step ``step`` from here on."""
        self.step = step
        self._masks.clear()
        self._begun.clear()

    def weights_changed(self) -> None:
        """Forget what was derived from A and B."""
        self._norms.clear()

    def mask(
        self, name: str, shape: torch.Size, device: torch.device, again: bool = False
    ) -> Tensor:
        """The next rows of a module's dropout mask in this step, bool, True = kept.

        A pure function of (dropout_seed, module, step) and of the tokens that came before in the
        step. On a CPU it does not matter how the step's tokens are cut into forward passes.
        ``again`` gives the rows drawn last once more: for a pass that is computed a second time.
        """
        generator = self._masks.get(name)
        if generator is None:
            seed = derive_seed("dropout", self.dropout_seed, name, self.step)
            generator = self._masks[name] = torch.Generator(device).manual_seed(seed)
        if again:
            generator = torch.Generator(device)
            generator.set_state(self._begun[name])
        else:
            self._begun[name] = generator.get_state()
        return torch.rand(shape, generator=generator, device=device) >= self.dropout

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """(A', B') with B' A' = B A - B0 A0, of twice the rank where there is a start; float32.

        B A - B0 A0 = (B - B0) A + B0 (A - A0): differences are taken before anything is rounded to
        the base's dtype, in which they would be lost.
        """
        a, b = self.a[name].detach(), self.b[name].detach()
        if name not in self.start:
            return a, b
        a0, b0 = self.start[name]
        return torch.cat([a, a - a0]), torch.cat([b - b0, b0], dim=1)

    def inverse_norm(self, name: str, linear: nn.Linear) -> Tensor | None:
        """1 / |W0 + s B A| of each output, (out,) float32, without gradient; None unless DoRA."""
        if name not in self.magnitude:
            return None
        if name not in self._norms:
            tuned = dense_weight(linear).float() + delta_weight(self, name)
            self._norms[name] = 1 / tuned.norm(dim=1)
        return self._norms[name]


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def delta_weight(adapter: Adapter, name: str) -> Tensor:
    """s (B A - B0 A0) of one module, (out, in) float32: W - W0 but for DoRA's magnitude."""
    a, b = adapter.factors(name)
    return adapter.scaling * (b @ a)


def tuned_delta(adapter: Adapter, name: str, weight: Tensor) -> Tensor:
    """W - W0 of one module, (out, in), DoRA's magnitude included, in the dtype of W0, ``weight``.

    DoRA: W = m (W0 + s B A) / |W0 + s B A|, row by row (2402.09353, eq. 5).
    """
    a, b = (factor.to(weight) for factor in adapter.factors(name))
    delta = adapter.scaling * (b @ a)
    if name not in adapter.magnitude:
        return delta
    directed = weight + delta
    gain: Tensor = adapter.magnitude[name].detach().to(weight) / directed.norm(dim=1)
    return gain[:, None] * directed - weight
