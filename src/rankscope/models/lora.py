"""Low-rank adapters: LoRA (Hu et al., 2106.09685) and its variants.

``methods/`` makes new ones, ``multi_lora.py`` runs many of them on one frozen base.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankscope.models.adapters.settings import AdapterSettings
from rankscope.models.methods import LORA


@dataclass(slots=True)
class Adapter:
    """One adapter: A and B of every matrix it changes, float32.

    The tuned layer computes y = g * (W0 + s (B A - B0 A0)) x + bias. Plain LoRA has neither g nor
    (A0, B0).
    """

    name: str  # Which tokens are its own; the trial id
    rank: int  # The trial's; a module's own rank is the number of rows of its A
    alpha: float
    scaling: float  # s
    targets: tuple[str, ...]
    method: str = LORA  # Registered name of the method that trains it
    a: dict[str, nn.Parameter] = field(default_factory=dict)  # Module -> (r, in)
    b: dict[str, nn.Parameter] = field(default_factory=dict)
    magnitude: dict[str, nn.Parameter] = field(default_factory=dict)  # Module -> m, DoRA's
    initial_factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Maps a module to (A0, B0) if the method's initialization is a part of W0 (PiSSA). The base
    stays whole and shared, so the adapter subtracts that part."""
    ranks: Mapping[str, int] = field(default_factory=dict)  # Module -> its rank, if not the trial's
    dropout: float = 0.0  # Probability on the adapter's input while training
    dropout_seed: int = 0  # Decides the masks, together with module, step and order of the rows
    step: int = 0
    settings: AdapterSettings | None = None  # Of one that was read from its folder
    base_sha256: str | None = None  # Of its base, if its file records that
    copies: tuple[str, ...] = ()  # Stored names of the base's weights that PEFT wrote beside
    _masks: dict[str, torch.Generator] = field(default_factory=dict, init=False, repr=False)
    _mask_states: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _cache: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def rank_of(self, module: str) -> int:
        return self.ranks.get(module, self.rank)

    def set_factors(self, module: str, a: Tensor, b: Tensor) -> None:
        self.a[module] = nn.Parameter(a.contiguous())
        self.b[module] = nn.Parameter(b.contiguous())

    def parameters(self) -> list[nn.Parameter]:
        """List the trained parameters: A, B and DoRA's m of every module, in module order."""
        return [parameter for module in self.a for parameter in self.module_parameters(module)]

    def module_parameters(self, module: str) -> list[nn.Parameter]:
        magnitude = self.magnitude.get(module)
        return [self.a[module], self.b[module], *([] if magnitude is None else [magnitude])]

    def to(self, device: torch.device) -> "Adapter":
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)
        self.initial_factors = {
            module: (a.to(device), b.to(device)) for module, (a, b) in self.initial_factors.items()
        }
        self.drop_cached_weights()
        return self

    def begin_step(self, step: int) -> None:
        self.step = step
        self._masks.clear()
        self._mask_states.clear()

    def drop_cached_weights(self) -> None:
        self._cache.clear()

    def cached(self, module: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return a value derived from a module's weights, computed once until they change."""
        if module not in self._cache:
            self._cache[module] = compute()
        return self._cache[module]

    def mask(
        self, module: str, shape: torch.Size, device: torch.device, again: bool = False
    ) -> Tensor:
        """Draw the next rows of a module's dropout mask in this step, bool, True = kept.

        The mask is a pure function of (dropout_seed, module, step) and of the tokens before these
        in the step. On a CPU it does not matter how the step is cut into passes. ``again`` repeats
        the rows drawn last, for a pass that gradient checkpointing computes again.
        """
        generator = self._masks.get(module)
        if generator is None:
            seed = derive_seed("dropout", self.dropout_seed, module, self.step)
            generator = self._masks[module] = torch.Generator(device).manual_seed(seed)
        if again:
            generator = torch.Generator(device)
            generator.set_state(self._mask_states[module])
        else:
            self._mask_states[module] = generator.get_state()
        return torch.rand(shape, generator=generator, device=device) >= self.dropout

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return (A', B') with B' A' = B A - B0 A0, float32, of twice the rank with (A0, B0).

        B A - B0 A0 = (B - B0) A + B0 (A - A0). The differences are taken in float32, because
        rounding to the base's dtype first would lose them.
        """
        a, b = self.a[module].detach(), self.b[module].detach()
        if module not in self.initial_factors:
            return a, b
        a0, b0 = self.initial_factors[module]
        return torch.cat([a, a - a0]), torch.cat([b - b0, b0], dim=1)


def adapter_of(
    name: str, factors: Mapping[str, tuple[Tensor, Tensor]], targets: Sequence[str] = ()
) -> Adapter:
    """Make a plain LoRA for inference that adds B A to each module, given its (A, B)."""
    rank = Counter(len(a) for a, _ in factors.values()).most_common(1)[0][0]
    adapter = Adapter(name, rank, float(rank), 1.0, tuple(targets or sorted(factors)))
    for module, (a, b) in factors.items():
        adapter.a[module] = nn.Parameter(a.float().contiguous(), requires_grad=False)
        adapter.b[module] = nn.Parameter(b.float().contiguous(), requires_grad=False)
    return adapter


def derive_seed(*parts: object) -> int:
    """Derive a 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
