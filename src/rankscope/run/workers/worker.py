"""The worker's side, ``rankscope work OUT UNIT``: one unit, from its folder to its seal.

On several devices it is the first of several shards (``models/sharding.py``).
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from rankscope.config.study import StudyConfig
from rankscope.errors import (
    AGAIN,
    CONTINUES,
    Interrupted,
    OutOfMemory,
    StudyLocked,
    UserError,
    reading,
)
from rankscope.models.sharding import ONE_SHARD, sharding
from rankscope.progress import LOG, JsonlReporter, ProgressReporter
from rankscope.run.begin import begin_run, interruptible, prepare_process
from rankscope.run.conductor import Conductor
from rankscope.run.prepare import prepare
from rankscope.run.stages import use_rows
from rankscope.run.workers.attempts import KILLED_FOR_MEMORY, is_sealed
from rankscope.run.workers.order import check_versions, read_unit, seal_unit, unit_round
from rankscope.run.workers.starter import DRIVER
from rankscope.store import UNITS, Ledger


def work(out: Path, unit: str) -> None:
    """Bring a unit to its end, from where an earlier worker stopped; always safe to repeat.

    Raises UserError: there is no such unit, or this machine prepares another study than the driver.
    Raises OutOfMemory: scoring the base needs more memory than there is, or earlier groups kept
    memory. Raises Interrupted: a stop was requested, or the driver is gone.
    """
    folder = out / UNITS / unit
    order = read_unit(folder)
    if is_sealed(folder):
        return
    check_versions(order)
    prepare_process()
    known = "methods, scorers and tasks that every process knows"
    with reading(f"unit {unit}: the study file", known, do="run without --workers"):
        config = StudyConfig.model_validate(order.config)
    study = prepare(config)
    devices, found = config.train.devices, torch.cuda.device_count()
    if study.device.type == "cuda" and found < devices:
        do = f"give each unit {devices} GPUs, on SLURM by 'gres: gpu:{devices}'"
        raise UserError(socket.gethostname(), f"{found} GPUs", f"train.devices: {devices}", do)
    driver, one = os.environ.get(DRIVER), nullcontext(ONE_SHARD)
    with interruptible() as is_stop_requested:

        def should_stop() -> bool:
            # Nobody waits for the results of a worker whose driver died; the next one continues.
            is_orphan = driver is not None and str(os.getppid()) != driver
            return is_stop_requested() or is_orphan

        with (
            _open_when_free(folder, should_stop) as ledger,
            sharding().started(devices, study.device) if devices > 1 else one as shards,
        ):
            stored = ledger.groups()
            assert stored is not None
            this_round = unit_round(order, study, stored)
            was_killed = KILLED_FOR_MEMORY in os.environ
            # Groups decide whether each shard holds the base whole, unless that was too much
            # before.
            memory = study.grouping.model
            was_whole, memory.replicates = memory.replicates, memory.replicates and not was_killed
            if devices > 1:
                shards.replicates = memory.replicates
            reporter = JsonlReporter(ProgressReporter(), folder / LOG)
            context = begin_run(study, ledger, reporter, should_stop, this_round, shards=shards)
            context.allow_mixed = True  # the driver has decided that
            context.killed_for_memory = was_killed
            conductor = Conductor(context)
            if order.trial_ids:
                use_rows(context)
                conductor.run_groups()
            elif was_killed and not was_whole:
                do = "free memory, use fewer workers or lower evaluate.batch_tokens"
                what = "scoring the base: out of memory: it ended the earlier workers"
                raise OutOfMemory(what, do=f"{do}, {AGAIN}")
            else:
                conductor.run_base()
    seal_unit(folder)


def _open_when_free(folder: Path, should_stop: Callable[[], bool]) -> Ledger:
    """Open a unit's ledger once the worker of a dead driver has released it.

    Raises Interrupted: a stop was requested meanwhile.
    """
    while not should_stop():
        try:
            return Ledger.open(folder, write=True, take_over=True)
        except StudyLocked:
            time.sleep(0.1)
    raise Interrupted("unit", "a request to stop before it began", do=CONTINUES)
