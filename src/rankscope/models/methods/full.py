"""Full fine-tuning: every weight of the base trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope.errors import UserError
from rankscope.filesystem import read_json_object, user_path
from rankscope.models.methods import FULL
from rankscope.models.methods.method import Method

if TYPE_CHECKING:
    from torch import nn

    from rankscope.config.study import GivenConfig
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

    def read_given(self, given: GivenConfig, name: str, base: StudyBase) -> TrialSpec:
        from rankscope.models.given import given_trial

        _check_checkpoint(user_path(given.folder), base.folder)
        settings = {"method": self.name, "targets": ()}
        return given_trial(given, name, base.folder, base.sha256, settings)

    def save(self, trained: Any, record: ModelRecord, folder: Path) -> None:
        from rankscope.models.load import check_stored_weights

        is_sharded = trained.shards.size > 1
        model = trained.shards.gathered(trained) if is_sharded else trained.model
        model.save_pretrained(folder)
        trained.tokenizer.save_pretrained(folder)
        if is_sharded:
            check_stored_weights(folder)

    def load(self, base: Base, trial: TrialSpec, folder: Path) -> Base:
        from rankscope.models.load import load_trained_model

        return load_trained_model(base, folder)


def _check_checkpoint(folder: Path, base: Path) -> None:
    """Raise UserError unless a folder holds a model of the base's architecture and tokenizer."""
    from rankscope.models.checkpoint_reader import CheckpointReader
    from rankscope.models.load import check_stored_weights

    place, readers = f"model folder {folder}", map(CheckpointReader, (folder, base))
    found, wanted = ((r.architecture, r.model.num_parameters(), r.shapes) for r in readers)
    if found != wanted:
        sizes = [f"{name} of {count:,} parameters" for name, count, _ in (found, wanted)]
        expected = f"the base's architecture, {sizes[1]}"
        raise UserError(place, sizes[0], expected, "give a checkpoint of this base")
    tokenizers = [path / "tokenizer.json" for path in (folder, base)]
    if all(path.is_file() for path in tokenizers):
        own, its = (read_json_object(path).get("model") for path in tokenizers)
        if own != its:
            expected = "the same vocabulary, as items are encoded once for all models"
            do = "give a checkpoint with the base's tokenizer"
            raise UserError(place, "another tokenizer than the base's", expected, do)
    check_stored_weights(folder)
