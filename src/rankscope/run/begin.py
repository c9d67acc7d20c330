"""Work of the driver and its workers before the first stage: process settings, base, ledger."""

import json
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from transformers.utils.logging import disable_progress_bar

from rankscope.config.loader import dump_study, study_values
from rankscope.config.study import StudyConfig
from rankscope.device import keep_freed_memory, limit_kernel_cache, use_deterministic
from rankscope.errors import CONTINUES, STOP_SIGNALS, Interrupted, UserError
from rankscope.filesystem import replace_text
from rankscope.models.base import Base
from rankscope.models.kernels import use_kernels
from rankscope.models.load import load_base, model_record
from rankscope.models.parameters import model_on_meta
from rankscope.models.sharding import ONE_SHARD, Shards
from rankscope.progress import ProgressReporter
from rankscope.records import BASE, FAILED, ModelRecord, TaskRecord
from rankscope.run.context import Round, RunContext
from rankscope.run.group_ledger import GroupLedger
from rankscope.run.prepared import PreparedStudy
from rankscope.run.versions import provenance
from rankscope.store import Ledger


def prepare_process() -> None:
    """Set allocator, seeds, deterministic algorithms and attention of this process."""
    keep_freed_memory()
    limit_kernel_cache()
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same variable
        # Blocks grow, in place of leaving holes that no tensor fits into. Read when CUDA starts.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # cuDNN's attention builds a graph for every shape, and widths change with every pass.
    torch.backends.cuda.enable_cudnn_sdp(False)
    use_deterministic(0)
    disable_progress_bar()  # transformers' own bars for reading and writing weights


def begin_run(
    study: PreparedStudy,
    ledger: Ledger,
    reporter: ProgressReporter,
    should_stop: Callable[[], bool],
    unit: Round | None = None,
    *,
    has_executor: bool = False,
    shards: Shards = ONE_SHARD,
) -> RunContext:
    """Store the parts of the study, without its groups; a ``unit`` has its trials already.

    Raises UserError: stored results would not be comparable with new ones, or the base cannot be
    used.
    """
    check_record_settings(ledger, study)
    config, before, notes = study.config, ledger.statuses(), study.notes
    if (kernels := ledger.kernels()) not in (None, config.train.kernels):
        mixed = f"{config.train.kernels} now, {kernels} before: results differ by rounding"
        notes = (*notes, f"train.kernels: {mixed}")
    tokenizer = study.data.encoder.tokenizer  # one of 262,144 entries takes .25 GB
    source = (config.model, study.device, study.dtype)
    model, sha256 = model_on_meta(study.base.config), study.base.sha256
    record = model_record(*source, model, tokenizer, sha256, config.quantize)

    def load() -> Base:
        base = load_base(*source, config.quantize, tokenizer, shards)
        use_kernels(base.model, config.train.kernels)
        return base

    groups = GroupLedger(ledger, study)
    context = RunContext(
        study, ledger, record, load, reporter, should_stop, groups, unit or Round()
    )
    if not (has_executor or ledger.artifacts()):  # a base that cannot be loaded leaves no study
        context.load_base()
    store_study(ledger, config, record, study.task_records, notes)
    shown = [*study.trials, *(t for t in study.beyond if t.trial_id in before)]
    num_new = ledger.put_trials(shown if unit is None else ledger.trials())
    if before and num_new:
        gone = len(before.keys() - ledger.statuses().keys())
        reporter.note(
            f"the study changed: {num_new} of its {len(study.trials)} trials are new in this "
            f"folder; {gone} that it no longer has are kept there and not shown"
        )
    for note in notes:
        reporter.note(note)
    return context


def store_study(
    ledger: Ledger,
    config: StudyConfig,
    model: ModelRecord,
    tasks: Sequence[TaskRecord],
    notes: Sequence[str],
) -> None:
    """Store all parts of a study but its trials. Raises UserError like ``put_study``."""
    ledger.put_study(config.name, study_values(config), model, tasks, provenance())
    replace_text(ledger.out / "study.resolved.yaml", dump_study(config))
    ledger.put_notes(notes)


def plan_again(ledger: Ledger, retry: Collection[str]) -> None:
    """Plan trials again, by a status such as ``oom`` or by their id.

    Raises UserError: a word is neither.
    """
    statuses = ledger.statuses()
    named = [word for word in retry if word not in FAILED]
    for word in named:
        if word not in statuses and word != BASE:
            expected = f"{', '.join(sorted(FAILED))}, {BASE} or the id of a trial"
            do = f"'rankscope status {ledger.out}' lists them"
            raise UserError(f"{ledger.out}: --retry", f"{word!r}", expected, do)
    ledger.retry_trials([trial for trial, status in statuses.items() if status in retry])
    if named:
        ledger.repeat_trials(named)


def check_record_settings(ledger: Ledger, study: PreparedStudy) -> None:
    """Check that stored records were made with the current settings of the study file.

    Raises UserError: results of two definitions would be compared.
    """
    trials = {trial.trial_id for trial in study.candidates}
    for kind, trial_id, stored in ledger.record_settings():
        if trial_id not in trials:
            continue
        before, now = json.loads(stored), study.record_settings(kind, trial_id)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise UserError(
                    study.config.name,
                    f"stored {kind} results of {trial_id} that were made with {name} "
                    f"{before.get(name)!r}",
                    f"{now.get(name)!r}, as the study file says now",
                    "use another --out",
                )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let the first of ``STOP_SIGNALS`` request a stop at the next safe point.

    A second Ctrl-C aborts. Signals that the process ignores stay ignored, such as SIGHUP under
    ``nohup``. Outside the main thread all signals keep their handlers. Raises Interrupted: the
    second Ctrl-C came.
    """
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        # A scheduler may send several signals; they must not cut the checkpoint short.
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield asked.is_set
    except KeyboardInterrupt as abort:
        do = f"what was finished is stored: {CONTINUES}"
        raise Interrupted("this command", "a second request to stop", do=do) from abort
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
