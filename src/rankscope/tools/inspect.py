"""``inspect``: compare adapters and fine-tuned checkpoints with their base, without training."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rankscope.analyses.inspection import Inspection, TunedModel
from rankscope.analyses.spectra import SpectraConfig
from rankscope.analyses.spectra.record import MatrixSpectrum, NormGrowth, SpectraRecord
from rankscope.analyses.spectra.spectra import check_spectra_settings, spectra_record
from rankscope.analyses.spectra.stored_models import (
    StoredTunedModel,
    matrices_to_compare,
    short_names,
)
from rankscope.analyses.tables import analysis_tables
from rankscope.device import choose_device, keep_freed_memory, provenance
from rankscope.errors import UserError
from rankscope.filesystem import replace_text, user_path
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.methods import get_lora_method
from rankscope.models.model_folder import shapes_folder
from rankscope.models.svd_cache import (
    SvdCache,
    cache_bytes,
    decomposition_device,
    svd_cache_folder,
)
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.records import (
    AnalysisRecord,
)
from rankscope.report.inspection_page import render_inspection


def inspect(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    settings: SpectraConfig | None = None,
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
        any_base: accept adapters that record another base.

    Raises UserError for what cannot be used, IntegrityError for damaged weights.
    """
    started = time.perf_counter()
    keep_freed_memory()
    settings, reporter = settings or SpectraConfig(), reporter or NullReporter()
    folders = [user_path(one) for one in ([tuned] if isinstance(tuned, str | Path) else tuned)]
    if not folders:
        raise UserError("inspect: no tuned model given; expected one folder or more")
    stored_base = CheckpointReader.open(shapes_folder(str(base)))
    pairs = zip(folders, short_names(folders), strict=True)
    models = [StoredTunedModel.open(folder, name) for folder, name in pairs]
    forced = {m.name for m in models if m.is_of_other_base(stored_base, any_base=any_base)}
    spectra = _inspect_spectra(stored_base, models, settings, choose_device(device), reporter)
    tuned_models = tuple(
        TunedModel(
            name=model.name,
            path=str(model.folder),
            kind=model.kind,
            rank=None if model.adapter is None else model.adapter.rank,
            scaling=None if model.adapter is None else model.adapter.scaling,
            spectra=spectra[model.name],
            other_base_forced=model.name in forced,
        )
        for model in models
    )
    has_one_rank = [model.has_one_rank for model in models]
    return Inspection(
        base=str(base),
        base_path=str(stored_base.folder),
        architecture=stored_base.architecture,
        quantized=stored_base.quantized,
        tuned=tuned_models,
        growth=_norm_growth([t for t, one in zip(tuned_models, has_one_rank, strict=True) if one]),
        cache_bytes=cache_bytes(svd_cache_folder()),
        provenance=provenance(),
        seconds=time.perf_counter() - started,
    )


def _inspect_spectra(
    base: CheckpointReader,
    models: Sequence[StoredTunedModel],
    settings: SpectraConfig,
    device: torch.device,
    reporter: ProgressReporter,
) -> dict[str, SpectraRecord]:
    """Spectra of every tuned model by name, computed matrix by matrix for all models together."""
    compared = matrices_to_compare(base, models)
    shapes = {name: base.layer(name).shape for name in compared}
    check_spectra_settings(settings, shapes, is_command=True)
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


def _norm_growth(models: Sequence[TunedModel]) -> NormGrowth | None:
    """Fit |dW|_F over ranks, on the largest set of adapters of one rank each that are of one kind,
    on the same matrices, with the same scaling or alpha."""
    groups: dict[tuple[object, ...], list[TunedModel]] = {}
    for model in models:
        if model.rank is None or model.scaling is None:
            continue
        names = tuple(matrix.name for matrix in model.spectra.matrices)
        alpha = model.scaling * get_lora_method(model.kind).rank_scale(model.rank)
        for rule, value in (("scaling", model.scaling), ("alpha", alpha)):
            key = (model.kind, names, rule, float(f"{value:.6g}"))  # ignore rounding
            groups.setdefault(key, []).append(model)
    if not groups:
        return None
    largest = max(groups.values(), key=lambda group: len({model.rank for model in group}))
    ranks = [model.rank for model in largest if model.rank is not None]
    return NormGrowth.fit(ranks, [model.spectra.frobenius for model in largest])


def write_inspection_folder(inspection: Inspection, out: Path) -> None:
    """Write the record, the page and the tables into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / "inspection.json", inspection.model_dump_json(indent=2) + "\n")
    write_tables(inspection, out)
    replace_text(out / "inspection.html", render_inspection(inspection))


def write_tables(inspection: Inspection, folder: Path) -> None:
    """Write a Parquet file per table of each analysis that found something."""
    found: list[tuple[dict[str, object], AnalysisRecord]] = []
    for m in inspection.tuned:
        identity: dict[str, object] = {
            "model": m.name,
            "kind": m.kind,
            "rank": m.rank,
            "scaling": m.scaling,
        }
        found += [(identity, record) for record in (m.spectra, m.heads) if record is not None]
    for name, table in analysis_tables(found).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
