"""``shrink``: write a smaller or weaker version of an adapter as an ordinary PEFT adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankscope.analyses.spectra import SpectraConfig
from rankscope.analyses.spectra.intruders import control_factor, scale_intruders
from rankscope.analyses.spectra.spectra import check_factors, check_spectra_settings
from rankscope.analyses.spectra.stored_models import StoredTunedModel
from rankscope.errors import UserError
from rankscope.filesystem import check_taken
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import (
    base_weight_copies,
    check_complete,
    recorded_base,
    rewrite,
)
from rankscope.models.adapters.settings import READABLE_INITS, read_adapter_config
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import LowRankUpdate, StoredFactors
from rankscope.models.methods import get_method
from rankscope.models.model_folder import shapes_folder
from rankscope.models.scaling import depth_factors, layer_index
from rankscope.models.study_base import recorded_other_base
from rankscope.models.svd_cache import SvdCache, svd_cache_folder
from rankscope.records import AdapterChange, MatrixChange
from rankscope.report.model_card import changed_card

MITIGATED, CONTROL = "mitigated", "control"  # Folders that :func:`mitigate` writes


@dataclass(slots=True)
class SourceAdapter:
    folder: Path
    tuned: StoredTunedModel
    adapter: Adapter
    base: CheckpointReader | None

    @classmethod
    def open(
        cls, folder: Path, base: str | Path | None, *, any_base: bool = False
    ) -> "SourceAdapter":
        """Read an adapter; ``any_base`` accepts one that records another base."""
        tuned = StoredTunedModel.open(folder, folder.name)
        if tuned.adapter is None:
            raise UserError(folder, "a full checkpoint", "the folder of a PEFT adapter")
        if base is None and get_method(tuned.kind).delta_needs_base:
            raise UserError(
                f"adapter {folder}",
                f"an update of {tuned.kind}, which depends on the base",
                do="give --base",
            )
        if base is None and base_weight_copies(folder):
            raise UserError(
                f"adapter {folder}",
                "a copy of the output head, which has to equal the base's",
                do="give --base",
            )
        reader = None if base is None else CheckpointReader(shapes_folder(str(base)))
        if reader is not None:
            sha256 = weights_sha256(reader.folder) if recorded_base(folder) else ""
            recorded_other_base(folder, reader.folder, sha256, force=any_base)
            check_complete(folder, tuned.adapter.a, reader.layers, READABLE_INITS)
        return cls(folder, tuned, tuned.adapter, reader)

    def weight(self, name: str) -> Tensor:
        """W0 of a module, after checking that the adapter fits it."""
        assert self.base is not None
        weight = self.base.weight(name)
        check_factors(name, weight, self.adapter)
        return weight

    def num_layers(self) -> int:
        """Layers of the model: the base's, or without a base those of an adapter on every layer."""
        if self.base is not None:
            return self.base.num_layers
        indices = {layer_index(name) for name in self.adapter.a} - {None}
        is_partial = (
            read_adapter_config(self.folder, READABLE_INITS).layers_to_transform is not None
        )
        if is_partial or not indices or indices != set(range(len(indices))):
            raise UserError(
                f"adapter {self.folder}",
                "layers left out, so the model's depth is unknown",
                do="give --base",
            )
        return len(indices)

    def update(self, name: str) -> LowRankUpdate:
        return self.tuned.update(name, None if self.base is None else self.weight(name))


Edit = Callable[[str, LowRankUpdate], tuple[LowRankUpdate, int | None]]
"""(module, its update) -> (the new update, how many intruders were scaled)."""


def truncate(source: SourceAdapter, out: Path, rank: int) -> AdapterChange:
    if rank < 1:
        raise UserError(f"--rank {rank}", expected="at least 1")
    action = f"truncated to rank {rank}"
    return _write_edited(source, out, action, lambda _, update: (update.truncated(rank), None))


def scale(source: SourceAdapter, out: Path, factor: float) -> AdapterChange:
    """Multiply the whole update: W0 + factor dW. A factor of 1 changes no bit."""
    return layer_scale(source, out, factor, factor)


def layer_scale(source: SourceAdapter, out: Path, first: float, last: float) -> AdapterChange:
    """Multiply each layer's update, linearly in depth from ``first`` to ``last``, as LiNeS does."""
    for factor in (first, last):
        if not 0 <= factor < float("inf"):
            raise UserError(f"scale {factor}", expected="a number of at least 0")
    num_layers = 1 if first == last else source.num_layers()
    factor_of = depth_factors(first, last, num_layers)

    def edit(name: str, update: LowRankUpdate) -> tuple[LowRankUpdate, int | None]:
        factor = factor_of(name)
        return (update if factor == 1 else update.scaled(factor)), None

    action = f"layers scaled from {first:g} to {last:g}"
    return _write_edited(source, out, f"scaled by {first:g}" if first == last else action, edit)


def mitigate(
    source: SourceAdapter, out: Path, factor: float, settings: SpectraConfig
) -> tuple[AdapterChange, AdapterChange]:
    """Scale the intruder dimensions of every matrix; write the norm-matched control beside it.

    ``out`` gets two adapters: ``mitigated``, exact, of rank r + number of intruders, and
    ``control``, the whole update of each matrix scaled to the mitigated one's norm. ``factor`` is
    lambda; 1 changes no bit, 0 removes the intruders.
    """
    if source.base is None:
        raise UserError(
            "--mitigate intruders", "no base, by which intruders are found", do="give --base"
        )
    if not 0 <= factor <= 1:
        raise UserError(f"--lambda {factor}", expected="0 (remove intruders) to 1 (change nothing)")
    base = source.base
    shapes = {name: base.shape(name) for name in source.adapter.a}
    check_spectra_settings(settings, shapes, is_command=True)
    for name in (MITIGATED, CONTROL):
        check_taken(out / name)
    svds = SvdCache(max_bytes=0, folder=svd_cache_folder())
    controls: dict[str, tuple[float, int]] = {}  # module -> scale, number of intruders

    def edit(name: str, update: LowRankUpdate) -> tuple[LowRankUpdate, int | None]:
        if factor == 1:
            controls[name] = (1.0, 0)
            return update, None
        weight = source.weight(name)
        delta, svd = update.dense(), svds.of(name, weight)
        left, right = scale_intruders(weight, delta, svd, factor, settings)
        controls[name] = (control_factor(delta, left, right), left.shape[1])
        return update.plus(left, right), left.shape[1]

    def control(name: str, update: LowRankUpdate) -> tuple[LowRankUpdate, int | None]:
        share, count = controls[name]
        return (update if share == 1 else update.scaled(share)), count

    action = f"intruder dimensions scaled by {factor:g}"
    mitigated = _write_edited(source, out / MITIGATED, action, edit)
    matched = f"the whole update scaled to the norm of '{action}'"
    return mitigated, _write_edited(source, out / CONTROL, matched, control)


def _write_edited(source: SourceAdapter, out: Path, action: str, edit: Edit) -> AdapterChange:
    """Write the adapter that ``edit`` makes; modules that it leaves alone keep their bytes."""
    check_taken(out)
    settings = read_adapter_config(source.folder, READABLE_INITS)
    changed: dict[str, StoredFactors] = {}
    matrices = []
    for name in source.adapter.a:
        before = source.update(name)
        after, intruders = edit(name, before)
        if after is not before:
            changed[name] = after.to_stored(settings.scaling_of(name))
            _check_fits_float32(name, action, changed[name])
        matrices.append(_matrix_change(name, before, after, intruders))
    # An adapter whose initialization is a part of W0 (PiSSA) becomes plain LoRA as a whole.
    if changed and get_method(source.tuned.kind).init_is_part_of_base:
        for name in set(source.adapter.a) - set(changed):
            changed[name] = source.update(name).to_stored(settings.scaling_of(name))
    change = AdapterChange(
        source=str(source.folder), out=str(out), action=action, matrices=tuple(matrices)
    )
    share = change.error / change.frobenius if change.frobenius else 0.0
    note = f"From `{source.folder.name}`: {action}. |dW - dW'|_F / |dW|_F = {share:.3g}."
    rewrite(source.folder, out, changed, changed_card(source.folder, note))
    return change


def _check_fits_float32(name: str, action: str, factors: StoredFactors) -> None:
    for tensor in factors:
        if tensor is not None and not bool(torch.isfinite(tensor.float()).all()):
            raise UserError(
                name,
                f"numbers above float32's largest, 3.4e38, when {action}",
                do="choose a smaller --scale or --layer-scale",
            )


def _matrix_change(
    name: str, before: LowRankUpdate, after: LowRankUpdate, intruders: int | None
) -> MatrixChange:
    old, new = before.dense(), after.dense()
    return MatrixChange(
        name=name,
        rank_before=before.rank,
        rank_after=after.rank,
        frobenius_before=float(torch.linalg.matrix_norm(old)),
        frobenius_after=float(torch.linalg.matrix_norm(new)),
        error=float(torch.linalg.matrix_norm(old - new)),
        intruders=intruders,
    )


def parse_layer_factors(text: str) -> tuple[float, float]:
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise UserError(
            f"--layer-scale {text!r}",
            expected="two numbers such as 0.5:1, for the first and the last layer",
        ) from error
    return first, last
