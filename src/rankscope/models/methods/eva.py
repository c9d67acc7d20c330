"""EVA (Paischer et al., 2410.07170): LoRA whose A holds a module's main input directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rankscope.errors import UserError
from rankscope.models.methods.lora import LoraMethod

if TYPE_CHECKING:
    from torch import nn

    from rankscope.models.init_context import InitContext
    from rankscope.models.lora import Adapter
    from rankscope.models.study_base import StudyBase
    from rankscope.records import TrialSpec

RHO = 2.0  # A module's rank after redistribution is at most so many times the arm's rank


class EvaMethod(LoraMethod):
    name = "eva"
    label = "EVA"
    summary = (
        "`lora` whose A holds the main directions of each module's inputs over the training rows; "
        "ranks are redistributed, so a module may get up to 2r or none (2410.07170)."
    )
    peft_init = "eva"
    arm_fields = ("rank", "alpha", "targets", "dropout")
    accepts_warm_start = False
    fills_targets = False
    can_be_sharded = False

    def check_trial(self, trial: TrialSpec, base: StudyBase, tokens: int, num_steps: int) -> None:
        from rankscope.models.parameters import target_shapes

        assert trial.rank is not None
        targets = target_shapes(base.shapes, trial.targets).values()
        needed = max(min(round(RHO * trial.rank), inputs) for _, inputs in targets)
        if tokens < needed:
            place = f"method eva, rank {trial.rank}"
            found = f"{tokens} training tokens of {trial.task}"
            expected = f"at least {needed} to find as many directions in"
            raise UserError(place, found, expected, "choose a smaller rank")

    def init_adapter(
        self,
        adapter: Adapter,
        linears: Mapping[str, nn.Linear],
        trial: TrialSpec,
        context: InitContext,
    ) -> None:
        """Give each module an A of its own rank and a zero B; a module without a rank gets no
        adapter."""
        import torch

        from rankscope.models.input_directions import input_directions

        if context.base is None:
            raise ValueError(f"{trial.label}: EVA needs training rows, and the context has none")
        base, rows = context.base, context.rows_in_order(trial)
        directions = context.shared(
            (self.name, trial.seed, trial.rows, adapter.rank, trial.targets),
            lambda: input_directions(base, linears, rows, adapter.rank, RHO),
        )
        for name, linear in linears.items():
            if name in directions:
                a = directions[name].to(linear.weight.device, copy=True)
                b = torch.zeros(linear.out_features, len(a), device=a.device)
                adapter.set_factors(name, a, b)
