"""PiSSA (Meng et al., 2404.02948): LoRA that starts as the leading part of W0.

s B0 A0 = U_r S_r V_r^T with A0 = sqrt(S_r / s) V_r^T and B0 = U_r sqrt(S_r / s) (eq. 2-4), as in
PEFT. The base stays whole and shared: the adapter subtracts (A0, B0) itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankscope.errors import UserError
from rankscope.models.methods.lora import LoraMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rankscope.models.init_context import InitContext
    from rankscope.models.lora import Adapter
    from rankscope.models.study_base import StudyBase
    from rankscope.records import TrialSpec


class PissaMethod(LoraMethod):
    name = "pissa"
    label = "PiSSA"
    summary = (
        "`lora` that starts as the leading part of W0 (2404.02948); a rank above the smaller "
        "dimension of a target is an error."
    )
    peft_init = "pissa"
    arm_fields = ("rank", "alpha", "targets", "dropout")
    accepts_warm_start = False
    delta_needs_base = True
    can_be_sharded = False
    init_is_part_of_base = True

    def check_trial(self, trial: TrialSpec, base: StudyBase, tokens: int, steps: int) -> None:
        from rankscope.models.parameters import target_shapes

        for name, shape in target_shapes(base.shapes, trial.targets).items():
            if (trial.rank or 1) > min(shape):
                raise UserError(
                    f"method {self.name}",
                    f"rank {trial.rank}",
                    f"at most {min(shape)}, the smaller dimension of {name!r} {shape}: "
                    "the matrix has no more singular vectors to start from",
                    "choose a smaller rank",
                )

    def init_module(
        self, adapter: Adapter, name: str, linear: nn.Linear, context: InitContext
    ) -> None:
        """Set A0 and B0, both as the start and as the part that the adapter subtracts."""
        rank = adapter.rank
        # One decomposition per matrix and group, as wide as the largest rank needs.
        largest = max(t.rank or 1 for t in context.trials if t.method == self.name)
        u, sigma, vt = context.shared((self.name, name), lambda: _leading_svd(linear, largest))
        root = (sigma[:rank] / adapter.scaling).sqrt()
        a, b = root[:, None] * vt[:rank], u[:, :rank] * root
        adapter.initial_factors[name] = (a, b)
        adapter.set_factors(name, a.clone(), b.clone())

    def initial_factors_of(
        self, adapter: Adapter, module: str, svd: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute the factors of :meth:`init_module`, whatever the signs of singular vectors."""
        rank = len(adapter.a[module])
        u, s, v = (part.cpu() for part in svd)
        root = (s[:rank] / adapter.scaling).sqrt()
        return root[:, None] * v[:, :rank].mT, u[:, :rank] * root


def _leading_svd(linear: nn.Linear, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (m, r), S (r,) and V^T (r, n) of W0's largest singular values, float32."""
    import torch

    from rankscope.models.quantize import dense_weight

    u, s, vt = torch.linalg.svd(dense_weight(linear).float(), full_matrices=False)
    return u[:, :rank].clone(), s[:rank].clone(), vt[:rank].clone()
