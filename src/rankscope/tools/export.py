"""What leaves a study: one trial's weights with their model card, and its tables as files."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from rankscope.advise.arms import summarize_trial
from rankscope.advise.recommend import recommend
from rankscope.errors import DiskFull, UserError
from rankscope.filesystem import check_taken, is_disk_full, replace_text
from rankscope.models.fetch import KNOWN_MODELS
from rankscope.records import Recommendation, StudyRecords, TrialSpec
from rankscope.report.main_tables import all_tables
from rankscope.report.model_card import model_card
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import FORMATS
from rankscope.store import Ledger, snapshot_path, weights_path


def export_trial(folder: Path, trial: str, out: Path, step: int | None = None) -> TrialSpec:
    """Copy the weights of one trial of the study in ``folder`` to ``out``; returns the trial.

    Every hash is compared first, and ``out`` comes to be in one step. Its README.md is a model card
    with the study's figures.

    Args:
        folder: a study's folder.
        trial: a trial's id, or a beginning of it that no other trial shares.
        out: a folder that is empty or not there yet, outside the study.
        step: the weights kept after so many optimizer steps; the last ones by default.

    Raises:
        UserError: no such study or trial, no weights (of ``step``), or ``out`` cannot be used.
        IntegrityError: the stored weights are not what was written.
        DiskFull: ``out`` is left as it was.
    """
    check_target(folder, out)
    out = out.resolve()  # "x/.." has no name to put a copy beside
    with Ledger.open(folder, write=False) as ledger:
        spec = chosen_trial(ledger.trials(), trial, folder)
        place = weights_path(spec) if step is None else kept_place(ledger, spec, step)
        if not ledger.artifacts(place):
            status = ledger.statuses()[spec.trial_id]
            raise UserError(
                f"{folder}: trial {spec.trial_id} ({spec.label}) has no weights, it is {status!r}; "
                "'rankscope status' shows which trials are done"
            )
        card = card_of(ledger.load(), spec, None if place == weights_path(spec) else step)
        copy_folder(ledger.checked_path(place), out, {"README.md": card})
    return spec


def card_of(study: StudyRecords, spec: TrialSpec, step: int | None) -> str:
    """The model card of one trial, with what the study knows of it."""
    trial = next(t for t in study.trials if t.spec == spec)
    view = StudyView(study, recommend(study))
    known = {name: model.card for name, model in KNOWN_MODELS.items()}
    return model_card(view, trial, summarize_trial(study, trial), step, known)


def write_tables(
    folder: Path, study: StudyRecords, recommendation: Recommendation, out: Path
) -> list[Path]:
    """Write the main tables as Markdown, CSV and LaTeX: ``arms.md``, ``arms.csv``, ``arms.tex``...

    Files of these names are replaced, or removed where a table has no rows; others are left alone.
    Returns those written.

    Args:
        folder: the study's folder, which holds what its ledger names and nothing else.
        study: its records.
        recommendation: what was made of them.
        out: a folder, made where there is none.

    Raises:
        UserError: ``out`` lies inside the study, or is no folder.
        DiskFull: there is no room; no file is cut short.
    """
    check_tables(folder, out)
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, made in all_tables(StudyView(study, recommendation)).items():
            for ending, text_of in FORMATS.items():
                place = out / f"{name}.{ending}"
                if made.rows:
                    replace_text(place, text_of(made))
                    written.append(place)
                else:  # what an earlier call found is not so any more
                    place.unlink(missing_ok=True)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{out}: the disk is full; make room.") from error
    return written


def check_tables(folder: Path, out: Path) -> None:
    """Tables go into a folder, new or not, outside the study. Raises UserError."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: lies inside the study {folder}; give --tables another place")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: found a file, expected a folder; give --tables another place")


def kept_place(ledger: Ledger, spec: TrialSpec, step: int) -> str:
    """Where the weights of one step lie; those of the last or best step are the trial's own.

    Raises:
        UserError: they were not kept.
    """
    train = next(t.train for t in ledger.load().trials if t.spec == spec)
    # Early stopping puts its best step's weights where those of the last step would be.
    last = None if train is None else train.best_step or train.steps
    if step == last:
        return weights_path(spec)
    place = snapshot_path(spec, step)
    if ledger.artifacts(place):
        return place
    paths = ledger.artifacts(f"artifacts/{spec.trial_id}/steps")
    kept = {int(PurePosixPath(artifact.path).parts[3]) for artifact in paths}
    known = sorted(kept if last is None else kept | {last})
    raise UserError(
        f"{ledger.out}: trial {spec.trial_id} ({spec.label}) has no weights of step {step}; "
        f"expected one of {', '.join(map(str, known)) or 'none'}, as 'train.checkpoint_every' "
        "asked for"
    )


def check_target(folder: Path, out: Path) -> None:
    """A target must be free, and not in the study, whose folder holds what the ledger names."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: lies inside the study {folder}; give --out another place")
    check_taken(out)


def chosen_trial(trials: list[TrialSpec], wanted: str, folder: Path) -> TrialSpec:
    """The trial whose id is, or alone begins with, ``wanted``."""
    found = [spec for spec in trials if wanted and spec.trial_id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{folder}: trial {wanted!r} fits {len(found)} trials, such as {found[0].trial_id} and "
            f"{found[1].trial_id}; give more of the id"
        )
    raise UserError(
        f"{folder}: there is no trial {wanted!r}; expected the id of one of its {len(trials)} "
        f"trials, as 'rankscope status {folder}' lists them"
    )


def copy_folder(source: Path, out: Path, texts: Mapping[str, str]) -> None:
    """Copy beside ``out``, then rename: a copy that broke off is never taken for a whole one.

    texts: by name, files written instead of the source's, or beside them.
    """
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            target = aside / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        os.replace(aside, out)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{out}: the disk is full; nothing was left there. Make room.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
