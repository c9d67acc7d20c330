"""The conductor: a study file in, records, a recommendation and a report out."""

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
from rankscope.analyze.checks import check_stored_analyses
from rankscope.config.loader import dump_study, load_study_file, study_values
from rankscope.config.study import StudyConfig
from rankscope.device import (
    keep_freed_memory,
    limit_kernel_cache,
    release_freed_memory,
    use_deterministic,
)
from rankscope.errors import Interrupted
from rankscope.filesystem import replace_text
from rankscope.models.load import load_base
from rankscope.progress import JsonlReporter, NullReporter, ProgressReporter
from rankscope.provenance import provenance
from rankscope.records import Recommendation, StudyRecords
from rankscope.report.study_page import write_study_page
from rankscope.run.group_ledger import settled
from rankscope.run.plan import Plan, make_plan
from rankscope.run.prepare import PreparedStudy, prepare_study
from rankscope.run.runner import Runner
from rankscope.store import Ledger


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
        """Everything that can be wrong before a run: model, data, tokens, labels, contamination.

        Raises:
            UserError: it would not run.
        """
        return prepare_study(self.config)

    def plan(self) -> Plan:
        """Trials, groups, steps, tokens, memory, disk and time, before anything runs.

        Of the model its configuration and tokenizer are enough.
        """
        return make_plan(prepare_study(self.config, weights=False))

    def run(self, out: str | Path, reporter: ProgressReporter | None = None) -> StudyRecords:
        """Run the study into ``out``, or continue it there; always safe to repeat.

        Changes the process: the allocator keeps freed memory, Python's, NumPy's and torch's
        generators are seeded, and torch uses deterministic algorithms.

        Args:
            out: the study's folder; made where there is none.
            reporter: hears of progress; silent by default.

        Raises:
            UserError, StudyLocked, IntegrityError, DiskFull, Interrupted.
        """
        keep_freed_memory()
        limit_kernel_cache()
        use_deterministic(0)
        disable_progress_bar()  # transformers' own bars for reading and writing weights
        out = Path(out)
        begun = time.monotonic()
        inputs = prepare_study(self.config)  # before the folder: a refused study leaves nothing
        with Ledger.open(out, write=True) as ledger, interruptible() as should_stop:
            reporter = JsonlReporter(reporter or NullReporter(), out / "log.jsonl")
            if ledger.trials():
                stored = ledger.load()
                check_stored_analyses(stored, inputs.config.analyze, inputs.trials)
            base = load_base(
                inputs.config.model,
                inputs.device,
                inputs.dtype,
                quantize=inputs.config.quantize,
            )
            release_freed_memory()
            config = study_values(inputs.config)
            ledger.put_study(inputs.config.name, config, base.record, inputs.records, provenance())
            replace_text(out / "study.resolved.yaml", dump_study(inputs.config))
            ledger.put_notes(inputs.notes)
            ledger.put_trials(inputs.trials)
            for note in inputs.notes:
                reporter.note(note)
            inputs = settled(ledger, inputs)
            runner = Runner(ledger, inputs, base, reporter, should_stop)
            try:
                runner.run()
            finally:
                if runner.did_something:  # a run that finds all done costs the study nothing
                    ledger.add_seconds(time.monotonic() - begun)
            return ledger.load()


def write_outputs(out: Path) -> tuple[StudyRecords, Recommendation]:
    """Write ``recommendation.json`` and ``report.html`` from the stored records of a study.

    A file that would not change is left alone.

    Raises:
        UserError: no study there.
        IntegrityError: a stored record or table was altered.
    """
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
    """The first Ctrl-C asks the run to stop at the next safe point; the second aborts.

    Outside the main thread signals belong to somebody else and nothing is changed.

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
        raise Interrupted("aborted; what was finished is stored: the same command continues") from (
            abort
        )
    finally:
        signal.signal(signal.SIGINT, before)
