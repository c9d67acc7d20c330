"""Export from a study: the weights of one trial with a model card, and tables as files."""

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from rankscope.advise.arms import summarize_trial
from rankscope.advise.recommend import recommend
from rankscope.errors import DiskFull, UserError
from rankscope.filesystem import check_taken, folder_in_one_step, is_disk_full, replace_bytes
from rankscope.models.fetch import KNOWN_MODELS
from rankscope.records import Recommendation, StudyRecords, TrialSpec
from rankscope.report.model_card import study_card
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import FORMATS
from rankscope.report.tables import study_tables
from rankscope.store import Ledger, snapshot_path, weights_path


def export_trial(folder: Path, trial: str, out: Path, step: int | None = None) -> TrialSpec:
    """Copy the weights of one trial to ``out`` with a model card, and return the trial.

    ``trial`` is an id or a unique prefix of one; ``step`` selects weights kept during training. All
    hashes are compared first, and ``out``, a new or empty folder, appears in one step.

    Raises:
        UserError: the study, the trial or its weights are not there, or ``out`` cannot be used.
        IntegrityError: the stored weights were altered.
        DiskFull: ``out`` stays as it was.
    """
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: is inside the study {folder}; choose another --out")
    check_taken(out)
    with Ledger.open(folder, write=False) as ledger:
        spec = _find_trial(ledger.trials(), trial, folder)
        weights = weights_path(spec) if step is None else _path_of_step(ledger, spec, step)
        if not ledger.artifacts(weights):
            status = ledger.statuses()[spec.trial_id]
            raise UserError(
                f"{folder}: trial {spec.trial_id} ({spec.label}) has no weights, its status is "
                f"{status!r}; 'rankscope status {folder}' shows which trials are done"
            )
        card = _card(ledger.load(), spec, None if weights == weights_path(spec) else step)
        _copy_with_card(ledger.checked_path(weights), out, card)
    return spec


def _find_trial(trials: Sequence[TrialSpec], wanted: str, folder: Path) -> TrialSpec:
    matches = [spec for spec in trials if wanted and spec.trial_id.startswith(wanted)]
    if len(matches) > 1:
        raise UserError(
            f"{folder}: {wanted!r} matches {len(matches)} trials, such as {matches[0].trial_id} "
            f"and {matches[1].trial_id}; give more characters of the id"
        )
    if not matches:
        raise UserError(
            f"{folder}: there is no trial {wanted!r}; expected the id of one of its {len(trials)} "
            f"trials, listed by 'rankscope status {folder}'"
        )
    return matches[0]


def _path_of_step(ledger: Ledger, spec: TrialSpec, step: int) -> str:
    """Path of the weights at one step; raises UserError if they were not kept."""
    train = next(t.train for t in ledger.load().trials if t.spec == spec)
    # With early stopping, the final weights are those of the best step.
    last = None if train is None else train.best_step or train.steps
    if step == last:
        return weights_path(spec)
    if ledger.artifacts(path := snapshot_path(spec, step)):
        return path
    snapshots = ledger.artifacts(f"artifacts/{spec.trial_id}/steps")
    kept = {int(PurePosixPath(artifact.path).parts[3]) for artifact in snapshots}
    known = ", ".join(map(str, sorted(kept if last is None else kept | {last}))) or "none"
    raise UserError(
        f"{ledger.out}: trial {spec.trial_id} ({spec.label}) has no weights of step {step}; "
        f"expected one of {known}. 'train.checkpoint_every' sets which steps are kept"
    )


def _card(study: StudyRecords, spec: TrialSpec, step: int | None) -> str:
    trial = next(t for t in study.trials if t.spec == spec)
    view = StudyView(study, recommend(study))
    known_bases = {name: model.card for name, model in KNOWN_MODELS.items()}
    return study_card(view, trial, summarize_trial(study, trial), step, known_bases)


def _copy_with_card(source: Path, out: Path, card: str) -> None:
    with folder_in_one_step(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_study_tables(
    folder: Path, study: StudyRecords, recommendation: Recommendation, out: Path
) -> list[Path]:
    """Write the main tables as ``arms.md``, ``arms.csv``, ``arms.tex``, ``arms.parquet`` and so on.

    A table without rows is not written, and its files of an earlier call are removed.

    Raises:
        UserError: ``out`` is inside the study, or not a folder.
        DiskFull: no file is cut short.
    """
    check_tables_folder(folder, out)
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, table in study_tables(StudyView(study, recommendation)).items():
            for ending, write in FORMATS.items():
                path = out / f"{name}.{ending}"
                if len(table):
                    replace_bytes(path, write(table))
                    written.append(path)
                else:
                    path.unlink(missing_ok=True)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{out}: the disk is full; make room.") from error
    return written


def check_tables_folder(folder: Path, out: Path) -> None:
    """Raise UserError unless ``out`` is a folder, new or not, outside the study."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: is inside the study {folder}; choose another --tables")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: found a file, expected a folder; choose another --tables")
