"""A study: from its file to records, a recommendation and a report."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from transformers.utils.logging import disable_progress_bar

from rankscope.advise.recommend import recommend
from rankscope.config.loader import dump_study, load_study_file, study_values
from rankscope.config.study import StudyConfig
from rankscope.device import (
    keep_freed_memory,
    limit_kernel_cache,
    release_freed_memory,
    use_deterministic,
)
from rankscope.errors import Interrupted, UserError
from rankscope.filesystem import replace_text
from rankscope.models.load import load_base
from rankscope.progress import JsonlReporter, NullReporter, ProgressReporter
from rankscope.provenance import provenance
from rankscope.records import Recommendation, StudyRecords, trial_of
from rankscope.report.study_page import write_study_page
from rankscope.run.conductor import Conductor
from rankscope.run.context import RunContext
from rankscope.run.executors import Executor, run_units
from rankscope.run.group_ledger import GroupLedger
from rankscope.run.plan import Plan, make_plan
from rankscope.run.prepare import prepare_study
from rankscope.run.prepared import PreparedStudy
from rankscope.run.units import adopt_units
from rankscope.store import UNITS, Ledger


class Study:
    """One study file, ready to check, plan and run.

    >>> study = Study.load("study.yaml")
    >>> records = study.run("studies/mine")
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a study file; ``overrides`` are ``key=value`` as of ``--set``.

        Raises:
            UserError: the file cannot be read or used; every fault is named with its line.
        """
        return cls(load_study_file(Path(path), overrides))

    def check(self) -> PreparedStudy:
        """Check model, data, tokens, labels and contamination, without loading weights.

        Raises:
            UserError: the study would not run.
        """
        return prepare_study(self.config)

    def plan(self) -> Plan:
        """Trials, groups, steps, tokens, memory, disk and time, before anything runs.

        The model's configuration and tokenizer are enough.
        """
        return make_plan(prepare_study(self.config, weights=False))

    def run(
        self,
        out: str | Path,
        reporter: ProgressReporter | None = None,
        executor: Executor | None = None,
    ) -> StudyRecords:
        """Run the study into ``out``, or continue it there; always safe to repeat.

        Changes the process: the allocator keeps freed memory, the generators of Python, NumPy and
        torch are seeded, and torch uses deterministic algorithms.

        Args:
            out: the study's folder, created if needed.
            reporter: of progress; silent by default.
            executor: where groups run, see ``run/executors``; by default in this process.

        Raises:
            UserError, StudyLocked, IntegrityError, DiskFull, Interrupted.
        """
        prepare_process()
        out = Path(out)
        begun = time.monotonic()
        study = prepare_study(self.config)  # before the folder: a refused study leaves nothing
        with Ledger.open(out, write=True) as ledger, interruptible() as should_stop:
            reporter = JsonlReporter(reporter or NullReporter(), out / "log.jsonl")
            context = begin_run(study, ledger, reporter, should_stop)
            context.use_stored_groups()
            conductor = Conductor(context)
            try:
                conductor.run_base()
                adopt_units(context, keep_unsealed=executor is not None)
                if executor is None:
                    conductor.run_groups()
                else:
                    groups = conductor.unfinished_groups()
                    # Workers load the base themselves.
                    context.base.model.to("meta")  # type: ignore[arg-type]
                    release_freed_memory()
                    run_units(context, self.config, groups, executor)
                    conductor.remove_orphans()
                shutil.rmtree(out / UNITS, ignore_errors=True)
            finally:
                if context.did_work:  # a run that finds nothing to do costs the study nothing
                    ledger.add_seconds(time.monotonic() - begun)
            return ledger.load()


def prepare_process() -> None:
    """Set allocator, seeds and deterministic algorithms of this process."""
    keep_freed_memory()
    limit_kernel_cache()
    use_deterministic(0)
    disable_progress_bar()  # transformers' own bars for reading and writing weights


def begin_run(
    study: PreparedStudy,
    ledger: Ledger,
    reporter: ProgressReporter,
    should_stop: Callable[[], bool],
) -> RunContext:
    """Load the base and store what the study is made of, without its groups.

    Raises:
        UserError: stored results would not be comparable with new ones.
    """
    check_record_settings(ledger, study)
    config = study.config
    base = load_base(config.model, study.device, study.dtype, quantize=config.quantize)
    release_freed_memory()
    values = study_values(config)
    ledger.put_study(config.name, values, base.record, study.task_records, provenance())
    replace_text(ledger.out / "study.resolved.yaml", dump_study(config))
    ledger.put_notes(study.notes)
    ledger.put_trials(study.trials)
    for note in study.notes:
        reporter.note(note)
    groups = GroupLedger(ledger, study)
    return RunContext(study, ledger, base, reporter, should_stop, groups)


def check_record_settings(ledger: Ledger, study: PreparedStudy) -> None:
    """Stored records must have been made with the settings that the study file has now.

    Raises:
        UserError: results of two definitions would be compared.
    """
    trials = {trial.trial_id for trial in study.trials}
    for kind, model_id, stored in ledger.record_settings():
        if trial_of(model_id) not in trials:
            continue
        before, now = json.loads(stored), study.record_settings(kind, model_id)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise UserError(
                    f"{study.config.name}: stored {kind} results of {model_id} were made with "
                    f"{name} {before.get(name)!r}, the study file now gives {now.get(name)!r}; "
                    "use another --out"
                )


def write_outputs(
    out: Path, study: StudyRecords | None = None
) -> tuple[StudyRecords, Recommendation]:
    """Write ``recommendation.json`` and ``report.html`` from the stored records of a study.

    ``study`` are its records, if they are loaded already. An unchanged file is not written again.

    Raises:
        UserError: no study there.
        IntegrityError: a stored record or table was altered.
    """
    if study is None:
        with Ledger.open(out, write=False) as ledger:
            study = ledger.load()
    recommendation = recommend(study)
    replace_text(out / "recommendation.json", recommendation.model_dump_json(indent=2) + "\n")
    made = out / "report.html.new"
    write_study_page(study, recommendation, made)
    replace_text(out / "report.html", made.read_bytes().decode())
    made.unlink()
    return study, recommendation


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C requests a stop at the next safe point; the second aborts.

    Signals are left alone outside the main thread.

    Raises:
        Interrupted: the second Ctrl-C came.
    """
    asked = threading.Event()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield asked.is_set
    except KeyboardInterrupt as abort:
        raise Interrupted("aborted; finished results are stored: the same command continues") from (
            abort
        )
    finally:
        signal.signal(signal.SIGINT, before)
