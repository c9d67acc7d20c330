"""Units of work: groups that worker processes bring to their end, each in a folder of its own.

    OUT/units/<group id>/
        unit.json      what to do; written last by the driver, once the folder is ready
        ledger.sqlite, artifacts/, checkpoints/    a ledger of the unit's own
        sealed.json    sha256 of that ledger; written last by the worker

Only the driver, the process of ``rankscope run``, writes the ledger of the study. It copies what
the study has of a group's trials into the unit; the worker continues from there and seals the
result; the driver verifies it and copies it back in one transaction. A worker that dies leaves
checkpoints and finished results in its folder, so running the unit again continues.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankscope.config.loader import study_values
from rankscope.config.study import StudyConfig
from rankscope.errors import IntegrityError, StudyLocked, UserError, reading
from rankscope.filesystem import replace_text
from rankscope.hashing import sha256_file, sha256_json
from rankscope.progress import LOG, logged_notes
from rankscope.provenance import provenance
from rankscope.records import Record
from rankscope.run.context import RunContext
from rankscope.run.group_ledger import known_groups, store_groups
from rankscope.run.groups import Group, group_id, group_label
from rankscope.run.prepared import PreparedStudy
from rankscope.store import CHECKPOINTS, UNITS, Ledger, StoredGroups, transfer

UNIT = "unit.json"
SEAL = "sealed.json"
DRIVER = "RANKSCOPE_DRIVER"
"""Environment variable with the process id of a worker's driver, if both run on one machine."""


class UnitOrder(Record):
    """What a worker is to do."""

    config: dict[str, Any]
    """The study file."""
    study_sha256: str
    """Of the study as the driver prepared it; a worker that prepares another one refuses."""
    trial_ids: tuple[str, ...]


class Seal(Record):
    """Says that a unit came to its end."""

    ledger_sha256: str
    """Of the closed ledger, which holds the hashes of all artifacts."""


def prepared_sha256(study: PreparedStudy) -> str:
    """Hash of all that results depend on: trials, tasks and the settings of records."""
    ids = [trial.trial_id for trial in study.trials]
    tasks = [record.sha256 for record in study.task_records]
    return sha256_json([ids, tasks, study.base_sha256, study.config.model_dump(mode="json")])


def open_unit(context: RunContext, config: StudyConfig, group: Group) -> Path:
    """The folder of a group's unit, made ready for a worker; kept as it is if it is there already.

    Args:
        context: of the driver.
        config: the study file as read, before ``auto`` was resolved.
        group: trials of the unit.
    """
    folder = context.ledger.out / UNITS / group_id(group)
    ids = tuple(trial.trial_id for trial in group)
    order = UnitOrder(
        config=study_values(config), study_sha256=prepared_sha256(context.study), trial_ids=ids
    )
    text = order.model_dump_json()
    if (folder / UNIT).is_file() and (folder / UNIT).read_text(encoding="utf-8") == text:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with Ledger.open(folder, write=True) as unit:
        study, base = context.study, context.base.record
        values = study_values(study.config)
        unit.put_study(study.config.name, values, base, study.task_records, provenance())
        unit.put_trials(study.trials)
        transfer(context.ledger, unit, ids, verified=False)
        limit = context.groups.batch_tokens(group)
        store_groups(unit, study, [group], dict.fromkeys(ids, limit))
    statuses = context.ledger.statuses()
    untrained = [trial for trial in group if statuses[trial.trial_id] == "planned"]
    move_checkpoint(context.ledger.out, folder, group_id(untrained))
    replace_text(folder / UNIT, text)
    return folder


def read_unit(folder: Path) -> UnitOrder:
    """What the worker of a unit is to do."""
    remedy = "units are made by 'rankscope run --workers N'"
    with reading(folder, "a unit of work", do=remedy):
        return UnitOrder.model_validate_json((folder / UNIT).read_text(encoding="utf-8"))


def unit_study(order: UnitOrder, study: PreparedStudy, stored: StoredGroups) -> PreparedStudy:
    """The study with the groups of a unit alone."""
    if prepared_sha256(study) != order.study_sha256:
        raise UserError(
            "the study prepared here differs from the driver's: expected the same model, data, "
            "device and versions of libraries"
        )
    return dataclasses.replace(study, groups=tuple(known_groups(stored, study)))


def seal_unit(folder: Path) -> None:
    """Mark the results of a unit, whose ledger is closed, as complete."""
    seal = Seal(ledger_sha256=sha256_file(folder / "ledger.sqlite"))
    replace_text(folder / SEAL, seal.model_dump_json())


def is_sealed(folder: Path) -> bool:
    return (folder / SEAL).is_file()


def adopt_unit(context: RunContext, folder: Path) -> None:
    """Copy the results of a sealed unit into the study, and remove its folder.

    Raises:
        IntegrityError: they are not what the worker wrote.
    """
    order = read_unit(folder)
    seal = Seal.model_validate_json((folder / SEAL).read_text(encoding="utf-8"))
    if sha256_file(folder / "ledger.sqlite") != seal.ledger_sha256:
        raise IntegrityError(
            f"{folder}: the ledger was changed after it was sealed; remove this folder to compute "
            "the unit again"
        )
    with Ledger.open(folder, write=False) as unit:
        transfer(unit, context.ledger, order.trial_ids)
        stored = unit.groups()
        assert stored is not None
        context.groups.replace(order.trial_ids, stored)
    remove_unit(context, folder, order)


def rescue_unit(context: RunContext, folder: Path) -> None:
    """Copy what an unsealed unit of this study has finished, its checkpoints too; remove it."""
    order = read_unit(folder)
    with Ledger.open(folder, write=False) as unit:
        transfer(unit, context.ledger, order.trial_ids)
        stored = unit.groups()
    assert stored is not None
    context.groups.replace(order.trial_ids, stored)
    for checkpoint in (folder / CHECKPOINTS).glob("*"):
        move_checkpoint(folder, context.ledger.out, checkpoint.name)
    remove_unit(context, folder, order)


def move_checkpoint(source: Path, target: Path, name: str) -> None:
    """Move the checkpoint of a group between the folders of two ledgers, if there is one."""
    place = target / CHECKPOINTS / name
    if (source / CHECKPOINTS / name).is_dir() and not place.exists():
        place.parent.mkdir(exist_ok=True)
        (source / CHECKPOINTS / name).rename(place)


def remove_unit(context: RunContext, folder: Path, order: UnitOrder) -> None:
    """Remove a unit's folder, the order first: what is left after a crash is garbage. The notes of
    its workers go to the study's log."""
    group = tuple(trial for trial in context.study.trials if trial.trial_id in order.trial_ids)
    for note in dict.fromkeys(logged_notes(folder / LOG)):
        if note not in context.study.notes:
            context.reporter.note(f"{group[0].task} {group_label(group)}: {note}")
    (folder / UNIT).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def adopt_units(context: RunContext, *, keep_unsealed: bool) -> None:
    """Adopt what earlier workers finished; remove units of another form of the study.

    ``keep_unsealed``: leave unfinished units to the workers of this run.
    """
    for folder in sorted((context.ledger.out / UNITS).glob("*")):
        wait_for_worker(folder, context.check_stop)
        is_ready = (folder / UNIT).is_file()
        if not is_ready or read_unit(folder).study_sha256 != prepared_sha256(context.study):
            shutil.rmtree(folder, ignore_errors=True)
        elif is_sealed(folder):
            context.did_work = True
            adopt_unit(context, folder)
        elif not keep_unsealed:
            context.did_work = True
            rescue_unit(context, folder)


def wait_for_worker(folder: Path, check_stop: Callable[[], object]) -> None:
    """Return once no worker of a driver that died holds a unit; such workers stop by themselves.

    Raises:
        Interrupted: by ``check_stop``, which is called while it waits.
    """
    while (folder / "ledger.sqlite").is_file() and not is_sealed(folder):
        try:
            Ledger.open(folder, write=True).close()
            return
        except StudyLocked:
            check_stop()
            time.sleep(0.2)
