"""Both sides: the order of a unit, and the seal that marks it as done.

OUT/units/<group id or "base">/
    unit.json      the order; written last by the driver, once the folder is ready
    SHA256SUMS     its hash
    ledger.sqlite, artifacts/, checkpoints/    a ledger of the unit's own
    sealed.sha256  hash of that ledger; written last by the worker
"""

import socket
from pathlib import Path
from typing import Any

from rankscope.errors import IntegrityError, UserError, reading
from rankscope.filesystem import replace_text
from rankscope.hashing import sha256_json, sums_text
from rankscope.records import Record
from rankscope.run.context import Round
from rankscope.run.group_ledger import known_groups
from rankscope.run.prepared import PreparedStudy
from rankscope.run.versions import provenance
from rankscope.run.workers.attempts import SEAL
from rankscope.store import UNIT_ORDER, StoredGroups

LEDGER_FILE = ("ledger.sqlite",)


class UnitOrder(Record):
    config: dict[str, Any]  # The study file
    study_sha256: str
    """Hash of the study as the driver prepared it; a worker that prepares another one refuses."""
    trial_ids: tuple[str, ...]  # Empty: score the base
    round: Round  # How far to go
    versions: dict[str, str]
    """Versions of Rankscope and its libraries on the driver; a worker with others refuses."""
    host_bytes: int  # Planned memory of the worker on its machine, for executors that reserve it


def check_versions(order: UnitOrder) -> None:
    """Raise UserError if this machine would compute a unit with other versions."""
    here = provenance().versions
    if differing := [name for name, there in order.versions.items() if here.get(name) != there]:
        found, expected = (
            ", ".join(f"{name} {of.get(name)}" for name in differing)
            for of in (here, order.versions)
        )
        as_there = f"{expected} as on the driver's machine"
        raise UserError(socket.gethostname(), found, as_there, "install the same versions")


def prepared_sha256(study: PreparedStudy) -> str:
    """Hash everything that results depend on: trials, tasks and the settings of records."""
    ids = [trial.trial_id for trial in study.trials]
    tasks = [record.sha256 for record in study.task_records]
    config = study.config.model_dump(mode="json", exclude={"executor"})
    return sha256_json([ids, tasks, study.base.sha256, config])


def read_unit(folder: Path) -> UnitOrder:
    """Read the order of a unit."""
    file, remedy = folder / UNIT_ORDER, f"to run this unit again, remove {folder}"
    if not file.is_file():
        do = "let 'rankscope run --workers N' make one"
        raise UserError(folder, "no unit of work", "one", do)
    with reading(file, "what a run wrote", IntegrityError, remedy):
        return UnitOrder.model_validate_json(file.read_text(encoding="utf-8"))


def unit_round(order: UnitOrder, study: PreparedStudy, stored: StoredGroups) -> Round:
    """Return the round, with only the groups of a unit. Raises UserError: the study is another
    one."""
    if prepared_sha256(study) != order.study_sha256:
        same = "the same model, data, device and versions of libraries"
        raise UserError(socket.gethostname(), "a study that differs from the driver's", same)
    groups = study.placed(known_groups(stored, study))
    return order.round.model_copy(update={"groups": groups})


def seal_unit(folder: Path) -> None:
    """Mark the results of a unit, whose ledger is closed, as complete."""
    replace_text(folder / SEAL, sums_text(folder, LEDGER_FILE))
