"""``shrink``: a smaller or weaker version of an adapter, as an ordinary PEFT adapter.

It also extracts the leading part of a fully fine-tuned model's update.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rankscope.device import choose_device
from rankscope.errors import UserError, reading
from rankscope.extensions.spectra.record import layer_index, module_kind
from rankscope.extensions.spectra.stored_models import StoredTunedModel, check_full
from rankscope.filesystem import check_taken, folder_in_one_step
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import check_fits, rewrite, save_adapter
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.given import recorded_other_base
from rankscope.models.lora import Adapter, adapter_of
from rankscope.models.low_rank_update import LowRankUpdate, StoredFactors
from rankscope.models.methods import get_method
from rankscope.models.model_folder import shapes_folder
from rankscope.models.svd_cache import decomposition_device
from rankscope.records import ModelRecord, Record
from rankscope.report.charts.heat_map import heat_map_svg, pivot
from rankscope.report.model_card import changed_card

GIVE_BASE = "give --base"


class MatrixChange(Record):
    name: str
    rank_before: int
    rank_after: int
    frobenius_before: float  # |dW|_F
    frobenius_after: float
    error: float  # |dW - dW'|_F


class AdapterChange(Record):
    source: str
    out: str
    action: str
    matrices: tuple[MatrixChange, ...]
    left_out: dict[str, float] = {}
    """Changed parameters that no adapter on linear layers holds, with their shares of the whole
    update's energy |dW|_F^2; only for a full checkpoint."""
    parameters: int = 0  # Number in the adapter
    uniform: tuple[int, int, float] | None = None
    """The largest rank for all matrices within the same budget, its parameters, and the share of
    the energy that it keeps; only with ranks by module."""

    @property
    def frobenius(self) -> float:
        """|dW|_F of the original adapter, all matrices together."""
        return math.sqrt(sum(m.frobenius_before**2 for m in self.matrices))

    @property
    def error(self) -> float:
        """|dW - dW'|_F, all matrices together."""
        return math.sqrt(sum(m.error**2 for m in self.matrices))

    @property
    def kept(self) -> float:
        """Share of these matrices' |dW|_F^2 that is kept."""
        return 1 - (self.error / self.frobenius) ** 2 if self.frobenius else 1.0


@dataclass(slots=True)
class SourceAdapter:
    folder: Path
    tuned: StoredTunedModel
    adapter: Adapter  # A full checkpoint has one of no modules
    base: CheckpointReader | None
    names: list[str]  # Matrices
    left_out: dict[str, float] = field(default_factory=dict)  # As in AdapterChange

    @classmethod
    def open(
        cls,
        folder: Path,
        base: str | Path | None,
        *,
        any_base: bool = False,
        accepts_full: bool = False,
    ) -> "SourceAdapter":
        """Read an adapter, or the names in a full checkpoint and the size of its update.

        ``any_base`` accepts one of another base.
        """
        tuned = StoredTunedModel.open(folder, folder.name)
        if tuned.adapter is None:
            if not accepts_full:
                do = "use --rank or --parameters to make it one"
                raise UserError(folder, "a full checkpoint", "the folder of a PEFT adapter", do)
            if base is None:
                place = f"full checkpoint {folder}"
                raise UserError(place, expected="the base that it was trained from", do=GIVE_BASE)
            assert tuned.model is not None
            of_full = CheckpointReader(shapes_folder(str(base)))
            left_out = check_full(tuned.model, of_full, any_base=any_base)
            adapter = Adapter(folder.name, 1, 1.0, 1.0, of_full.adapter_targets)
            return cls(folder, tuned, adapter, of_full, list(of_full.layers), left_out)
        if base is None and get_method(tuned.kind).delta_needs_base:
            found = f"an update of {tuned.kind}, which depends on the base"
            raise UserError(f"adapter {folder}", found, do=GIVE_BASE)
        if base is None and tuned.adapter.copies:
            found = "a copy of the output head, which has to equal the base's"
            raise UserError(f"adapter {folder}", found, do=GIVE_BASE)
        reader = None if base is None else CheckpointReader(shapes_folder(str(base)))
        if reader is not None:
            sha256 = weights_sha256(reader.folder) if tuned.adapter.base_sha256 else ""
            recorded_other_base(folder, tuned.adapter, reader.folder, sha256, force=any_base)
            check_fits(folder, tuned.adapter, reader.shapes)
        return cls(folder, tuned, tuned.adapter, reader, list(tuned.adapter.a))

    def weight(self, name: str) -> Tensor:
        """Return W0 of a module."""
        assert self.base is not None
        if self.tuned.model is not None:  # its decompositions are worth a GPU
            return self.base.weight(name, decomposition_device(choose_device("auto")))
        return self.base.weight(name)

    def update(self, name: str) -> LowRankUpdate:
        return self.tuned.update(name, None if self.base is None else self.weight(name))


Edit = Callable[[str, LowRankUpdate], Sequence[LowRankUpdate]]
"""Function from (module, its update) to the new update for each folder to write."""


def truncate(source: SourceAdapter, out: Path, ranks: Sequence[int]) -> list[AdapterChange]:
    """Write the nearest adapter of each rank: in ``out``, or several ranks in ``out/r8`` and so
    on."""
    if min(ranks) < 1:
        raise UserError(f"--rank {min(ranks)}", expected="at least 1")
    if source.tuned.model is not None and source.base is not None:
        largest = max(min(source.base.shape(name)) for name in source.names)
        if max(ranks) > largest:
            expected = f"at most {largest}, the largest rank of a matrix"
            raise UserError(f"--rank {max(ranks)}", expected=expected)
    actions = {
        out / f"r{rank}" if len(ranks) > 1 else out: f"truncated to rank {rank}" for rank in ranks
    }
    return _write_edited(source, actions, lambda _, update: list(update.truncations(ranks)))


def allot(source: SourceAdapter, out: Path, parameters: int) -> list[AdapterChange]:
    """Write an adapter within a budget of parameters, with ranks that keep the most energy.

    The energy of a DoRA adapter is that of its low-rank part.
    """
    values, costs = {}, {}
    for name in source.names:
        update = replace(source.update(name), gain=None)
        values[name] = update.singular_values().tolist()
        costs[name] = len(update.B) + update.A.shape[1]
    ranks = allotted_ranks(values, costs, parameters)
    uniform = parameters // sum(costs.values())
    used = {name: min(uniform, len(values[name])) for name in costs}
    energy, kept = (
        sum(s**2 for name, sigma in values.items() for s in sigma[: most[name]])
        for most in (dict.fromkeys(costs), used)
    )
    action = f"truncated to ranks by module, within {parameters:,} parameters"
    (change,) = _write_edited(
        source, {out: action}, lambda name, update: [update.truncated(ranks[name])]
    )
    cells = [{"layer": layer_index(name) or 0, "module": module_kind(name), "rank": float(rank)}
             for name, rank in ranks.items()]  # fmt: skip
    picture = heat_map_svg(pivot(pd.DataFrame(cells), ("layer", "module"), "rank"), action)
    (out / "ranks.svg").write_text(picture, encoding="utf-8")
    size = sum(rank * costs[name] for name, rank in used.items())
    share = kept / energy if energy else 1.0
    return [change.model_copy(update={"uniform": (uniform, size, share)})]


def allotted_ranks(
    values: Mapping[str, Sequence[float]], costs: Mapping[str, int], parameters: int
) -> dict[str, int]:
    """Allot ranks: 1 for every matrix, then one by one, as long as the parameters fit.

    Each step takes the singular value with the most energy per parameter that it costs.

    Args:
        values: singular values of each matrix's update, largest first.
        costs: parameters of a rank, in + out.
    """
    left = parameters - sum(costs.values())
    if left < 0:
        found, least = f"{parameters:,} parameters", f"at least {parameters - left:,}"
        expected = f"{least}, rank 1 of each of {len(costs)} matrices"
        raise UserError("--parameters", found, expected, "give more")
    gains = [(s**2 / costs[name], name) for name, sigma in values.items() for s in sigma[1:]]
    ranks = dict.fromkeys(costs, 1)
    for gain, name in sorted(gains, key=lambda pair: -pair[0]):
        if gain and costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def scale(source: SourceAdapter, out: Path, factor: float) -> list[AdapterChange]:
    """Multiply the whole update: W0 + factor dW. A factor of 1 changes no bit."""
    if not 0 <= factor < float("inf"):
        raise UserError(f"scale {factor}", expected="a number of at least 0")
    action = f"scaled by {factor:g}"
    return _write_edited(
        source, {out: action}, lambda _, u: [u if factor == 1 else u.scaled(factor)]
    )


def _write_edited(
    source: SourceAdapter, actions: Mapping[Path, str], edit: Edit
) -> list[AdapterChange]:
    """Write the adapters that ``edit`` makes, by folder.

    Unchanged modules of an adapter keep their bytes. Memory holds one matrix at a time, and the
    factors to write.
    """
    for out in actions:
        check_taken(out)
    is_full = source.tuned.model is not None
    settings = source.tuned.adapter.settings if source.tuned.adapter else None

    def stored(name: str, update: LowRankUpdate) -> StoredFactors:
        a, b, m = update.to_stored(settings.scaling_of(name) if settings else 1.0)
        return a.float().cpu(), b.float().cpu(), None if m is None else m.float().cpu()

    written: dict[Path, dict[str, StoredFactors]] = {out: {} for out in actions}
    matrices: dict[Path, list[MatrixChange]] = {out: [] for out in actions}
    sizes = dict.fromkeys(actions, 0)
    for name in source.names:
        before = source.update(name)
        for (out, action), after in zip(actions.items(), edit(name, before), strict=True):
            if after is not before or is_full:
                written[out][name] = stored(name, after)
                if not all(t is None or bool(t.isfinite().all()) for t in written[out][name]):
                    large = "numbers above float32's largest, 3.4e38"
                    found = f"{large}, or a row of a DoRA weight that becomes zero, when {action}"
                    do = "choose a smaller --scale, or one slightly different"
                    raise UserError(name, found, do=do)
            matrices[out].append(_matrix_change(name, before, after))
            sizes[out] += after.A.numel() + after.B.numel()
    changes = []
    for out, action in actions.items():
        # An adapter whose initialization is a part of W0 (PiSSA) becomes plain LoRA as a whole.
        if written[out] and get_method(source.tuned.kind).init_is_part_of_base:
            for name in set(source.names) - set(written[out]):
                written[out][name] = stored(name, source.update(name))
        is_rounded = source.base is not None and source.base.rounds_to_bfloat16
        action += ", against the base rounded to bfloat16" if is_rounded else ""
        change = AdapterChange(
            source=str(source.folder),
            out=str(out),
            action=action,
            matrices=tuple(matrices[out]),
            left_out=source.left_out,
            parameters=sizes[out],
        )
        share = change.error / change.frobenius if change.frobenius else 0.0
        note = f"From `{source.folder.name}`: {action}. |dW - dW'|_F / |dW|_F = {share:.3g}."
        if is_full:
            _write_full(source, out, written[out], changed_card(out, note))
        else:
            rewrite(source.folder, out, written[out], changed_card(source.folder, note))
        changes.append(change)
    return changes


def _write_full(
    source: SourceAdapter, out: Path, factors: Mapping[str, StoredFactors], card: str
) -> None:
    """Write the adapter of a full checkpoint, whose update has no adapter_config.json yet."""
    assert source.base is not None
    folder = source.base.folder
    known: dict[str, Any] = {"label": str(folder), "sha256": weights_sha256(folder)}
    base = ModelRecord.model_construct(**known)
    pairs = {name: (a, b) for name, (a, b, _) in factors.items()}
    with folder_in_one_step(out) as partial:
        save_adapter(adapter_of(out.name, pairs, source.adapter.targets), base, partial)
        (partial / "README.md").write_text(card, encoding="utf-8")


def _matrix_change(name: str, before: LowRankUpdate, after: LowRankUpdate) -> MatrixChange:
    old, new = before.dense(), after.dense()
    return MatrixChange(
        name=name,
        rank_before=before.rank,
        rank_after=after.rank,
        frobenius_before=float(torch.linalg.matrix_norm(old)),
        frobenius_after=float(torch.linalg.matrix_norm(new)),
        error=float(torch.linalg.matrix_norm(old - new)),
    )


def parse_ranks(text: str) -> list[int]:
    with reading(f"--rank {text!r}", "whole numbers such as 8,32"):
        return list(dict.fromkeys(int(part) for part in text.split(",")))
