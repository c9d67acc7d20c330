"""LoRA (Hu et al., 2106.09685), W0 + s B A, and the code that its variants share.

m, n  outputs and inputs of a module      r  rank      s  scaling
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankscope.filesystem import user_path
from rankscope.models.methods import LORA
from rankscope.models.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rankscope.config.study import GivenConfig
    from rankscope.models.base import Base
    from rankscope.models.init_context import InitContext
    from rankscope.models.lora import Adapter
    from rankscope.models.low_rank_update import LowRankUpdate
    from rankscope.models.multi_lora import AdapterSlice
    from rankscope.models.study_base import StudyBase
    from rankscope.records import ModelRecord, TrialSpec


class LoraMethod(Method):
    """A low-rank adapter on each target of a frozen base, which many adapters share."""

    name = LORA
    label = "LoRA"
    summary = "W0 + s B A with s = alpha / r; A random, B zero (2106.09685)."
    arm_fields: ClassVar[tuple[str, ...]] = ("rank", "alpha", "targets", "dropout", "rank_pattern")
    has_rank = True
    accepts_warm_start = True
    can_be_sharded = True

    # --- initialization

    def init_adapter(
        self,
        adapter: Adapter,
        linears: Mapping[str, nn.Linear],
        trial: TrialSpec,
        context: InitContext,
    ) -> None:
        """Fill an adapter so that the tuned model computes the base's outputs."""
        for name, linear in linears.items():
            self.init_module(adapter, name, linear, context)

    def init_module(
        self, adapter: Adapter, name: str, linear: nn.Linear, context: InitContext
    ) -> None:
        """Draw A uniformly in +-1/sqrt(n), PEFT's Kaiming default; B is zero.

        Each matrix draws from its own seed, (trial seed, module name), whatever else exists.
        """
        import torch

        from rankscope.models.lora import derive_seed

        seed = derive_seed("init", adapter.dropout_seed, name)
        bound = 1 / math.sqrt(linear.in_features)
        rank = adapter.rank_of(name)
        a = torch.empty(rank, linear.in_features)
        a.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        device = linear.weight.device
        b = torch.zeros(linear.out_features, rank, device=device)
        adapter.set_factors(name, a.to(device), b)

    def initial_factors_of(
        self, adapter: Adapter, module: str, svd: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return (A0, B0) of a stored adapter, given U, S and V of W0.

        PEFT took this initialization out of the base.
        """
        raise NotImplementedError

    # --- an adapter's slice of one pass of one layer

    def forward(
        self, part: AdapterSlice, y: Tensor, inputs: Tensor, linear: nn.Linear
    ) -> tuple[Tensor, ...]:
        """Add s B A x to y, (n, out), in place.

        ``inputs`` is x after dropout, (n, in). Returns the tensors that the backward pass needs.
        """
        hidden = inputs @ part.a.T
        y.addmm_(hidden, part.b.T, alpha=part.adapter.scaling)
        return (hidden,)

    def backward(
        self,
        part: AdapterSlice,
        saved: tuple[Tensor, ...],
        grad: Tensor,
        inputs: Tensor,
        grad_x: Tensor | None,
        weight: Tensor | None,
    ) -> list[Tensor]:
        """Return the gradients of the adapter's parameters in this module, float32.

        Args:
            saved: the result of :meth:`forward`.
            grad: gradient of y, (n, out).
            grad_x: (n, in), holds the base's share; the adapter's is added in place.
            weight: W0.
        """
        (hidden,) = saved
        back = grad @ part.b
        if grad_x is not None:
            if part.mask is None:
                grad_x.addmm_(back, part.a, alpha=part.adapter.scaling)
            else:
                grad_x += part.dropped(part.adapter.scaling * (back @ part.a))
        return part.factor_gradients(grad, back, inputs, hidden)

    def delta(self, adapter: Adapter, name: str, weight: Tensor) -> Tensor:
        """Return W - W0 of one module, (out, in), in the dtype of W0, ``weight``."""
        a, b = (factor.to(weight) for factor in adapter.factors(name))
        return adapter.scaling * (b @ a)

    def update(self, adapter: Adapter, name: str, weight: Tensor) -> LowRankUpdate | Tensor:
        """Return dW of one module, on the device of W0, ``weight``.

        It is in factors or, if updates have full rank, dense, (m, n) float64.
        """
        from rankscope.models.low_rank_update import LowRankUpdate, to_float64

        if self.delta_is_low_rank:
            return LowRankUpdate.from_adapter(adapter, name, weight)
        return self.delta(adapter, name, to_float64(weight))

    # --- a trial's life

    def trainable_parameters(self, trial: TrialSpec, base: StudyBase) -> int:
        from rankscope.models.parameters import lora_parameters

        assert trial.rank is not None
        if trial.rank_pattern is not None:
            shapes = base.shapes.linear_shapes
            return sum(rank * sum(shapes[name]) for name, rank in trial.rank_pattern)
        return lora_parameters(base.shapes, trial.rank, trial.targets)

    def prepare(
        self, base: Base, trial: TrialSpec, context: InitContext, num_steps: int
    ) -> tuple[Base, Adapter]:
        from rankscope.models.init_context import new_adapter

        adapter = new_adapter(base.model, trial, context)
        base.multi_lora.attach(adapter)
        return base, adapter

    def relative_update(self, trained: Any, base: Base) -> float:
        from rankscope.models.low_rank_update import LowRankUpdate
        from rankscope.models.quantize import dense_weight

        updates, weights = [], []
        for name, linear in base.linears().items():
            if name in trained.a:
                weight = dense_weight(linear) if self.has_magnitude else None
                updates.append(LowRankUpdate.from_adapter(trained, name, weight).frobenius())
                weights.append(base.weight_norm(name, linear))
        return math.hypot(*updates) / math.hypot(*weights)

    def read_given(self, given: GivenConfig, name: str, base: StudyBase) -> TrialSpec:
        """Make the trial that would have trained the adapter in a folder."""
        from rankscope.models.adapters.folder import load_adapter
        from rankscope.models.adapters.warm_start import shortest_targets
        from rankscope.models.given import given_trial

        shapes = base.shapes.linear_shapes
        adapter = load_adapter(user_path(given.folder), name, shapes=shapes, readable=True)
        settings = {"method": adapter.method, "rank": adapter.rank, "alpha": adapter.alpha}
        settings["targets"] = shortest_targets(adapter, base.shapes)
        return given_trial(given, name, base.folder, base.sha256, settings, adapter)

    def save(self, trained: Any, record: ModelRecord, folder: Path) -> None:
        from rankscope.models.adapters.folder import save_adapter

        save_adapter(trained, record, folder)

    def load(self, base: Base, trial: TrialSpec, folder: Path) -> Base:
        from rankscope.models.adapters.folder import load_adapter
        from rankscope.models.quantize import dense_weight
        from rankscope.models.svd_cache import svd

        is_given = trial.given is not None
        of = None if is_given else base.record
        adapter = load_adapter(folder, trial.trial_id, of, readable=is_given)
        if is_given and self.init_is_part_of_base:
            linears = base.linears()
            for name in adapter.a:
                parts = svd(dense_weight(linears[name]))
                adapter.initial_factors[name] = self.initial_factors_of(adapter, name, parts)
        base.multi_lora.attach(adapter.to(base.device))
        return base
