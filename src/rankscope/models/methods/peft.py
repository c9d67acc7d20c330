"""Any other method of the PEFT library, from its own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope.filesystem import user_path
from rankscope.hashing import canonical_json
from rankscope.models.methods.method import Method

if TYPE_CHECKING:
    from rankscope.config.study import GivenConfig
    from rankscope.models.base import Base
    from rankscope.models.init_context import InitContext
    from rankscope.models.peft_backend.tuner import PeftTuner
    from rankscope.models.study_base import StudyBase
    from rankscope.records import ModelRecord, TrialSpec


class PeftMethod(Method):
    name = "peft"
    label = "PEFT"
    summary = (
        "`{peft: {peft_type: ADALORA, ...}}`: any other PEFT method, with PEFT's own settings."
    )
    arm_fields = ("targets",)
    takes_settings = True
    settings_example = "{peft: {peft_type: ADALORA, ...}}"
    arm_note = "takes its settings from PEFT's configuration, under PEFT's names"

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        from rankscope.config.section import Unfit

        if not isinstance(settings.get("peft_type"), str):
            found = "method peft without 'peft_type'"
            raise Unfit(found=found, expected="one, such as ADALORA or VERA", do="name it")

    def hidden_state(self, settings: Mapping[str, Any]) -> str:
        kind = str(settings["peft_type"]).upper()
        return f"{kind}, whose ranks keep falling" if kind == "ADALORA" else ""

    def check_trial(self, trial: TrialSpec, base: StudyBase, tokens: int, steps: int) -> None:
        from rankscope.models.peft_backend.settings import count_in_folder

        assert trial.peft is not None
        count_in_folder(base.folder, trial.peft, trial.targets, steps)

    def trainable_parameters(self, trial: TrialSpec, base: StudyBase) -> int:
        """Count parameters on PEFT's own model; 0 if the initialization needs the base's
        weights."""
        from rankscope.models.peft_backend.settings import count_in_folder

        assert trial.peft is not None
        return count_in_folder(base.folder, trial.peft, trial.targets)

    def prepare(
        self, base: Base, trial: TrialSpec, context: InitContext, num_steps: int
    ) -> tuple[Base, PeftTuner]:
        from rankscope.models.peft_backend.tuner import new_tuner

        tuner = new_tuner(base, trial, num_steps)
        return tuner.tuned, tuner

    def relative_update(self, trained: Any, base: Base) -> float:
        update: float = trained.relative_update()
        return update

    def read_given(self, given: GivenConfig, name: str, base: StudyBase) -> TrialSpec:
        from rankscope.models.given import given_trial, peft_type
        from rankscope.models.peft_backend.tuner import (
            check_peft_fits,  # PEFT takes a second to import
        )

        folder = user_path(given.folder)
        check_peft_fits(base.config, folder)
        peft = canonical_json({"peft_type": peft_type(folder)})
        settings = {"method": self.name, "peft": peft, "targets": ()}
        return given_trial(given, name, base.folder, base.sha256, settings)

    def save(self, trained: Any, record: ModelRecord, folder: Path) -> None:
        trained.save(record, folder)

    def load(self, base: Base, trial: TrialSpec, folder: Path) -> Base:
        from rankscope.models.peft_backend.tuner import load_tuner

        other = trial.given.other_base if trial.given else None
        record = base.record if other is None else base.record.model_copy(update={"sha256": other})
        return load_tuner(base, folder, record)
