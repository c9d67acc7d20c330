"""The starter, with children that compute nothing: codes, signals, variables, sessions, orphans."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rankscope.run.workers import starter as starter_module
from rankscope.run.workers.starter import ForkedWorker, Starter

pytestmark = pytest.mark.timeout(300)

CHILD = """
import os, sys, time, types
from contextlib import suppress
sys.modules["rankscope.run.workers.worker"] = types.ModuleType("worker")  # imports torch
from rankscope.run.workers.starter import become_worker
code, seconds = become_worker()
for fd in range(3, 64):  # what a program that this one starts would get
    with suppress(OSError):
        assert not os.get_inheritable(fd)
print(os.environ["RANKSCOPE_DRIVER"], os.environ["PLACE"], os.environ["COMMON"], flush=True)
end = time.monotonic() + float(seconds)
while time.monotonic() < end and os.environ["RANKSCOPE_DRIVER"] == str(os.getppid()):
    time.sleep(0.01)
sys.exit(int(code))
"""
"""Ends with a code after some seconds, or when its parent is gone."""
LONG = 600.0


@pytest.fixture
def starter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    monkeypatch.setattr(starter_module, "STARTER", ("-c", CHILD))
    started = Starter({"COMMON": "for all"})
    yield started
    started.close()


def begin(starter: Starter, log: Path, code: int, seconds: float) -> ForkedWorker:
    with log.open("wb") as messages:
        return starter.start([str(code), str(seconds)], {"PLACE": log.stem}, messages)


def said(log: Path) -> list[str]:
    """What a child prints when it begins."""
    while not (text := log.read_text("utf-8")).endswith("\n"):
        time.sleep(0.01)
    return text.split()


def test_children_end_with_codes_and_signals_of_their_own(starter: Starter, tmp_path: Path) -> None:
    logs = [tmp_path / f"{name}.log" for name in "abc"]
    ends, waits, dies = (
        begin(starter, log, code, seconds)
        for log, code, seconds in zip(logs, (7, 0, 0), (0, LONG, LONG), strict=True)
    )
    pid = str(starter.process.pid)
    assert [said(log) for log in logs] == [[pid, log.stem, "for", "all"] for log in logs]
    assert ends.wait(LONG) == 7
    with pytest.raises(subprocess.TimeoutExpired):
        waits.wait(0.01)
    sessions = {os.getsid(p.pid) for p in psutil.Process(starter.process.pid).children()}
    assert len(sessions | {os.getsid(0), os.getsid(starter.process.pid)}) == 4
    dies.send_signal(signal.SIGKILL)
    assert dies.wait(LONG) == -signal.SIGKILL
    waits.send_signal(signal.SIGTERM)
    assert waits.wait(LONG) == -signal.SIGTERM
    waits.send_signal(signal.SIGKILL)  # too late: nobody else may get it


def test_stop_signals_spare_the_starter_and_killing_it_ends_its_children(
    starter: Starter, tmp_path: Path
) -> None:
    first = begin(starter, tmp_path / "a.log", 5, LONG)
    said(tmp_path / "a.log")
    before = starter.process
    assert before is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before.send_signal(number)
    assert begin(starter, tmp_path / "b.log", 3, 0).wait(LONG) == 3
    before.kill()
    assert first.wait(LONG) == -signal.SIGKILL
    assert begin(starter, tmp_path / "c.log", 4, 0).wait(LONG) == 4
    assert starter.process is not before


def test_a_driver_that_dies_leaves_no_process(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    driver = f"""
import os, signal, sys
from pathlib import Path
import psutil
sys.path[:0] = {sys.path!r}
from rankscope.run.workers import starter as module
module.STARTER = ("-c", {CHILD!r})
starter = module.Starter({{"COMMON": "for all"}})
with open({str(log)!r}, "wb") as messages:
    worker = starter.start(["0", "{LONG}"], {{"PLACE": "a"}}, messages)
while not Path({str(log)!r}).stat().st_size:
    pass
started = psutil.Process(starter.process.pid)
print(started.pid, *[child.pid for child in started.children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    for process in map(int, ran.stdout.split()):
        while lives(process):
            time.sleep(0.01)


def lives(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_starter_that_cannot_import_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(starter_module, "STARTER", ("-c", "import no_such_module"))
    broken = Starter({})
    assert begin(broken, tmp_path / "a.log", 0, 0).wait(LONG) == 1
    assert "no_such_module" in (tmp_path / "a.log").read_text("utf-8")
    broken.close()
