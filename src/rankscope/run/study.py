"""A study, from its file to records; ``outputs.py`` writes recommendation and report from them.

Reading a study file needs no torch. The code that checks, plans and runs it is imported on call.
"""

import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import closing, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rankscope.config.loader import load_study_file
from rankscope.config.study import StudyConfig
from rankscope.data.task_source import check_sources
from rankscope.errors import UserError, installed, reporting_shortages
from rankscope.filesystem import user_path
from rankscope.models.model_folder import model_folder
from rankscope.progress import LOG, JsonlReporter, ProgressReporter
from rankscope.records import BASE, StudyRecords
from rankscope.registry import parts
from rankscope.run.executors import Executor, executor_section, start_executor, withdraw_units
from rankscope.store import LEDGER, UNITS, Ledger

if TYPE_CHECKING:
    from rankscope.run.context import RunContext
    from rankscope.run.plan import Plan
    from rankscope.run.prepared import PreparedStudy


class Study:
    """One study file, ready to check, plan and run.

    >>> study = Study.load("study.yaml")
    >>> records = study.run("studies/mine")
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a study file; ``overrides`` are ``key=value``, as for ``--set``.

        Raises:
            UserError: the file cannot be read or used; every fault is named with its line.
        """
        config = load_study_file(Path(path), overrides)
        check_sources(config)
        if config.model.hub is None:
            model_folder(config.model, weights=False)
        return cls(config)

    def check(self, reporter: ProgressReporter | None = None) -> "PreparedStudy":
        """Check model, data, tokens, labels and contamination, without loading weights.

        Raises:
            UserError: the study would not run.
        """
        from rankscope.run.prepare import prepare

        return prepare(self.config, reporter=reporter)

    def plan(
        self,
        reporter: ProgressReporter | None = None,
        device: str = "here",
        gpus: int = 1,
        tokens_per_second: float | None = None,
    ) -> "Plan":
        """Plan trials, groups, steps, tokens, memory, disk and time, before anything runs.

        The model's configuration and tokenizer are enough.

        Args:
            reporter: receives progress; silent by default.
            device: ``here``, or a machine of ``run/machines.py``.
            gpus: number of these devices, each with its own groups.
            tokens_per_second: the pace of training; by default it is measured or published.

        Raises:
            UserError: the study or the device cannot be planned.
        """
        from rankscope.run.machines import find_machine
        from rankscope.run.plan import make_plan
        from rankscope.run.prepare import prepare

        machine = find_machine(device)
        prepared = prepare(self.config, reporter, machine=machine, is_plan=True)
        return make_plan(prepared, machine, gpus, tokens_per_second)

    def batch_script(self, out: str | Path, num_workers: int | None = None) -> str:
        """Return the batch script by which a first run into ``out`` would submit all groups.

        Nothing is written or submitted.

        Raises:
            UserError: the study would not run, or its executor submits none.
        """
        from rankscope.run.groups import BASE_GROUP, group_id

        study, chosen = self.check(), self.config.executor
        settings = (chosen or executor_section().model_validate("local")).settings
        groups, place = (BASE_GROUP, *study.groups), user_path(out) / UNITS
        folders = [place / (group_id(group) if group else BASE) for group in groups]
        host_bytes = max(map(study.host_bytes, groups))
        return settings.script(folders, self.config.train.devices, host_bytes, num_workers)

    def run(
        self,
        out: str | Path,
        reporter: ProgressReporter | None = None,
        executor: "Executor | None" = None,
        retry: Collection[str] = (),
        *,
        allow_mixed: bool = False,
        take_over: bool = False,
        anyway: bool = False,
        track: str | None = None,
    ) -> StudyRecords:
        """Run the study into ``out``, or continue it there; always safe to repeat.

        Changes the process: the allocator keeps freed memory, the generators of Python, NumPy and
        torch are seeded, and torch uses deterministic algorithms.

        Args:
            out: the study's folder, created if needed.
            reporter: receives progress; silent by default.
            executor: by default the study file's, else local for several devices, else none.
            retry: statuses such as ``oom``, ids of trials and ``base``: computed again.
            allow_mixed: add results to those of other versions of libraries or code.
            take_over: run on a network file system, or after a run elsewhere that was not closed.
            anyway: begin with a budget of time that is too short for an answer.
            track: the tracker that gets a run for each trial: mlflow, trackio or wandb.

        Raises UserError, StudyLocked, IntegrityError, DiskFull, OutOfMemory, BaseFailed or
        Interrupted.
        """
        from rankscope.run.begin import begin_run, interruptible, prepare_process
        from rankscope.run.plan import check_time
        from rankscope.run.prepare import prepare

        prepare_process()
        out, begun, reporter = user_path(out), time.monotonic(), reporter or ProgressReporter()
        executor = executor or start_executor(self.config)
        with reporting_shortages(out), closing(executor) if executor else nullcontext():
            # Before the folder: a refused study leaves nothing.
            tracker = _tracker_class(track) if track else None
            study = prepare(self.config, reporter, executor.num_local if executor else 1)
            if not (anyway or (out / LEDGER).exists()):
                check_time(study)
            opened = Ledger.open(out, write=True, take_over=take_over)
            with opened as ledger, interruptible() as is_stop_requested:

                def should_stop() -> bool:
                    ledger.check_in_place()
                    return is_stop_requested()

                log, elsewhere = JsonlReporter(reporter, out / LOG), executor is not None
                context = begin_run(study, ledger, log, should_stop, has_executor=elsewhere)
                context.allow_mixed, context.counted_until = allow_mixed, begun
                with tracker(log, ledger) if tracker else nullcontext(log) as context.reporter:
                    try:
                        self._run_all(context, executor, retry)
                        shutil.rmtree(out / UNITS, ignore_errors=True)
                    finally:
                        context.count_time()
                return ledger.load()

    def _run_all(
        self, context: "RunContext", executor: "Executor | None", retry: Collection[str]
    ) -> None:
        """Score the base and bring every group to its end, here or with the executor."""
        from rankscope.run.begin import plan_again
        from rankscope.run.conductor import Conductor
        from rankscope.run.given import store_given
        from rankscope.run.groups import BASE_GROUP
        from rankscope.run.search import run_rounds
        from rankscope.run.stages import rows_stages, use_rows
        from rankscope.run.workers.driver import adopt_units, run_units

        if retry:  # units have statuses and results of their own
            adopt_units(context, keep_unsealed=False)
            plan_again(context.ledger, retry)
        conductor = Conductor(context)
        withdraw_units(context.ledger.out / UNITS, executor)
        adopt_units(context, keep_unsealed=executor is not None)
        store_given(context)
        if executor is None:
            conductor.run_base()
            run_rounds(context, conductor.run_groups)
            return
        # Another executor or another time limit does not make another unit.
        config = self.config.model_copy(update={"executor": None})
        if any(stage.missing() for stage in rows_stages(context)):  # other units need them
            run_units(context, config, [BASE_GROUP], executor)
        use_rows(context)

        def run_groups() -> None:
            run_units(context, config, conductor.unfinished_groups(), executor)
            conductor.remove_orphans()

        run_rounds(context, run_groups)


def _tracker_class(name: str) -> type[Any]:
    """Return the reporter that sends a study to a tracker.

    Raises UserError: there is none of this name, or its library is not installed.
    """
    known = parts(ProgressReporter)
    if name not in known:
        raise UserError("--track", repr(name), f"one of {', '.join(known) or 'none'}")
    with installed(f"--track {name}", "track"):
        import_module(name)
    return known[name]
