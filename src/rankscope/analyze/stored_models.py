"""Adapters and checkpoints as they lie on disk: opened, told apart, analyzed matrix by matrix."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankscope.analyze.spectra import SpectraSettings, adapter_matrix, delta_of, full_matrix
from rankscope.analyze.svd_cache import SvdCache, svd
from rankscope.errors import UserError
from rankscope.models.adapters.folder import check_other_base, copies, load_adapter, recorded_base
from rankscope.models.adapters.settings import CONFIG, READ_STARTS, read_adapter_config
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.lora import Adapter
from rankscope.models.methods import get_method
from rankscope.models.methods.full import FullMethod
from rankscope.provenance import weights_sha256
from rankscope.records import MatrixSpectrum

GENERIC = frozenset({"adapter", "model", "final", "checkpoint"})
"""Folder names that say nothing: the folder above is named with them."""


@dataclass(slots=True)
class StoredTunedModel:
    """A tuned model on disk: a low-rank adapter, or a checkpoint of its own.

    Attributes:
        name: what it is called within an inspection.
        adapter: of a PEFT adapter; its factors are small and kept.
        model: of a full checkpoint, whose weights are read when asked for.
    """

    name: str
    folder: Path
    kind: str
    adapter: Adapter | None = None
    model: CheckpointReader | None = None

    @classmethod
    def open(cls, folder: Path, name: str) -> "StoredTunedModel":
        """Read an adapter's factors, or look at what a checkpoint holds.

        Raises:
            UserError: neither of both, a pickle, or an adapter of a type or start that cannot be
                read.
            IntegrityError: tensors or shards are missing, misshapen or not finite.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected a PEFT adapter or a model")
        if (folder / CONFIG).is_file() or not (folder / "config.json").is_file():
            settings = read_adapter_config(folder, READ_STARTS)
            if settings.use_dora and settings.init_lora_weights == "pissa":
                raise UserError(
                    f"adapter {folder}: use_dora with init_lora_weights 'pissa' is not read: its "
                    "norms are of a base without PiSSA's part; expected one of both"
                )
            # PiSSA's copy of an output head is what its start left of the base's.
            is_pissa = settings.init_lora_weights == "pissa"
            adapter = load_adapter(folder, name, starts=READ_STARTS, has_copies=not is_pissa)
            return cls(name, folder, adapter.method, adapter=adapter)
        return cls(name, folder, FullMethod.name, model=CheckpointReader.open(folder))

    @property
    def has_one_rank(self) -> bool:
        """An adapter whose modules all have the same rank."""
        return self.adapter is not None and len({len(a) for a in self.adapter.a.values()}) == 1

    def check_other_base(self, base: CheckpointReader) -> None:
        """Raise UserError where an adapter says, or its copy of the output head shows, that it was
        made for other weights."""
        if self.adapter is None:
            return
        recorded = recorded_base(self.folder)
        try:
            if recorded is not None:
                check_other_base(self.folder, recorded, weights_sha256(base.folder))
            for name, copy in copies(self.folder).items():
                if not torch.equal(copy, base.weight(name).to(copy.dtype)):
                    raise UserError(
                        f"adapter {self.folder}: its copy of {name} is not the base's: of another "
                        "base, or trained itself"
                    )
        except UserError as error:
            raise UserError(
                f"{error}; give the base that it was trained on, or --force to compare it with "
                "this one"
            ) from error

    def matrix(
        self, name: str, weight: Tensor, settings: SpectraSettings, cache: SvdCache
    ) -> MatrixSpectrum:
        """Spectra of one matrix against the base's ``weight``, (out, in)."""
        if self.model is not None:
            tuned = self.model.weight(name, weight.device)
            return full_matrix(name, weight, delta_of(name, weight, tuned), settings, cache)
        assert self.adapter is not None
        with self.started(name, weight):
            return adapter_matrix(name, weight, self.adapter, settings, cache)

    def factors(self, name: str, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """(A, B) of an adapter's W0 + s B A, PiSSA's start subtracted."""
        assert self.adapter is not None
        with self.started(name, weight):
            return self.adapter.factors(name)

    @contextmanager
    def started(self, name: str, weight: Tensor | None) -> Iterator[None]:
        """With PiSSA's start of one module in the adapter, which is as large as its factors."""
        if not get_method(self.kind).init_is_part_of_base:
            yield
            return
        assert self.adapter is not None
        assert weight is not None
        self.adapter.initial_factors[name] = principal_part(weight, self.adapter, name)
        try:
            yield
        finally:
            del self.adapter.initial_factors[name]


def principal_part(weight: Tensor, adapter: Adapter, name: str) -> tuple[Tensor, Tensor]:
    """(A0, B0) that PEFT's PiSSA took out of the base: s B0 A0 = U_r S_r V_r^T of W0 (2404.02948).

    Signs of vectors do not matter to the product.
    """
    rank = len(adapter.a[name])
    u, s, v = (part.cpu() for part in svd(weight))
    root = (s[:rank] / adapter.scaling).sqrt()
    return root[:, None] * v[:, :rank].mT, u[:, :rank] * root


def compared(
    base: CheckpointReader, tuned: Iterable[StoredTunedModel]
) -> dict[str, list[StoredTunedModel]]:
    """Matrices in the base's order, each with the tuned models that are compared on it.

    Those that an adapter changes, and full checkpoints on the matrices that any adapter changes;
    without an adapter, on all linear layers but the output head.

    Raises:
        UserError: an adapter changes a layer that the base does not have.
    """
    models = list(tuned)
    changed: dict[str, list[StoredTunedModel]] = {}
    for one in models:
        for name in one.adapter.a if one.adapter is not None else ():
            base.layer(name)
            changed.setdefault(name, []).append(one)
    full = [one for one in models if one.model is not None]
    names = list(changed) or list(base.layers)
    order = {name: place for place, name in enumerate(base.layers)}
    names.sort(key=lambda name: order.get(name, len(order)))
    return {name: [*changed.get(name, []), *full] for name in names}


def names_of(folders: list[Path]) -> list[str]:
    """A short name for each folder, no two alike."""
    short = []
    for folder in folders:
        whole = folder.resolve()
        short.append(f"{whole.parent.name}/{whole.name}" if whole.name in GENERIC else whole.name)
    return [
        name if short.count(name) == 1 else f"{name} ({place})"
        for place, name in enumerate(short, start=1)
    ]


def computing_device(device: torch.device) -> torch.device:
    """Where decompositions run: not on MPS, which has neither float64 nor eigenvalues."""
    return torch.device("cpu") if device.type == "mps" else device
