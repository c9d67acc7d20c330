"""Progress of a run: reporters for a terminal, a log, or none."""

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rankscope.formatting import rough_duration, safe_text, shortened_lines


class ProgressReporter:
    """Receives the progress of a run; every method must be cheap and must not raise.

    This base class reports nothing, which is the default of the Python API.
    """

    name = ""  # Name of the stage
    total = 0
    begun = last_line = 0.0  # When the stage began, and when a line of it was written last

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of ``total`` steps."""
        self.name, self.total, self.begun = name, total, time.monotonic()

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        """Note that ``done`` steps of the stage are done; ``values`` are the numbers in
        ``detail``."""

    def finish(self, detail: str = "") -> None:
        """End the stage."""

    def note(self, text: str) -> None:
        """Report something that a reader of the results must know."""


class ConsoleReporter(ProgressReporter):
    """Shows the present stage on a terminal; otherwise one plain line per stage, and one every 10 s
    within it."""

    LINE_SECONDS = 10.0

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=console,
            disable=not console.is_terminal,
            redirect_stdout=False,  # else the console writes its own codes to HarmlessStream
            redirect_stderr=False,
        )
        self.bar: TaskID | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def stage(self, name: str, total: int) -> None:
        super().stage(safe_text(name), total)
        self.last_line = self.begun
        self.bar = self.bars.add_task(self.name, total=max(1, total), detail="")

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        if self.bar is None:
            return
        self.bars.update(self.bar, completed=done, detail=safe_text(detail))
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line >= self.LINE_SECONDS:
            self.last_line = now
            self.line(f"{self.name}: {done} of {self.total} done", detail)

    def finish(self, detail: str = "") -> None:
        if self.bar is None:
            return
        self.bars.remove_task(self.bar)
        self.bar = None
        if not self.console.is_terminal:
            self.line(f"{self.name}: done in {time.monotonic() - self.begun:.1f} s", detail)

    def note(self, text: str) -> None:
        self.line(f"note: {text}", style="yellow")

    def line(self, text: str, detail: str = "", style: str | None = None) -> None:
        shown = safe_text(shortened_lines(f"{text}  {detail}".rstrip()))
        self.console.print(shown, markup=False, highlight=False, soft_wrap=True, style=style)


LOG = "log.jsonl"  # Where a run writes its events, in its folder


def logged(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yield a log's events of one kind, oldest first; a line cut short by a crash is left out."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] == kind:
                    yield event


class JsonlReporter(ProgressReporter):
    """Writes JSON lines, and forwards everything to another reporter.

    Numbers are separate fields: ``done``, ``seconds``, and in training ``trials``,
    ``tokens_per_second`` and ``seconds_left``. ``loss_low`` and ``loss_high`` are those over the
    group's trials (nats per token). ``study_seconds_left`` is of the whole study, and null until it
    can be estimated.
    """

    LINE_SECONDS = 1.0

    def __init__(self, inner: ProgressReporter, path: Path) -> None:
        self.inner = inner
        self.path = path

    def write(self, event: str, **values: object) -> None:
        """Append one event with its time; a log that cannot be written does not stop a study."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        # Characters beyond ASCII are escaped, for those who look at the log in a terminal.
        line = json.dumps({"time": now, "event": event, **values})
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def stage(self, name: str, total: int) -> None:
        super().stage(name, total)
        self.write("stage", name=name, total=total)
        self.inner.stage(name, total)

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        now = time.monotonic()
        if now - self.last_line >= self.LINE_SECONDS:
            self.last_line = now
            numbers: dict[str, object] = dict(values) or {"detail": detail}
            self.write("advance", name=self.name, done=done, total=self.total, **numbers)
        self.inner.advance(done, detail, **values)

    def finish(self, detail: str = "") -> None:
        seconds = round(time.monotonic() - self.begun, 3)
        self.write("finish", name=self.name, seconds=seconds, detail=detail)
        self.inner.finish(detail)

    def note(self, text: str) -> None:
        self.write("note", text=shortened_lines(text))
        self.inner.note(text)


class SpeedMeter:
    """Reports a group's steps: lowest and highest loss, tokens per second, time left.

    The speed is that of the last ``WINDOW`` steps: the first ones are slow, and it changes as
    trials leave the group.
    """

    WINDOW = 20

    def __init__(
        self,
        reporter: ProgressReporter,
        num_trials: int,
        clock: Callable[[], float] = time.monotonic,
        study: Any = None,
    ) -> None:
        """``study`` estimates when the whole study ends, see ``run/study_clock.py``."""
        self.reporter = reporter
        self.num_trials = num_trials
        self.study = study
        self.clock = clock
        self.paused_seconds = 0.0
        # Times at which steps ended, without pauses, and the tokens seen until then.
        self.recent = deque([(clock(), 0)], maxlen=self.WINDOW + 1)

    def __call__(self, step: int, num_steps: int, num_tokens: int, losses: list[float]) -> None:
        if self.study and len(self.recent) == 1:
            self.study.begin_training((step - 1) / num_steps)
        self.recent.append((self.clock() - self.paused_seconds, self.recent[-1][1] + num_tokens))
        (first, before), (last, after) = self.recent[0], self.recent[-1]
        seconds = max(1e-9, last - first)
        speed = (after - before) / seconds
        left = (num_steps - step) * seconds / (len(self.recent) - 1)
        of_study = self.study.left_text(step / num_steps) if self.study else ""
        known = self.study.seconds_left(step / num_steps) if self.study else None
        parts = [
            self.losses_text(losses),
            f"{speed:,.0f} tokens/s",
            f"{rough_duration(left)} left" + (" in this stage" if of_study else ""),
            *([of_study] if of_study else []),
        ]
        self.reporter.advance(
            step,
            ", ".join(parts),
            loss_low=min(losses, default=None),
            loss_high=max(losses, default=None),
            trials=len(losses),
            tokens_per_second=round(speed, 1),
            seconds_left=round(left, 1),
            study_seconds_left=round(known[0], 1) if known else None,
        )

    def losses_text(self, losses: list[float]) -> str:
        """Write the losses of one step across the trials that took it."""
        if not losses:
            return f"no finite loss (0 of {self.num_trials} trials)"
        if self.num_trials == 1:
            return f"loss {losses[0]:.3f}"
        text = f"loss {min(losses):.3f} in the best trial, {max(losses):.3f} in the worst"
        left_out = len(losses) < self.num_trials
        return f"{text} ({len(losses)} of {self.num_trials} trials)" if left_out else text

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of work other than training."""
        begun = self.clock()
        try:
            yield
        finally:
            self.paused_seconds += self.clock() - begun
