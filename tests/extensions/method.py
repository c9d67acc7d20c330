"""A fine-tuning method in one file: OLoRA (Büyükakyüz, 2406.01775), LoRA that starts from W0 = Q R.

s B0 A0 = Q_r R_r with A0 = R_r / sqrt(s) and B0 = Q_r / sqrt(s). The base stays whole and shared:
the adapter subtracts (A0, B0) itself, as with PiSSA.
"""

import torch
from torch import nn

from rankscope.models.init_context import InitContext
from rankscope.models.lora import Adapter
from rankscope.models.methods.dora import DoraMethod
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.quantize import dense_weight


class OloraMethod(LoraMethod):
    """Trains the leading part of W0's QR decomposition."""

    name, label = "olora", "OLoRA"
    summary = "`lora` that starts from the QR decomposition of W0 (2406.01775)."
    accepts_warm_start = False
    delta_needs_base = init_is_part_of_base = True

    def rank_scale(self, rank: int) -> float:
        return 2 * rank  # which PEFT does not know

    def init_module(
        self, adapter: Adapter, name: str, linear: nn.Linear, context: InitContext
    ) -> None:
        """A0 and B0, which are also what the adapter subtracts."""
        q, r = torch.linalg.qr(dense_weight(linear).float())
        root = adapter.scaling**0.5
        a, b = r[: adapter.rank] / root, q[:, : adapter.rank] / root
        adapter.initial_factors[name] = (a, b)
        adapter.set_factors(name, a.clone(), b.clone())


class HalfDoraMethod(DoraMethod):
    """DoRA at half the scaling, which PEFT reads as DoRA."""

    name, label = "half_dora", "half DoRA"
    summary = "`dora` at half the scaling."

    def rank_scale(self, rank: int) -> float:
        return 2 * rank
