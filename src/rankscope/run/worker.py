"""What ``rankscope work OUT UNIT`` runs: one unit, from its folder to its seal."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from rankscope.config.study import StudyConfig
from rankscope.errors import AGAIN, CONTINUES, Interrupted, OutOfMemory, StudyLocked, UserError
from rankscope.models.load import load_base
from rankscope.progress import LOG, JsonlReporter, NullReporter
from rankscope.run.begin import begin_run, interruptible, prepare_process
from rankscope.run.conductor import Conductor
from rankscope.run.prepare import prepare
from rankscope.run.shards import started_shards
from rankscope.run.stages.self_replay import use_sampled_rows
from rankscope.run.starter import DRIVER
from rankscope.run.units import check_versions, read_unit, seal_unit, unit_study
from rankscope.run.worker_process import KILLED_FOR_MEMORY, is_sealed
from rankscope.store import UNITS, Ledger


def work(out: Path, unit: str) -> None:
    """Bring a unit to its end, from where an earlier worker stopped; always safe to repeat. Raises
    UserError: no such unit, or this machine prepares another study than the driver; OutOfMemory:
    scoring the base took more than there is, or earlier groups kept memory; Interrupted: a stop was
    requested, or the driver is gone."""
    folder = out / UNITS / unit
    order = read_unit(folder)
    if is_sealed(folder):
        return
    check_versions(order)
    prepare_process()
    try:
        config = StudyConfig.model_validate(order.config)
    except ValidationError as error:
        raise UserError(
            f"unit {unit}",
            f"a study file that only its driver can read ({error})",
            "methods, scorers and tasks that every process knows",
            "run without --workers",
        ) from error
    study = prepare(config)
    driver = os.environ.get(DRIVER)
    with interruptible() as is_stop_requested:

        def should_stop() -> bool:
            # Nobody waits for the results of a worker whose driver died; the next one continues.
            is_orphan = driver is not None and str(os.getppid()) != driver
            return is_stop_requested() or is_orphan

        with (
            _open_when_free(folder, should_stop) as ledger,
            started_shards(config.train.devices, study.device) as shards,
        ):
            stored = ledger.groups()
            assert stored is not None
            study = unit_study(order, study, stored)
            reporter = JsonlReporter(NullReporter(), folder / LOG)
            load = partial(load_base, shards=shards)
            context = begin_run(study, ledger, reporter, should_stop, load, ledger.trials())
            context.allow_mixed = True  # the driver has decided that
            context.round = order.round
            context.killed_for_memory = KILLED_FOR_MEMORY in os.environ
            conductor = Conductor(context)
            if order.trial_ids:
                use_sampled_rows(context)
                conductor.run_groups()
            elif context.killed_for_memory:
                do = "free memory, use fewer workers or lower evaluate.batch_tokens"
                what = "scoring the base: out of memory: it ended the earlier workers"
                raise OutOfMemory(what, do=f"{do}, {AGAIN}")
            else:
                conductor.run_base()
    seal_unit(folder)


def _open_when_free(folder: Path, should_stop: Callable[[], bool]) -> Ledger:
    """Open a unit's ledger once the worker of a driver that died has let go of it. Raises
    Interrupted: a stop was requested meanwhile."""
    while not should_stop():
        try:
            return Ledger.open(folder, write=True, take_over=True)
        except StudyLocked:
            time.sleep(0.1)
    raise Interrupted("unit", "a request to stop before it began", do=CONTINUES)
