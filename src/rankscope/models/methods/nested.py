"""Nested LoRA (MatryoshkaLoRA, 2605.07850): one adapter whose first k components are one of rank k.

The run trains y = W0 x + B P A x + bias at the largest rank, with a fixed diagonal P. For listed
ranks K with scalings s_k, P_ii is the sum of s_k over the k in K with k >= i (components counted
from 1): what the slices s_k B[:, :k] A[:k] of all listed ranks give together, in one product. After
training P is dropped, and the slice of rank k is an ordinary LoRA adapter with scaling s_k.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope.models.methods.lora import LoraMethod

if TYPE_CHECKING:
    from torch import Tensor

    from rankscope.models.base import Base
    from rankscope.models.init_context import InitContext
    from rankscope.models.lora import Adapter
    from rankscope.records import ModelRecord, TrialSpec


class NestedMethod(LoraMethod):
    name = "nested"
    label = "nested LoRA"
    summary = (
        "`lora` of the largest listed `rank`, trained so that its first k components are an "
        "adapter of each listed rank k: one run, an arm per rank (2605.07850)."
    )
    arm_fields = ("rank", "alpha", "targets", "dropout")
    accepts_warm_start = False
    can_be_sharded = False
    nests_ranks = True
    rank_limit = "further components could only repeat the first ones"

    def prepare(
        self, base: Base, trial: TrialSpec, context: InitContext, num_steps: int
    ) -> tuple[Base, Adapter]:
        base, adapter = super().prepare(base, trial, context, num_steps)
        adapter.diagonal = (self.diagonal(trial) / adapter.scaling).to(base.device)
        return base, adapter

    def diagonal(self, trial: TrialSpec) -> Tensor:
        """P of a trial's run, (largest rank,) float32."""
        import torch

        assert trial.nested is not None
        p = torch.zeros(trial.nested[-1][0])
        for rank, alpha in trial.nested:
            p[:rank] += alpha / self.rank_scale(rank)
        return p

    def cut(self, trained: Adapter, trial: TrialSpec) -> Adapter:
        """The slice of a trained adapter that is ``trial``, a copy."""
        assert trial.rank is not None
        assert trial.alpha is not None
        part = replace(
            trained,
            name=trial.trial_id,
            rank=trial.rank,
            alpha=trial.alpha,
            scaling=trial.scaling,
            a={},
            b={},
            diagonal=None,
        )
        for module, a in trained.a.items():
            b = trained.b[module].detach()
            part.set_factors(module, a.detach()[: trial.rank].clone(), b[:, : trial.rank].clone())
        return part

    def save(self, trained: Any, trial: TrialSpec, record: ModelRecord, folder: Path) -> None:
        super().save(self.cut(trained, trial), trial, record, folder)
