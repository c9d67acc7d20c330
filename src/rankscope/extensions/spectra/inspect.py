"""``inspect``: a study of given models whose analyses read stored weights, or run the models.

Spectra need no model in memory. Adapters and checkpoints are read one matrix at a time, for any
architecture with linear layers, quantized ones included. Other analyses run the models, like a
study.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rankscope.analyses import all_analyses, enabled_analyses
from rankscope.config.study import StudyConfig
from rankscope.device import choose_device, keep_freed_memory
from rankscope.errors import UserError
from rankscope.extensions.spectra import SPECTRA
from rankscope.extensions.spectra.stored_models import StoredTunedModel, stored_spectra
from rankscope.filesystem import user_path
from rankscope.hashing import weights_sha256
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.given import (
    check_distinct,
    given_names,
    given_trial,
    num_trained_parameters,
)
from rankscope.models.model_folder import shapes_folder
from rankscope.progress import ProgressReporter
from rankscope.records import (
    AS_STORED,
    AnalysisRecord,
    ModelRecord,
    StudyRecords,
    failures,
    finished_trials,
)
from rankscope.report.analysis_tables import TableRow, analysis_tables
from rankscope.report.table_formats import write_tables
from rankscope.run.begin import store_study
from rankscope.run.given import given_record, store_finished
from rankscope.run.outputs import write_outputs
from rankscope.run.study import Study
from rankscope.store import Ledger
from rankscope.tools.evaluate import given_study


def inspect(
    base: str | Path,
    tuned: str | Path | Sequence[str | Path],
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    *,
    any_base: bool = False,
    reporter: ProgressReporter | None = None,
) -> StudyRecords:
    """Compare adapters and checkpoints with their base, without training.

    Args:
        base: a model folder, ``pocket`` or a hub id.
        tuned: folders of PEFT adapters or full checkpoints; they share the base's decompositions.
        settings: keys of a study file, such as ``analyze`` and ``device``.
        out: a folder for the study, its page and its tables. An earlier inspection in it must have
            the same base. Analyses that run models need another folder than those of stored
            weights.
        any_base: accept adapters that record another base.

    Raises UserError for unusable input, IntegrityError for damaged weights.
    """
    reporter = reporter or ProgressReporter()
    folders = [tuned] if isinstance(tuned, str | Path) else tuned
    if not folders:
        raise UserError("inspect", "no tuned model", "one folder or more", "give one")
    settings = settings or {}
    values = {"name": "inspect", "dtype": "float32"}
    config = given_study(values, settings, str(base), list(map(str, folders)), any_base)
    runs_models = any(analysis.runs_models for analysis in enabled_analyses(config))
    if not runs_models and (unused := sorted(set(settings) - {"analyze", "device"})):
        expected = "it together with an analysis that runs the models"
        raise UserError("inspect", f"{unused[0]} alone", expected, "enable one in analyze")
    made = TemporaryDirectory() if out is None else nullcontext(str(user_path(out)))
    with made as name:
        folder = Path(name)
        if runs_models:
            study = Study(config).run(folder, reporter)
        else:
            study = _inspect_stored(str(base), config, folder, reporter)
        if out is not None:
            write_outputs(folder)
            write_analyses(study, folder)
    return study


def _inspect_stored(
    base: str, config: StudyConfig, out: Path, reporter: ProgressReporter
) -> StudyRecords:
    """Write spectra of the given models, one matrix in memory at a time, into the study in
    ``out``."""
    keep_freed_memory()
    begun = time.monotonic()
    stored_base = CheckpointReader(shapes_folder(base))
    given = config.given or []
    folders = [user_path(model.folder) for model in given]
    names = given_names(given)
    models = [StoredTunedModel.open(f, name) for f, name in zip(folders, names, strict=True)]
    sha256 = weights_sha256(stored_base.folder)
    trials = [
        given_trial(of, model.name, stored_base.folder, sha256, model.settings, model.adapter)
        for model, of in zip(models, given, strict=True)
    ]
    check_distinct(trials)
    settings, device = SPECTRA.settings(config), choose_device(config.device)
    spectra = stored_spectra(stored_base, models, settings, device, reporter)
    with Ledger.open(out, write=True) as ledger:
        others = [trial for trial in ledger.trials() if trial.given is None]
        if others:
            found = f"a study that trains {others[0].label}"
            raise UserError(f"--out {out}", found, "a new folder, or one of inspect's", "name one")
        record = _model_record(base, stored_base, sha256)
        note = "the base is quantized by bitsandbytes: its numbers are compared"
        store_study(ledger, config, record, [], [note] if stored_base.is_quantized else [])
        ledger.put_trials(trials)
        ledger.repeat_trials([trial.trial_id for trial in trials])
        of_base = record.num_parameters
        trained = [(t, given_record(t, num_trained_parameters(t, of_base))) for t in trials]
        named = {m.name: {"trial_id": t.trial_id} for m, t in zip(models, trials, strict=True)}
        records = [spectra[name].model_copy(update=own) for name, own in named.items()]
        store_finished(ledger, trained, records)
        ledger.add_seconds(time.monotonic() - begun)
        return ledger.load()


def _model_record(label: str, base: CheckpointReader, sha256: str) -> ModelRecord:
    config = base.model.config.get_text_config()
    return ModelRecord(
        label=label,
        sha256=sha256,
        architecture=base.architecture,
        num_parameters=base.model.num_parameters(),
        num_layers=base.num_layers,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        dtype=AS_STORED,
        device="cpu",
        prompt_format="plain",
    )


def write_analyses(study: StudyRecords, folder: Path) -> None:
    """Write a Parquet file per table of each analysis with results."""
    rows: list[tuple[TableRow, AnalysisRecord]] = []
    for trial in study.trials:
        spec, scaling = trial.spec, None if trial.spec.rank is None else trial.spec.scaling
        identity: TableRow = {"model": spec.arm_label, "kind": spec.method, "rank": spec.rank}
        rows += [(identity | {"scaling": scaling}, record) for record in trial.analyses]
    write_tables(analysis_tables(rows), folder, ["parquet"])


def unfinished(study: StudyRecords) -> list[str]:
    """Write one sentence per given model that failed, or that lacks an enabled analysis."""
    kinds = [(a.name, kind) for a in enabled_analyses(study.config) if (kind := a.record_type())]
    return failures(study) + [
        f"{trial.spec.arm_label}: no {name}, as the analysis did not finish"
        for trial in finished_trials(study.trials)
        for name, kind in kinds
        if trial.analysis(kind) is None
    ]


def inspection_json(study: StudyRecords) -> dict[str, object]:
    """Return the JSON document of ``inspect --json``."""
    analyses = all_analyses()
    return {
        "base": study.model.label,
        "architecture": study.model.architecture,
        "tuned": [
            {
                "name": trial.spec.arm_label,
                "path": trial.spec.given.folder,
                "kind": trial.spec.method,
                "rank": trial.spec.rank,
                "scaling": None if trial.spec.rank is None else trial.spec.scaling,
                "other_base_forced": trial.spec.given.other_base is not None,
                **{a.name: trial.analysis(kind) for a in analyses if (kind := a.record_type())},
            }
            for trial in study.trials
            if trial.spec.given is not None
        ],
        "failed": unfinished(study),
        "notes": study.notes,
        "provenance": study.provenance,
        "seconds": study.total_seconds,
    }
