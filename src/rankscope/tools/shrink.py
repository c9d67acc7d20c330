"""``shrink``: a smaller or milder version of an adapter, as an ordinary PEFT adapter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankscope.analyze.intruder_scaling import intruder_scaling, norm_matched_factor
from rankscope.analyze.low_rank_update import Update
from rankscope.analyze.stored_models import StoredTunedModel
from rankscope.analyze.svd_cache import SvdCache, svd_cache_folder
from rankscope.errors import UserError
from rankscope.filesystem import check_taken
from rankscope.models.adapters.folder import copies
from rankscope.models.adapters.rewrite import Module, rewrite
from rankscope.models.adapters.scaling import layer_of
from rankscope.models.adapters.settings import READ_STARTS, read_config
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.load import shapes_folder
from rankscope.records import AdapterChange, MatrixChange
from rankscope.report.model_card import changed_card
from rankscope.tools.inspect import InspectSettings, check_settings

MITIGATED, CONTROL = "mitigated", "control"
"""Folders of a mitigation: the adapter with its intruders scaled, and the one scaled as a whole."""


@dataclass(slots=True)
class Source:
    """An adapter to be changed, with its base where that is needed."""

    folder: Path
    tuned: StoredTunedModel
    base: CheckpointReader | None

    @classmethod
    def open(cls, folder: Path, base: str | Path | None, *, any_base: bool = False) -> "Source":
        """Read an adapter.

        Raises:
            UserError: a full checkpoint, an adapter that cannot be read, or one whose update depends
                on the base, or that holds a part of it, where that is not given or is another one.
        """
        tuned = StoredTunedModel.open(folder, folder.name)
        if tuned.adapter is None:
            raise UserError(f"{folder}: a full checkpoint; expected the folder of a PEFT adapter")
        if base is None and tuned.kind in ("dora", "pissa"):
            raise UserError(
                f"adapter {folder}: the update of {tuned.kind} depends on the base: give --base"
            )
        if base is None and copies(folder):
            raise UserError(
                f"adapter {folder}: it holds a copy of the output head, which has to be the "
                "base's: give --base"
            )
        model = None if base is None else CheckpointReader.open(shapes_folder(str(base)))
        if model is not None and not any_base:
            tuned.check_other_base(model)
        return cls(folder, tuned, model)

    def weight(self, name: str) -> Tensor:
        """W0 of a module.

        Raises:
            UserError: the adapter's shapes are not the base's.
        """
        assert self.base is not None
        assert self.tuned.adapter is not None
        weight = self.base.weight(name)
        a, b = self.tuned.adapter.a[name], self.tuned.adapter.b[name]
        if (b.shape[0], a.shape[1]) != tuple(weight.shape):
            raise UserError(
                f"adapter {self.folder}: {name} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
                f"expected A (r, {weight.shape[1]}) and B ({weight.shape[0]}, r) for the base "
                f"{self.base.folder}: it was made for another model"
            )
        return weight

    def update(self, name: str) -> Update:
        """dW of one module, float64, scaling included."""
        adapter = self.tuned.adapter
        assert adapter is not None
        weight = self.weight(name) if self.base is not None else None
        A, B = self.tuned.factors(name, weight)
        A, B = A.double(), adapter.scaling * B.double()
        if name not in adapter.magnitude:
            return Update(A, B)
        assert weight is not None
        return Update.of_magnitude(A, B, adapter.magnitude[name], weight)

    def names(self) -> list[str]:
        """Modules, in the adapter's order."""
        assert self.tuned.adapter is not None
        return list(self.tuned.adapter.a)


Edit = Callable[[str, Update], tuple[Update, int | None]]
"""What makes of a module's update another one, and how many intruders it scaled."""


def truncate(source: Source, out: Path, rank: int) -> AdapterChange:
    """Cut every module to ``rank`` at the least possible error.

    Raises:
        UserError: a rank below 1, or a target that is not free.
    """
    if rank < 1:
        raise UserError(f"--rank {rank}: expected at least 1")
    return edited(source, out, f"cut to rank {rank}", lambda _, update: (update.cut(rank), None))


def scale(source: Source, out: Path, factor: float) -> AdapterChange:
    """Multiply the whole update, W0 + factor dW; 1 changes no bit."""
    return layer_scale(source, out, factor, factor)


def layer_scale(source: Source, out: Path, first: float, last: float) -> AdapterChange:
    """Multiply each layer's update, linearly from ``first`` to ``last`` (LiNeS, 2410.17146).

    Layers are counted up to the adapter's last; a module outside of the layers gets ``last``.

    Raises:
        UserError: a factor that is negative or no number.
    """
    for factor in (first, last):
        if not 0 <= factor < float("inf"):
            raise UserError(f"scale {factor}: expected a number of at least 0")
    numbers = {name: layer_of(name) for name in source.names()}
    top = max([n for n in numbers.values() if n is not None], default=0)

    def edit(name: str, update: Update) -> tuple[Update, int | None]:
        layer = numbers[name]
        depth = 1.0 if layer is None or not top else layer / top
        # Weighed so that 1 and 1 give 1, and not what rounding makes of it.
        factor = first if first == last else (1 - depth) * first + depth * last
        return (update if factor == 1 else update.scaled(factor)), None

    said = f"scaled by {first:g}" if first == last else f"layers scaled from {first:g} to {last:g}"
    return edited(source, out, said, edit)


def mitigate(
    source: Source, out: Path, factor: float, settings: InspectSettings
) -> tuple[AdapterChange, AdapterChange]:
    """Scale the intruder dimensions of every matrix; beside it, the update scaled as a whole.

    Args:
        out: gets two adapters: ``mitigated``, exact, of rank r + number of intruders, and
            ``control``, the whole update of each matrix scaled to the mitigated one's norm. That
            may be the larger: an intruder is of W, and takes a part of W0 with it.
        factor: lambda; 1 changes no bit, 0 removes the intruders.

    Raises:
        UserError: no base, a factor out of 0 to 1, settings that ``inspect`` refuses, or a target
            that is not free.
    """
    if source.base is None:
        raise UserError("--mitigate intruders: intruders are told by the base: give --base")
    if not 0 <= factor <= 1:
        raise UserError(f"--lambda {factor}: expected 0 (remove intruders) to 1 (change nothing)")
    check_settings(source.base, source.names(), settings)
    for name in (MITIGATED, CONTROL):
        check_taken(out / name)
    cache = SvdCache(max_bytes=0, folder=svd_cache_folder())
    shares: dict[str, tuple[float, int]] = {}

    def edit(name: str, update: Update) -> tuple[Update, int | None]:
        if factor == 1:
            shares[name] = (1.0, 0)
            return update, None
        weight, delta = source.weight(name), update.dense()
        change = intruder_scaling(weight, delta, cache.of(name, weight), factor, settings)
        shares[name] = (norm_matched_factor(delta, change), change.intruders.count)
        return update.plus(change), change.intruders.count

    def control(name: str, update: Update) -> tuple[Update, int | None]:
        share, count = shares[name]
        return (update if share == 1 else update.scaled(share)), count

    said = f"intruder dimensions scaled by {factor:g}"
    mitigated = edited(source, out / MITIGATED, said, edit)
    matched = f"the whole update scaled to the norm of '{said}'"
    return mitigated, edited(source, out / CONTROL, matched, control)


def edited(source: Source, out: Path, said: str, edit: Edit) -> AdapterChange:
    """Write the adapter that ``edit`` makes; modules it leaves alone keep their bytes.

    Raises:
        UserError: a number that float32 cannot hold, or a place that is not free.
    """
    check_taken(out)
    settings = read_config(source.folder, READ_STARTS)
    changed: dict[str, Module] = {}
    matrices = []
    for name in source.names():
        before = source.update(name)
        after, intruders = edit(name, before)
        if after is not before:
            changed[name] = module_of(after, settings.scaling_of(name))
            check_too_large(name, said, changed[name])
        matrices.append(matrix_change(name, before, after, intruders))
    if changed and source.tuned.kind == "pissa":  # the rest, too, becomes plain LoRA
        for name in set(source.names()) - set(changed):
            changed[name] = module_of(source.update(name), settings.scaling_of(name))
    found = AdapterChange(
        source=str(source.folder), out=str(out), action=said, matrices=tuple(matrices)
    )
    share = found.error / found.frobenius if found.frobenius else 0.0
    note = f"From `{source.folder.name}`: {said}. |dW - dW'|_F / |dW|_F = {share:.3g}."
    rewrite(source.folder, out, changed, changed_card(source.folder, note))
    return found


def module_of(update: Update, scaling: float) -> Module:
    """An update as PEFT stores it: B without the scaling."""
    return Module(update.A, update.B / scaling, update.magnitude)


def check_too_large(name: str, said: str, module: Module) -> None:
    """Raise UserError where a number is beyond float32, in which adapters are written."""
    for tensor in (module.A, module.B, module.magnitude):
        if tensor is not None and not bool(torch.isfinite(tensor.float()).all()):
            raise UserError(
                f"{name}: {said}, numbers are above float32's largest, 3.4e38; expected a smaller "
                "--scale or --layer-scale"
            )


def matrix_change(name: str, before: Update, after: Update, intruders: int | None) -> MatrixChange:
    """What came of one matrix."""
    old, new = before.dense(), after.dense()
    return MatrixChange(
        name=name,
        rank_before=len(before.A),
        rank_after=len(after.A),
        frobenius_before=float(torch.linalg.matrix_norm(old)),
        frobenius_after=float(torch.linalg.matrix_norm(new)),
        error=float(torch.linalg.matrix_norm(old - new)),
        intruders=intruders,
    )


def layer_factors(text: str) -> tuple[float, float]:
    """``FIRST:LAST`` of ``--layer-scale``.

    Raises:
        UserError: anything else.
    """
    parts = text.split(":")
    try:
        first, last = (float(part) for part in parts)
    except ValueError as error:
        raise UserError(
            f"--layer-scale {text!r}: expected two numbers such as 0.5:1, of first and last layer"
        ) from error
    return first, last


def one_action(named: Mapping[str, object]) -> str:
    """The one action among options, by name.

    Raises:
        UserError: none is given, or several.
    """
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UserError(f"shrink: expected exactly one of {', '.join(named)}; found {found}")
    return given[0]
