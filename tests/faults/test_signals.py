"""Signals: the first saves the state and ends with 130, a second Ctrl-C aborts; both continue."""

import json
import os
import signal
from pathlib import Path

import pytest
from command_line import rankscope
from launcher import Launcher, stopping_after, text_of
from pocket_study import Undisturbed, last_stage

from fault_workers import COMMAND as FORKED_WORKERS
from faults import held
from rankscope.run.begin import interruptible
from rankscope.store import Ledger


def assert_stops(launcher: Launcher, *numbers: int) -> None:
    for number in numbers:
        launcher.send(number)
    outcome = launcher.outcome()
    assert outcome.code == 130, outcome
    assert "the same command continues" in outcome.told


@pytest.mark.pitfall(19, 35)
def test_every_signal_that_asks_to_stop_saves_the_state(
    launcher: Launcher, long_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One study is stopped in its first group by each of them in turn: it trains on in between."""
    out = tmp_path / "out"
    steps = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        launcher.start("run", long_file, "--out", out, code=stopping_after(0))
        launcher.wait_until_stopped()
        assert_stops(launcher, number, signal.SIGCONT)
        states = list(out.glob("checkpoints/*/step-*"))
        steps += [int(state.stem.removeprefix("step-")) for state in states]
        assert rankscope("verify", out).code == 0
    assert steps == [1, 2, 3, 4]
    assert launcher.run("run", long_file, "--out", out).code == 0
    undisturbed.assert_equal(out)


@pytest.mark.usefixtures("minutes")
@pytest.mark.pitfall(35)
def test_a_scheduler_stops_workers_with_their_driver(
    launcher: Launcher, long_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("run", long_file, "--out", out, "--workers", 2)

    def begun() -> set[str]:
        """What the workers' logs say of training; each line has its time."""
        lines = [
            line for log in out.glob("units/*/log.jsonl") for line in text_of(log).splitlines()
        ]
        return {line for line in lines if " train " in line}

    for number in (signal.SIGTERM, signal.SIGUSR1):
        before = begun()
        launcher.start(*words, code=FORKED_WORKERS)
        launcher.wait_for(lambda before=before: bool(begun() - before))
        assert_stops(launcher, number)
        assert rankscope("verify", out).code == 0
    launcher.start(*words, code=FORKED_WORKERS)
    assert launcher.outcome().code == 0, launcher.said()
    undisturbed.assert_equal(out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_ends_with_130(
    launcher: Launcher, long_file: Path, tmp_path: Path, number: int
) -> None:
    launcher.err.unlink(missing_ok=True)
    launcher.start("run", long_file, "--out", tmp_path / "out")
    launcher.wait_for(lambda: launcher.err.is_file() and "Reading" in launcher.said())
    launcher.send(number)
    outcome = launcher.outcome()
    assert outcome.code == 130, outcome
    assert "Traceback" not in outcome.err


@pytest.mark.pitfall(19)
def test_the_second_interrupt_aborts_and_the_study_continues(
    launcher: Launcher, long_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """The second comes at once: it finds the run anywhere between the first and its safe point."""
    out = tmp_path / "out"
    for group in (1, 3):
        launcher.start("run", long_file, "--out", out, code=stopping_after(1))
        launcher.wait_until_stopped()
        while f"group {group}/" not in str(last_stage(out)["name"]):
            launcher.send(signal.SIGCONT)
            launcher.wait_until_stopped()
        assert_stops(launcher, signal.SIGINT, signal.SIGCONT, signal.SIGINT)
    assert launcher.run("run", long_file, "--out", out).code == 0
    undisturbed.assert_equal(out)


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    """``nohup`` starts a command with SIGHUP ignored, a shell's ``&`` in a script with SIGINT."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    try:
        with interruptible() as is_stop_requested:
            for number in IGNORED:
                os.kill(os.getpid(), number)
            assert not is_stop_requested()
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_stop_requested()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


IGNORED = (signal.SIGHUP, signal.SIGINT)

# --- rankscope stop -----------------------------------------------------------------------------


def test_stop_interrupts_the_process_that_runs_the_study(copied: Path) -> None:
    idle = rankscope("stop", copied)
    assert (idle.code, idle.out) == (0, f"nothing to stop: no process runs {copied}\n")
    with held(copied) as runner:
        assert json.loads(rankscope("stop", copied, "--json").out) == {"process": runner.pid}
        assert runner.wait() == -signal.SIGTERM
    assert rankscope("status", copied, "--watch").code == 0  # nothing runs: it ends at once


def test_repeated_signals_of_a_scheduler_do_not_cut_the_checkpoint_short() -> None:
    with interruptible() as is_stop_requested:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
            assert is_stop_requested()


@pytest.mark.parametrize(
    ("error", "message"),
    [(PermissionError(), "(PermissionError)"), (ProcessLookupError(), "(ProcessLookupError)")],
)
def test_a_process_that_cannot_be_stopped(
    copied: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def kill(*_: object) -> None:
        raise error

    monkeypatch.setattr("os.kill", kill)
    with Ledger.open(copied, write=True):
        outcome = rankscope("stop", copied)
    assert outcome.code == 2
    assert message in outcome.err
