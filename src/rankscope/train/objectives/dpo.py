"""Direct preference optimization (Rafailov et al., 2305.18290), with the base as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from rankscope.config.section import ConfigSection
from rankscope.train.objectives.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from rankscope.data.encode import EncodedRow, EncodedRows
    from rankscope.models.base import Base
    from rankscope.train.trial_state import TrialState


class DpoSettings(ConfigSection):
    """Settings of ``dpo``."""

    beta: float = Field(0.1, gt=0)
    """Weight of the log-probability ratios: the larger, the closer the model stays to the base."""


class Dpo(Objective):
    """-log sigmoid(beta [(lp_c - ref_c) - (lp_r - ref_r)]), the mean over the pairs of a step; lp
    and ref are summed over the tokens of an answer."""

    name = "dpo"
    settings_type = DpoSettings
    by_row = needs_pairs = needs_reference = True
    rows_each = 2

    def num_tokens(self, rows: EncodedRows) -> int:
        return sum(len(part.input_ids) for row in rows.rows for part in row.parts)

    def step_rows(self, state: TrialState, step: int) -> list[EncodedRow]:
        return [part for row in super().step_rows(state, step) for part in row.parts]

    def loss(
        self, losses: Tensor, rows: Sequence[EncodedRow], of_step: Sequence[EncodedRow]
    ) -> Tensor:
        import torch

        from rankscope.device import on_device

        reference = on_device(torch.tensor([row.value for row in rows[::2]]), losses.device)
        margins = losses[1::2] - losses[::2] - reference
        log_odds: Tensor = torch.nn.functional.logsigmoid(self.settings.beta * margins)
        return -log_odds.sum() / (len(of_step) // 2)


def reference_margins(base: Base, rows: Sequence[EncodedRow], batch_tokens: int) -> list[float]:
    """Log p of each pair's chosen answer less that of its rejected one under the bare base, nats,
    in the passes of training."""
    import torch

    from rankscope.models.output_layer import output_layer_apart
    from rankscope.train.loss import mean_losses
    from rankscope.train.step import forward_passes, label_states

    pairs = [part for row in rows for part in row.parts]
    losses = []
    with torch.no_grad():
        for ((_, part),) in forward_passes([pairs], batch_tokens):
            with output_layer_apart(base.model) as head:
                states, labels = label_states(base, [(part, None, True)])
            counts = [sum(row.is_label) for row in part]
            losses.append(mean_losses(states, labels, counts, [1.0] * len(counts), head))
    chosen, rejected = torch.cat(losses).unflatten(0, (-1, 2)).unbind(1)
    margins: list[float] = (rejected - chosen).tolist()
    return margins
