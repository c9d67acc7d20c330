"""``inspect``: look through adapters and fine-tuned checkpoints without training anything."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rankscope.analyze.spectra import check_too_many
from rankscope.analyze.stored_models import StoredTunedModel, compared, computing_device, names_of
from rankscope.analyze.svd_cache import SvdCache, cache_bytes, svd_cache_folder
from rankscope.device import choose_device, keep_freed_memory
from rankscope.errors import UserError
from rankscope.filesystem import replace_text
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.load import shapes_folder
from rankscope.models.methods import get_lora_method
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.provenance import provenance
from rankscope.records import Inspection, MatrixSpectrum, NormGrowth, SpectraRecord, TunedModel
from rankscope.records.inspection_tables import write_tables
from rankscope.report.inspection_page import write_inspection_page


@dataclass(frozen=True)
class InspectSettings:
    """What is looked for; the defaults are science.md's."""

    top_k: int | None = None
    """Singular vectors compared; by default min(500, d / 4) of each matrix."""
    intruder_k: int = 10
    """Leading vectors examined for intruders."""
    intruder_epsilon: float = 0.5
    """Largest |cosine| to any base vector below which a vector is an intruder."""


def inspect(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    settings: InspectSettings | None = None,
    *,
    device: str = "auto",
    any_base: bool = False,
    reporter: ProgressReporter | None = None,
) -> Inspection:
    """Compare adapters and checkpoints with their base, one matrix in memory at a time.

    Args:
        base: a model folder, ``pocket``, a fetched model's name, or a hub id.
        tuned: folders of PEFT adapters or full checkpoints; they share the base's decompositions.
        device: where decompositions run, as a study's ``device``.
        any_base: look at adapters whose recorded base is another one, too.
        reporter: is told how far it is.

    Raises:
        UserError: something cannot be used: another base, an adapter of another type, pickled
            weights, more vectors asked for than a matrix has.
        IntegrityError: weights are missing, misshapen or not finite.
    """
    started = time.perf_counter()
    keep_freed_memory()
    settings, reporter = settings or InspectSettings(), reporter or NullReporter()
    folders = [Path(one) for one in ([tuned] if isinstance(tuned, str | Path) else tuned)]
    if not folders:
        raise UserError("inspect: no tuned model given; expected a folder or several")
    stored = CheckpointReader.open(shapes_folder(str(base)))
    pairs = zip(folders, names_of(folders), strict=True)
    models = [StoredTunedModel.open(folder, name) for folder, name in pairs]
    if not any_base:
        for model in models:
            model.check_other_base(stored)
    found = spectra_of(stored, models, settings, choose_device(device), reporter)
    tuned_models = tuple(
        TunedModel(
            name=model.name,
            path=str(model.folder),
            kind=model.kind,
            rank=model.adapter.rank if model.adapter is not None else None,
            scaling=model.adapter.scaling if model.adapter is not None else None,
            spectra=found[model.name],
        )
        for model in models
    )
    return Inspection(
        base=str(base),
        base_path=str(stored.folder),
        architecture=stored.architecture,
        quantized=stored.quantized,
        tuned=tuned_models,
        growth=growth_of([t for t, s in zip(tuned_models, models, strict=True) if s.has_one_rank]),
        cache_bytes=cache_bytes(svd_cache_folder()),
        provenance=provenance(),
        seconds=time.perf_counter() - started,
    )


def spectra_of(
    base: CheckpointReader,
    models: Sequence[StoredTunedModel],
    settings: InspectSettings,
    device: torch.device,
    reporter: ProgressReporter,
) -> dict[str, SpectraRecord]:
    """Spectra of every tuned model, by its name; matrix by matrix, all models of one together."""
    plan = compared(base, models)
    check_settings(base, plan, settings)
    # One matrix at a time needs no more than its own decomposition.
    cache = SvdCache(max_bytes=0, folder=svd_cache_folder())
    matrices: dict[str, list[MatrixSpectrum]] = {model.name: [] for model in models}
    seconds = dict.fromkeys(matrices, 0.0)
    reporter.stage("spectra", len(plan))
    for done, (name, here) in enumerate(plan.items()):
        reporter.advance(done, name)
        weight = base.weight(name, computing_device(device))
        held = SvdCache(max_bytes=2**62)
        held.keep(name, cache.of(name, weight))
        for model in here:
            began = time.perf_counter()
            matrices[model.name].append(model.matrix(name, weight, settings, held))
            seconds[model.name] += time.perf_counter() - began
    reporter.finish()
    return {
        name: SpectraRecord(
            trial_id=name,
            intruder_k=settings.intruder_k,
            intruder_epsilon=settings.intruder_epsilon,
            matrices=tuple(found),
            seconds=seconds[name],
        )
        for name, found in matrices.items()
    }


def check_settings(base: CheckpointReader, names: Iterable[str], settings: InspectSettings) -> None:
    """Raise UserError for settings that do not fit the base's matrices; a default fits any."""
    if not 0 < settings.intruder_epsilon < 1:
        raise UserError(
            f"--epsilon {settings.intruder_epsilon}: expected a number between 0 and 1, a cosine"
        )
    intruder_k = settings.intruder_k if settings.intruder_k != InspectSettings.intruder_k else None
    check_too_many(
        {name: base.layer(name).shape for name in names},
        {"--top-k": settings.top_k, "--intruder-k": intruder_k},
    )


def growth_of(models: Sequence[TunedModel]) -> NormGrowth | None:
    """The fit of |dW|_F over ranks, of the largest set of adapters that differ in nothing else that
    is known: of one kind, on the same matrices, with the same scaling or the same alpha.

    models: each of one rank throughout.
    """
    groups: dict[tuple[object, ...], list[TunedModel]] = {}
    for model in models:
        if model.rank is None or model.scaling is None:
            continue
        changed = tuple(matrix.name for matrix in model.spectra.matrices)
        alpha = model.scaling * get_lora_method(model.kind).rank_scale(model.rank)
        for rule, value in (("scaling", model.scaling), ("alpha", alpha)):
            key = (model.kind, changed, rule, float(f"{value:.6g}"))  # but for rounding
            groups.setdefault(key, []).append(model)
    if not groups:
        return None
    largest = max(groups.values(), key=lambda group: len({model.rank for model in group}))
    ranks = [model.rank for model in largest if model.rank is not None]
    return NormGrowth.fit(ranks, [model.spectra.frobenius for model in largest])


def write_inspection_folder(found: Inspection, out: Path) -> None:
    """Write everything into ``out``, made where it is not there.

    ``inspection.json`` is the whole record, ``inspection.html`` the page, ``matrices.parquet`` has
    a row per tuned model and matrix; ``layers.parquet`` and ``modules.parquet`` sum it up by layer
    and by type of module.
    """
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "inspection.json", found.model_dump_json(indent=2) + "\n")
    write_tables(found, out)
    write_inspection_page(found, out / "inspection.html")
