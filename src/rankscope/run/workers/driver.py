"""The driver's side: groups of a study, and its base, as units of work for worker processes.

Only the driver, the process of ``rankscope run``, writes the ledger of the study. It copies the
stored results of a group's trials into the unit. The worker continues from there and seals the
result; the driver verifies it and copies it back in one transaction. A worker that dies leaves
checkpoints and finished results in its folder, so running the unit again continues.
"""

import shutil
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from rankscope.config.loader import study_values
from rankscope.config.study import StudyConfig
from rankscope.errors import AGAIN, BaseFailed, IntegrityError, OutOfMemory, UserError
from rankscope.filesystem import replace_text
from rankscope.hashing import SUMS, sums_line, sums_text
from rankscope.progress import LOG, logged
from rankscope.records import BASE
from rankscope.run.begin import check_record_settings
from rankscope.run.context import Round, RunContext
from rankscope.run.executors import Executor
from rankscope.run.group_ledger import store_groups
from rankscope.run.groups import BASE_GROUP, Group, group_id, group_label
from rankscope.run.prepared import PreparedStudy
from rankscope.run.versions import provenance
from rankscope.run.workers.attempts import POLL_SECONDS, SEAL, WorkerFailed, is_sealed
from rankscope.run.workers.order import LEDGER_FILE, UnitOrder, prepared_sha256, read_unit
from rankscope.store import (
    CHECKPOINTS,
    UNIT_ORDER,
    UNITS,
    Ledger,
    TrialFailure,
    running_process,
    transfer,
)


def _open_unit(context: RunContext, config: StudyConfig, group: Group) -> Path:
    """Return the folder of a group's unit, ready for a worker; an existing one stays unchanged.

    Args:
        context: the driver's.
        config: the study file as read, before ``auto`` was resolved. Only the engine that writes
            answers is the driver's choice: it is part of a score's key, and a node may have vLLM
            where the driver has none.
        group: trials of the unit, or ``BASE_GROUP``.
    """
    study = context.study
    folder = context.ledger.out / UNITS / (group_id(group) if group else BASE)
    ids = tuple(trial.trial_id for trial in group)
    memory = context.group_ledger.memory(group) if group else None
    evaluate = study.config.evaluate
    order = UnitOrder(
        config=study_values(config.model_copy(update={"evaluate": evaluate})),
        study_sha256=prepared_sha256(study),
        trial_ids=ids,
        round=context.round if group else Round(),
        versions=provenance().versions,
        host_bytes=study.host_bytes(group, memory),
    )
    file, text = folder / UNIT_ORDER, order.model_dump_json()
    if not file.is_file() or file.read_bytes() != text.encode():
        _discard_unit(folder)
        with Ledger.open(folder, write=True, take_over=True) as unit:
            values, base = study_values(study.config), context.base_record
            unit.put_study(study.config.name, values, base, study.task_records, provenance())
            unit.put_trials(group)
            transfer(context.ledger, unit, ids or (BASE,), verified=False)
            reduced = context.group_ledger.reduced(group) if group else {}  # none yet for the base
            store_groups(unit, study, [group] if group else [], reduced)
        replace_text(folder / SUMS, sums_line(text.encode(), UNIT_ORDER))
        replace_text(file, text)
    # After the order: a unit without one is removed, with all that is in it.
    statuses = context.ledger.statuses(ids)
    untrained = [trial for trial in group if statuses[trial.trial_id] == "planned"]
    _move_checkpoint(context.ledger.out, folder, group_id(untrained))
    return folder


def _adopt_unit(context: RunContext, folder: Path) -> None:
    """Copy the results of a sealed unit into the study, and remove its folder.

    Raises IntegrityError: they differ from the worker's.
    """
    if (folder / SEAL).read_bytes() != sums_text(folder, LEDGER_FILE).encode():
        do = "remove this folder to run the unit again"
        found = "a ledger that was changed after it was sealed"
        raise IntegrityError(folder, found, f"the sha256 in {SEAL}", do)
    _adopt_results(context, folder)


def _adopt_results(context: RunContext, folder: Path) -> None:
    """Copy the finished results of a unit of this study, with checkpoints and notes; remove it."""
    order = read_unit(folder)
    for checkpoint in (folder / CHECKPOINTS).glob("*"):
        _move_checkpoint(folder, context.ledger.out, checkpoint.name)
    try:
        with Ledger.open(folder, write=False) as unit:
            transfer(unit, context.ledger, order.trial_ids or (BASE,))
            stored = unit.groups()
    except IntegrityError as error:
        do = f"to run this unit again, remove {folder}"
        raise IntegrityError(error.where, error.found, error.expected, do, error.faults) from error
    assert stored is not None
    if order.trial_ids:
        context.group_ledger.replace(order.trial_ids, stored)
    group = tuple(trial for trial in context.study.candidates if trial.trial_id in order.trial_ids)
    for note in dict.fromkeys(str(event["text"]) for event in logged(folder / LOG, "note")):
        if note not in context.study.notes:
            context.reporter.note(f"{_unit_label(group)}: {note}")
    _discard_unit(folder)


def _unit_label(group: Group) -> str:
    return f"{group[0].task} {group_label(group)}" if group else BASE


def _move_checkpoint(source: Path, target: Path, name: str) -> None:
    """Move the checkpoint of a group between the folders of two ledgers, if there is one."""
    moved = target / CHECKPOINTS / name
    if (source / CHECKPOINTS / name).is_dir() and not moved.exists():
        moved.parent.mkdir(exist_ok=True)
        (source / CHECKPOINTS / name).rename(moved)


def _discard_unit(folder: Path) -> None:
    """Remove a unit's folder, the order first: without an order, leftovers of a crash are
    garbage."""
    (folder / UNIT_ORDER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def adopt_units(context: RunContext, *, keep_unsealed: bool) -> None:
    """Adopt the finished results of earlier workers; remove units of another form of the study.

    ``keep_unsealed`` leaves unfinished units to the workers of this run.
    """
    for folder in sorted((context.ledger.out / UNITS).glob("*/")):
        _wait_for_worker(context, folder)
        if not _belongs_to(folder, context.study):
            _discard_unit(folder)
        elif is_sealed(folder):
            context.did_work = True
            _adopt_unit(context, folder)
        elif not keep_unsealed or not _is_of_now(folder, context.study):
            context.did_work = True
            _adopt_results(context, folder)


def _is_of_now(folder: Path, study: PreparedStudy) -> bool:
    """Whether a unit's study and versions are those of this run, so that it may continue."""
    order = read_unit(folder)
    same_study = order.study_sha256 == prepared_sha256(study)
    return same_study and order.versions == provenance().versions


def _belongs_to(folder: Path, study: PreparedStudy) -> bool:
    """Whether a study can take over the results of a unit: it may have gained trials and tasks."""
    if not (folder / UNIT_ORDER).is_file():
        return False
    order = read_unit(folder)
    if order.study_sha256 == prepared_sha256(study):
        return True
    if not set(order.trial_ids) <= {trial.trial_id for trial in study.candidates}:
        return False
    with Ledger.open(folder, write=False) as unit:
        try:
            check_record_settings(unit, study)
        except UserError:
            return False
    return True


def _wait_for_worker(context: RunContext, folder: Path) -> None:
    """Wait until no worker of a dead driver holds a unit; such workers stop by themselves.

    Raises Interrupted: the user asked to stop.
    """
    is_noted = False
    while (folder / "ledger.sqlite").is_file() and not is_sealed(folder):
        process = running_process(folder)
        if process is None:
            return
        if not is_noted:
            context.reporter.note(f"waiting for worker {process} of an earlier run to end")
            is_noted = True
        context.check_stop()
        time.sleep(0.2)


def run_units(
    context: RunContext, config: StudyConfig, groups: list[Group], executor: Executor
) -> None:
    """Run each group as a unit, and commit its results as soon as it is sealed.

    Args:
        context: the driver's context.
        config: the study file as read.
        groups: those with something left to do, and ``BASE_GROUP``.
        executor: where they run.

    Raises:
        Interrupted: the user asked to stop; workers have saved their state.
        RankscopeError: a worker met an error that concerns the whole study.
    """
    if not groups:
        return
    context.label = f"{context.round.label} all groups".strip()
    context.begin_stage("units", len(groups))
    pending: dict[Future[None], tuple[Path, Group]] = {}
    short: Path | None = None
    may_be_short = len(groups) > 1
    try:
        for group in groups:
            folder = _open_unit(context, config, group)
            pending[executor.submit(folder)] = (folder, group)
        while pending:
            context.check_stop()
            for future in wait(pending, POLL_SECONDS, FIRST_COMPLETED).done:
                folder, group = pending.pop(future)
                is_short = isinstance(future.exception(), OutOfMemory)
                if may_be_short and not group and is_short:
                    short = folder
                else:
                    _finish_unit(context, future, folder, group)
            if short and not pending:  # other units may have taken the base's memory
                pending[executor.submit(short)] = (short, BASE_GROUP)
                short, may_be_short = None, False
    except BaseException:
        executor.stop()
        executor.close()
        raise
    context.reporter.finish()


def _finish_unit(context: RunContext, future: Future[None], folder: Path, group: Group) -> None:
    """Commit the results of a unit.

    If its workers kept dying, commit their finished results, and mark the trials without weights as
    failed. Without the base's scores there is no study.
    """
    try:
        future.result()
    except WorkerFailed as error:
        # The process that started the worker may have been killed without it.
        _wait_for_worker(context, folder)
        if not group:  # the folder stays, for its worker's messages
            do = f"see {folder / 'worker.log'}, {AGAIN}"
            raise BaseFailed(f"scoring the base: {error}", do=do) from error
        _adopt_results(context, folder)
        statuses = context.ledger.statuses()
        untrained = [t.trial_id for t in group if statuses[t.trial_id] == "planned"]
        context.ledger.fail_trials([TrialFailure(i, error.status, str(error)) for i in untrained])
        context.reporter.note(f"{_unit_label(group)}: {error}")
    else:
        _adopt_unit(context, folder)
    context.pieces_done += 1
    context.reporter.advance(context.pieces_done, _unit_label(group))
