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
    from rankscope.train.trial_state import TrialState


class DpoSettings(ConfigSection):
    """Settings of ``dpo``."""

    beta: float = Field(0.1, gt=0)
    """Weight of the log-probability ratios: the larger, the closer the model stays to the base."""


class Dpo(Objective):
    """-log sigmoid(beta [(lp_c - ref_c) - (lp_r - ref_r)]), the mean over the pairs of a step.

    lp and ref are log-probabilities summed over an answer's tokens; c is chosen, r rejected.
    """

    name = "dpo"
    settings_type = DpoSettings
    by_row = needs_pairs = True
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
