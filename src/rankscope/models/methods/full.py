"""Full fine-tuning: every weight of the base trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope.models.methods import FULL
from rankscope.models.methods.method import Method

if TYPE_CHECKING:
    from torch import nn

    from rankscope.models.base import Base
    from rankscope.models.init_context import InitContext
    from rankscope.models.study_base import StudyBase
    from rankscope.records import ModelRecord, TrialSpec


class FullMethod(Method):
    name = FULL
    label = "full fine-tuning"
    summary = "Every weight trains; no `rank`, `alpha`, `targets` or `dropout`."
    trains_base = True
    can_be_sharded = True
    arm_note = "trains every weight"

    def trainable_parameters(self, trial: TrialSpec, base: StudyBase) -> int:
        return base.shapes.num_parameters

    def prepare(
        self, base: Base, trial: TrialSpec, context: InitContext, num_steps: int
    ) -> tuple[Base, nn.Module]:
        copied = base.trainable_copy()
        return copied, copied.model

    def relative_update(self, trained: Any, base: Base) -> float:
        from rankscope.models.sharding import cut_like, whole

        updates, weights = [], []
        # In the same order; names differ if the base has layers that carry adapters.
        for parameter, frozen in zip(trained.parameters(), base.model.parameters(), strict=True):
            before = cut_like(frozen.detach(), parameter).float()
            updates.append(float(whole((parameter.detach() - before).norm())))
            weights.append(float(whole(before.norm())))
        return math.hypot(*updates) / math.hypot(*weights)

    def save(self, trained: Any, record: ModelRecord, folder: Path) -> None:
        from rankscope.models.load import check_stored_weights, gathered_model

        is_sharded = trained.shards.size > 1
        model = gathered_model(trained) if is_sharded else trained.model
        model.save_pretrained(folder)
        trained.tokenizer.save_pretrained(folder)
        if is_sharded:
            check_stored_weights(folder)

    def load(self, base: Base, trial: TrialSpec, folder: Path) -> Base:
        from rankscope.models.load import load_trained_model

        return load_trained_model(base, folder)
