"""Check analysis settings against a model's matrices and against stored records.

No check needs weights, so a study is refused before anything is loaded. All raise UserError.
"""

from collections.abc import Iterable, Mapping

from rankscope.analyze.spectra import SpectraSettings, num_compared_vectors
from rankscope.config.study import AnalyzeConfig, HeadsConfig, SpectraConfig
from rankscope.errors import UserError
from rankscope.records import (
    HeadsRecord,
    SpectraRecord,
    StudyRecords,
    TrialSpec,
    trial_of,
    variant_of,
)

STUDY_OPTIONS = {
    "top_k": "analyze.spectra.top_k",
    "intruder_k": "analyze.spectra.intruder_k",
    "intruder_epsilon": "analyze.spectra.intruder_epsilon",
}
"""Names of the settings in a study file."""


def check_spectra_settings(
    settings: SpectraSettings,
    shapes: Mapping[str, tuple[int, int]],
    options: Mapping[str, str] = STUDY_OPTIONS,
) -> None:
    """Refuse more vectors than a matrix has, and an epsilon that is not a cosine.

    All singular vectors of a matrix together span the same space whatever training did, so they
    would compare as equal. The default of ``intruder_k`` fits any matrix: it is cut to its size.

    Args:
        settings: of the study or the command.
        shapes: module path -> (out, in) of the matrices to analyze.
        options: field of ``settings`` -> its name in error messages.
    """
    if not 0 < settings.intruder_epsilon < 1:
        raise UserError(
            f"{options['intruder_epsilon']} {settings.intruder_epsilon}: expected a number between "
            "0 and 1, a cosine"
        )
    has_default = settings.intruder_k == SpectraConfig().intruder_k
    counts = {"top_k": settings.top_k, "intruder_k": None if has_default else settings.intruder_k}
    for name, shape in shapes.items():
        for field, k in counts.items():
            if k is not None and not 1 <= k <= min(shape):
                raise UserError(
                    f"{options[field]} {k}: {name} {shape} has {min(shape)} singular vectors; "
                    f"expected 1 to {min(shape)}"
                )


def check_stored_analyses(
    study: StudyRecords, settings: AnalyzeConfig, trials: Iterable[TrialSpec]
) -> None:
    """Refuse to continue a study whose stored analyses were made with other settings.

    Args:
        study: as stored.
        settings: of the study file now.
        trials: of the study file now.
    """
    for trial in study.trials:
        if trial.spectra is not None:
            check_stored_spectra(study.name, trial.spectra, settings.spectra)
        if trial.heads is not None and settings.heads.enabled:
            check_stored_heads(study.name, trial.spec.task, trial.heads, settings.heads)
    check_stored_intruder_variants(study, settings.spectra, trials)


def check_stored_spectra(name: str, record: SpectraRecord, settings: SpectraConfig) -> None:
    """Spectra must use the k and epsilon of ``settings``; ``name`` is the study's."""
    before = (record.intruder_k, record.intruder_epsilon)
    if before != (settings.intruder_k, settings.intruder_epsilon):
        raise UserError(
            f"{name}: the stored spectra use intruder_k {before[0]} and intruder_epsilon "
            f"{before[1]:g}; the study file now has {settings.intruder_k} and "
            f"{settings.intruder_epsilon:g}; use another --out"
        )
    for matrix in record.matrices:
        if matrix.top_k != (top_k := num_compared_vectors(matrix.shape, settings)):
            raise UserError(
                f"{name}: the stored spectra compare {matrix.top_k} singular vectors of "
                f"{matrix.name}; with the study file's top_k it would be {top_k}; use another --out"
            )


def check_stored_heads(
    name: str, trained_on: str, record: HeadsRecord, settings: HeadsConfig
) -> None:
    """A record of heads must be of the items and tasks of ``settings``; ``name`` is the study's."""
    before = (record.task, record.items_asked, sorted(a.task for a in record.ablations))
    now = (settings.task or trained_on, settings.items, sorted(set(settings.ablate)))
    if before != now:
        raise UserError(
            f"{name}: the stored records of heads use task {before[0]!r} with items {before[1]} "
            f"and ablate {before[2]}; the study file now has {now[0]!r}, {now[1]} and {now[2]}; "
            "use another --out"
        )


def check_stored_intruder_variants(
    study: StudyRecords, settings: SpectraConfig, trials: Iterable[TrialSpec]
) -> None:
    """Scores of scaled intruders must use the same definition of intruders and, for full
    fine-tuning, the same matrices."""
    variants = {model: variant_of(model) for model, _, _ in study.evals}
    scored = {
        trial_of(model)
        for model, variant in variants.items()
        if variant is not None and variant.kind in ("intruders", "control")
    }
    if not scored:
        return
    stored = study.config.analyze.spectra
    before, now = (
        f"intruder_k {s.intruder_k} and intruder_epsilon {s.intruder_epsilon:g}"
        for s in (stored, settings)
    )
    if before == now and any(t.spec.is_full and t.spec.trial_id in scored for t in study.trials):
        before, now = (
            f"targets {sorted({target for spec in specs for target in spec.targets})}"
            for specs in ([t.spec for t in study.trials], trials)
        )
    if before != now:
        raise UserError(
            f"{study.name}: the stored scores of scaled intruders use {before}; the study file now "
            f"has {now}; use another --out"
        )
