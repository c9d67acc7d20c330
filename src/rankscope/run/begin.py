"""What the driver and its workers do before the first stage: process settings, base, ledger."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from transformers.utils.logging import disable_progress_bar

from rankscope.config.loader import dump_study, study_values
from rankscope.device import (
    keep_freed_memory,
    limit_kernel_cache,
    release_freed_memory,
    use_deterministic,
)
from rankscope.errors import Interrupted, UserError
from rankscope.filesystem import replace_text
from rankscope.models.load import load_base
from rankscope.progress import ProgressReporter
from rankscope.provenance import provenance
from rankscope.records import trial_of
from rankscope.run.context import RunContext
from rankscope.run.group_ledger import GroupLedger
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger


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


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM requests a stop at the next safe point; the second aborts.

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
    signals = (signal.SIGINT, signal.SIGTERM)  # the second is what a scheduler sends
    before = [signal.signal(number, on_interrupt) for number in signals]
    try:
        yield asked.is_set
    except KeyboardInterrupt as abort:
        raise Interrupted("aborted; finished results are stored: the same command continues") from (
            abort
        )
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
