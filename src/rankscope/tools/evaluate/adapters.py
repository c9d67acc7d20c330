"""Adapter folders on the command line: checked before anything is loaded, then put on the base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankscope.errors import UserError
from rankscope.filesystem import user_path
from rankscope.models.adapters.folder import (
    adapter_sha256,
    check_same_base,
    load_adapter,
    recorded_base,
)
from rankscope.models.adapters.settings import read_adapter_config
from rankscope.models.adapters.warm_start import load_adapter_for
from rankscope.models.base import Base
from rankscope.models.given import peft_type
from rankscope.models.model_folder import check_tuned_folder
from rankscope.models.parameters import Architecture
from rankscope.models.peft_backend.tuner import load_tuner
from rankscope.records import BASE


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter on disk that fits the model."""

    label: str
    folder: Path
    sha256: str
    is_lora: bool
    """Scored together with the base and other LoRA adapters; other PEFT methods run one by one."""
    recorded_base: str | None
    is_forced: bool  # It records another base, and is scored all the same

    @property
    def notes(self) -> list[str]:
        """What a reader of its scores must know."""
        if not self.is_forced:
            return []
        return [
            f"adapter {self.label}: records another base ({(self.recorded_base or '')[:12]}...) "
            "and is scored on this model because of --force"
        ]

    def attach(self, base: Base) -> None:
        """Attach a LoRA adapter under its label, or inject another PEFT method into the base.

        Raises UserError if it does not fit the model, IntegrityError if it is damaged.
        """
        if self.is_lora:
            base.multi_lora.attach(load_adapter(self.folder, self.label).to(base.device))
            return
        record = base.record
        if self.is_forced and self.recorded_base is not None:
            record = record.model_copy(update={"sha256": self.recorded_base})
        load_tuner(base, self.folder, record)


def read_adapters(
    paths: Sequence[str], shapes: Architecture, base_sha256: str, *, force: bool
) -> list[AdapterFolder]:
    """Check every adapter against the model, before any weights are loaded. Raises UserError: an
    adapter is missing, damaged, of other shapes or, without ``force``, made for another base."""
    adapters = []
    for text, label in zip(paths, adapter_labels(paths), strict=True):
        folder = user_path(text)
        check_tuned_folder(folder)
        is_lora = peft_type(folder) == "LORA"
        if is_lora:
            read_adapter_config(folder)
            load_adapter_for(shapes, folder)
        recorded = recorded_base(folder)
        if not force:
            try:
                check_same_base(folder, recorded, base_sha256)
            except UserError as error:
                raise UserError(
                    f"{error}, or --force to score it on this one and record that in the result"
                ) from error
        is_forced = recorded is not None and recorded != base_sha256
        sha256 = adapter_sha256(folder)
        adapters.append(AdapterFolder(label, folder, sha256, is_lora, recorded, is_forced))
    return adapters


def adapter_labels(paths: Sequence[str]) -> list[str]:
    """The folders' own names, with as many parent folders as make them unique."""
    folders = [user_path(path).resolve() for path in paths]
    repeated = next((folder for folder in folders if folders.count(folder) > 1), None)
    if repeated is not None:
        raise UserError(f"adapter {repeated}: is given twice; give it once")
    depth = 1
    while True:
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels) and BASE not in labels:
            return labels
        depth += 1
