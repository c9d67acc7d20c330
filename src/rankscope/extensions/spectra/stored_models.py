"""Tuned models on disk, adapters and full checkpoints, and the analysis of single matrices."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankscope.errors import UserError
from rankscope.extensions.spectra import SpectraConfig
from rankscope.extensions.spectra.record import MatrixSpectrum, SpectraRecord
from rankscope.extensions.spectra.spectra import (
    adapter_spectrum,
    check_spectra_settings,
    full_spectrum,
    spectra_record,
)
from rankscope.models.adapters.folder import check_fits, load_adapter
from rankscope.models.adapters.settings import CONFIG
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, to_float64
from rankscope.models.methods import FULL, get_method
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.svd_cache import SvdCache, decomposition_device, svd, svd_cache_folder
from rankscope.progress import ProgressReporter
from rankscope.records import TrialSpec


@dataclass(slots=True)
class StoredTunedModel:
    name: str  # Unique within an inspection
    folder: Path
    kind: str
    adapter: Adapter | None = None  # Given for a PEFT adapter; its small factors stay in memory
    model: CheckpointReader | None = None  # Given for a full checkpoint; reads one weight at a time

    @classmethod
    def open(cls, folder: Path, name: str) -> "StoredTunedModel":
        if not (folder / CONFIG).is_file() and (folder / "config.json").is_file():
            return cls(name, folder, FULL, model=CheckpointReader(folder))
        adapter = load_adapter(folder, name, readable=True)
        return cls(name, folder, adapter.method, adapter=adapter)

    @property
    def settings(self) -> dict[str, object]:
        """Fields of a trial that its files give."""
        if self.adapter is None:
            return {"method": self.kind, "targets": ()}
        rank = self.adapter.rank
        targets = sorted({name.rpartition(".")[2] for name in self.adapter.a})
        alpha = self.adapter.scaling * get_method(self.kind).rank_scale(rank)
        return {"method": self.kind, "rank": rank, "alpha": alpha, "targets": tuple(targets)}

    def subtract_initial_factors(self, name: str, weight: Tensor | None) -> None:
        """Give an adapter that was initialized as a part of W0 (PiSSA) the part to subtract."""
        adapter = self.adapter
        if adapter is None or not get_method(self.kind).init_is_part_of_base:
            return
        assert weight is not None
        if name not in adapter.initial_factors:
            method = LoraMethod.of(self.kind)
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
        """Return the update of one module; plain LoRA needs no ``weight`` of the base."""
        if self.model is not None:
            assert weight is not None
            tuned = to_float64(self.model.weight(name, weight.device))
            return LowRankUpdate.from_dense(tuned - to_float64(weight))
        assert self.adapter is not None
        self.subtract_initial_factors(name, weight)
        return LowRankUpdate.from_adapter(self.adapter, name, weight)


def matrices_to_compare(
    base: CheckpointReader, models: Iterable[StoredTunedModel]
) -> dict[str, list[StoredTunedModel]]:
    """List matrices in the base's order, each with the tuned models to analyze on it.

    Adapters are analyzed on the matrices they change. Full checkpoints are analyzed on those that
    any adapter changes; without an adapter, on all linear layers but the output head.
    """
    changed: dict[str, list[StoredTunedModel]] = {}
    full = []
    for model in models:
        if model.adapter is None:
            full.append(model)
            continue
        check_fits(model.folder, model.adapter, base.shapes)
        for name in model.adapter.a:
            changed.setdefault(name, []).append(model)
    names = list(changed) or list(base.layers)
    order = {name: place for place, name in enumerate(base.layers)}
    names.sort(key=lambda name: order.get(name, len(order)))
    return {name: [*changed.get(name, []), *full] for name in names}


def stored_spectra(
    base: CheckpointReader,
    models: Sequence[StoredTunedModel],
    settings: SpectraConfig,
    device: torch.device,
    reporter: ProgressReporter,
) -> dict[str, SpectraRecord]:
    """Measure every tuned model, matrix by matrix for all models together.

    Memory thus holds one matrix with its decomposition. Returns the spectra by model name.
    """
    compared = matrices_to_compare(base, models)
    shapes = {name: base.shape(name) for name in compared}
    check_spectra_settings(settings, shapes)
    svds = SvdCache(max_bytes=2**62, folder=svd_cache_folder())
    matrices: dict[str, list[MatrixSpectrum]] = {model.name: [] for model in models}
    seconds = dict.fromkeys(matrices, 0.0)
    reporter.stage("spectra", len(compared))
    for done, (name, models_here) in enumerate(compared.items()):
        reporter.advance(done, name)
        weight = base.weight(name, decomposition_device(device))
        svds.clear()  # memory holds one decomposition at a time
        svds.of(name, weight)
        for model in models_here:
            started = time.perf_counter()
            matrices[model.name].append(model.spectrum(name, weight, settings, svds))
            seconds[model.name] += time.perf_counter() - started
    reporter.finish()
    return {
        name: spectra_record(name, settings, spectra, seconds[name])
        for name, spectra in matrices.items()
    }


def given_spectra(
    trial: TrialSpec,
    base: CheckpointReader,
    matrix_names: Iterable[str],
    settings: SpectraConfig,
    svds: SvdCache,
    device: torch.device,
) -> SpectraRecord:
    """Measure a given model of a study from stored weights.

    The matrices are its adapter's, or ``matrix_names`` of a checkpoint.
    """
    assert trial.given is not None
    started, place = time.perf_counter(), decomposition_device(device)
    model = StoredTunedModel.open(Path(trial.given.folder), trial.trial_id)
    names = matrix_names if model.adapter is None else model.adapter.a
    matrices = [model.spectrum(n, base.weight(n, place), settings, svds) for n in names]
    return spectra_record(trial.trial_id, settings, matrices, time.perf_counter() - started)


def check_full(
    tuned: CheckpointReader, base: CheckpointReader, *, any_base: bool = False
) -> dict[str, float]:
    """Check that a full checkpoint is a training of ``base``, tensor by tensor.

    Returns the changed parameters that no adapter on linear layers holds, with their shares of the
    energy |dW|_F^2. ``any_base`` accepts an update that is larger than the base. A training may
    have begun at the base rounded to bfloat16. If the checkpoint is closer to that, ``base`` then
    rounds the weights that it reads.
    """
    place, models = f"full checkpoint {tuned.folder}", (base.model, tuned.model)
    of_base = f"a training of {base.folder}"
    if (tuned.architecture, tuned.layers) != (base.architecture, base.layers):
        found = f"{len(tuned.layers)} linear layers of {tuned.architecture}"
        expected = f"the {len(base.layers)} of {base.architecture} in {base.folder}"
        raise UserError(place, found, expected, "give its own base")
    names = {name: None for model in models for name, _ in model.named_parameters()}
    if absent := [name for name in names if tuned.stored_name(name) is None]:
        found = f"no {absent[0]!r}, of {len(absent)} missing tensors"
        raise UserError(place, found, of_base, "copy or save the model again")
    exact, rounded, size = dict[str, float](), dict[str, float](), 0.0
    held = {f"{name}.weight" for name in base.layers}
    for name in names:
        before, after = base.parameter(name), tuned.parameter(name)
        if before.shape != after.shape:
            found = f"{name!r} of shape {tuple(after.shape)}"
            do = "give its own base; an adapter of linear layers holds no new tokens"
            raise UserError(place, found, f"the base's {tuple(before.shape)}", do)
        for energies, start in ((exact, before), (rounded, before.bfloat16())):
            change = after.float() - start
            energies[name] = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
        if name in held:
            size += float(torch.linalg.vector_norm(before, dtype=torch.float64)) ** 2
    base.rounds_to_bfloat16 = sum(rounded.values()) < sum(exact.values())
    energies = rounded if base.rounds_to_bfloat16 else exact
    change_of_held = sum(energies.get(name, 0.0) for name in held)
    if not change_of_held:
        raise UserError(place, "no change in any linear layer", of_base, "use the base itself")
    if change_of_held >= size and not any_base:
        found = f"an update of {(change_of_held / size) ** 0.5:.3g} times the norm of the base"
        raise UserError(place, found, of_base, "give its own base, or --force")
    total = sum(energies.values())
    return {name: e / total for name, e in energies.items() if e and name not in held}
