"""What ``inspect`` measures in adapters and fine-tuned checkpoints."""

from rankscope.analyses.heads.record import HeadsRecord
from rankscope.analyses.spectra.record import NormGrowth, SpectraRecord
from rankscope.records import MethodName, Provenance, Record


class TunedModel(Record):
    name: str  # Folder's name, made unique within the inspection
    path: str
    kind: MethodName
    rank: int | None  # None for a full checkpoint
    scaling: float | None  # s in W0 + s B A; None for a full checkpoint
    spectra: SpectraRecord
    heads: HeadsRecord | None = None  # Only if heads were requested
    other_base_forced: bool = False  # It records another base than this inspection's


class Inspection(Record):
    base: str
    base_path: str
    architecture: str
    quantized: str | None
    tuned: tuple[TunedModel, ...]
    growth: NormGrowth | None  # Over adapters of one kind, if there are three ranks
    cache_bytes: int  # Size of the base's decompositions on disk
    provenance: Provenance
    seconds: float
