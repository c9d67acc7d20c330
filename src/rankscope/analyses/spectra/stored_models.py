"""Tuned models on disk, adapters and full checkpoints: open them and analyze single matrices."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankscope.analyses.spectra import SpectraConfig
from rankscope.analyses.spectra.record import MatrixSpectrum
from rankscope.analyses.spectra.spectra import adapter_spectrum, full_spectrum
from rankscope.errors import UserError
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import (
    base_weight_copies,
    check_complete,
    check_same_base,
    load_adapter,
    recorded_base,
)
from rankscope.models.adapters.settings import CONFIG, READABLE_INITS
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.methods import get_lora_method, get_method
from rankscope.models.methods.full import FullMethod
from rankscope.models.model_folder import check_tuned_folder
from rankscope.models.svd_cache import SvdCache, svd

GENERIC_NAMES = frozenset({"adapter", "model", "final", "checkpoint"})
"""Folder names that identify no model: the parent folder's name is added to them."""


@dataclass(slots=True)
class StoredTunedModel:
    name: str  # Unique within an inspection
    folder: Path
    kind: str
    adapter: Adapter | None = None  # Of a PEFT adapter; its factors are small and stay in memory
    model: CheckpointReader | None = None  # Of a full checkpoint; weights are read one at a time

    @classmethod
    def open(cls, folder: Path, name: str) -> "StoredTunedModel":
        check_tuned_folder(folder)
        if not (folder / CONFIG).is_file() and (folder / "config.json").is_file():
            return cls(name, folder, FullMethod.name, model=CheckpointReader.open(folder))
        adapter = load_adapter(folder, name, inits=READABLE_INITS, has_copies=True)
        return cls(name, folder, adapter.method, adapter=adapter)

    @property
    def has_one_rank(self) -> bool:
        return self.adapter is not None and len({len(a) for a in self.adapter.a.values()}) == 1

    def is_of_other_base(self, base: CheckpointReader, *, any_base: bool) -> bool:
        """Whether an adapter's folder records another base than ``base``.

        Raises UserError if it does, unless ``any_base``.
        """
        if self.adapter is None:
            return False
        recorded = recorded_base(self.folder)
        try:
            if recorded is not None:
                check_same_base(self.folder, recorded, weights_sha256(base.folder))
            for name, copy in base_weight_copies(self.folder).items():
                if not torch.equal(copy, base.weight(name).to(copy.dtype)):
                    raise UserError(
                        f"adapter {self.folder}: found a copy of {name} of another base, or one "
                        "that was trained, expected this base's; give the base that it was made for"
                    )
        except UserError as error:
            if any_base:
                return True
            raise UserError(f"{error}, or --force to compare it with this one") from error
        return False

    def subtract_initial_factors(self, name: str, weight: Tensor | None) -> None:
        """Give an adapter that was initialized as a part of W0 (PiSSA) the part to subtract."""
        adapter = self.adapter
        if adapter is None or not get_method(self.kind).init_is_part_of_base:
            return
        assert weight is not None
        if name not in adapter.initial_factors:
            method = get_lora_method(self.kind)
            adapter.initial_factors[name] = method.initial_factors_of(adapter, name, svd(weight))

    def spectrum(
        self, name: str, weight: Tensor, settings: SpectraConfig, svds: SvdCache
    ) -> MatrixSpectrum:
        if self.model is not None:
            tuned = self.model.weight(name, weight.device)
            return full_spectrum(name, weight, tuned, settings, svds)
        assert self.adapter is not None
        self.subtract_initial_factors(name, weight)
        return adapter_spectrum(name, weight, self.adapter, settings, svds)

    def update(self, name: str, weight: Tensor | None) -> LowRankUpdate:
        """An adapter's update of one module; DoRA and PiSSA need the base's ``weight``."""
        assert self.adapter is not None
        self.subtract_initial_factors(name, weight)
        return LowRankUpdate.from_adapter(self.adapter, name, weight)


def matrices_to_compare(
    base: CheckpointReader, models: Iterable[StoredTunedModel]
) -> dict[str, list[StoredTunedModel]]:
    """Matrices in the base's order, each with the tuned models to analyze on it.

    Adapters are analyzed on the matrices they change, full checkpoints on those that any adapter
    changes, or without an adapter on all linear layers but the output head.
    """
    changed: dict[str, list[StoredTunedModel]] = {}
    full = []
    for model in models:
        if model.adapter is None:
            full.append(model)
            continue
        for name in model.adapter.a:
            base.layer(name)  # raises UserError for a layer that the base does not have
            changed.setdefault(name, []).append(model)
        check_complete(model.folder, model.adapter.a, base.layers, READABLE_INITS)
    names = list(changed) or list(base.layers)
    order = {name: place for place, name in enumerate(base.layers)}
    names.sort(key=lambda name: order.get(name, len(order)))
    return {name: [*changed.get(name, []), *full] for name in names}


def short_names(folders: list[Path]) -> list[str]:
    short = []
    for folder in map(Path.resolve, folders):
        is_generic = folder.name in GENERIC_NAMES
        short.append(f"{folder.parent.name}/{folder.name}" if is_generic else folder.name)
    return [
        name if short.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(short, start=1)
    ]
