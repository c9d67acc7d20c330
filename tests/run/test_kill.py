"""Whatever stops a run, the same command brings it to the end an uninterrupted run has."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launcher import Launcher
from pocket_study import changed, last_stage, leftovers, results, study_file

from rankscope.cli import main
from rankscope.store import Ledger

KILLS = 8


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("launcher")) as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what is stored while a group trains: points of curves, and weights by step."""
    train = changed("train", evaluate_every=3, evaluate_items=8, checkpoint_every=5)
    three_groups = {
        "seeds": [0],
        "max_group_size": 1,
        **changed("evaluate", cross_domain=[], max_items=8),
    }
    return study_file(tmp_path_factory.mktemp("study"), **train, **three_groups)


@pytest.fixture(scope="module")
def uninterrupted(
    launcher: Launcher, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, float]:
    """Results of a run that nobody disturbed, and the seconds of its life."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    launcher.start("run", file, "--out", out)
    begun = time.monotonic()
    assert launcher.ended() == 0, launcher.said()
    return results(out), time.monotonic() - begun


def assert_sound(out: Path, expected: dict) -> None:
    """The study is the uninterrupted one, its files are what was written, nothing is left over."""
    assert results(out) == expected
    assert leftovers(out) == []
    with Ledger.open(out, write=False) as ledger:
        assert ledger.verify() == []


def wait_for(launcher: Launcher, what: Callable[[], bool]) -> None:
    """Return once ``what`` holds while the command runs."""
    while not what():
        assert launcher.ended(0.01) is None, launcher.said()


@pytest.mark.timeout(900)  # some seven lives of the command, each long where others use the cores
def test_a_run_killed_at_any_moment_continues(
    launcher: Launcher, file: Path, uninterrupted: tuple[dict, float], tmp_path: Path
) -> None:
    """Eight SIGKILLs at moments spread over the whole life of the command; a study that came to its
    end before its turn to be killed is checked, and the next one begins in a new folder."""
    expected, life = uninterrupted
    moments = random.Random(0)
    kills, studies = 0, 1
    while kills < KILLS:
        out = tmp_path / str(studies)
        launcher.start("run", file, "--out", out)
        code = launcher.ended(moments.uniform(0, 0.8 * life))
        if code is None:
            launcher.send(signal.SIGKILL)
            code = launcher.ended()
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0, launcher.said()
        assert_sound(out, expected)
        studies += 1
    launcher.start("run", file, "--out", tmp_path / str(studies))
    assert launcher.ended() == 0, launcher.said()
    assert_sound(tmp_path / str(studies), expected)


def test_a_second_runner_is_refused_and_the_first_interrupt_stops_at_a_checkpoint(
    launcher: Launcher,
    file: Path,
    uninterrupted: tuple[dict, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected, _ = uninterrupted
    out = tmp_path / "out"
    launcher.start("run", file, "--out", out)
    wait_for(launcher, lambda: "train" in str(last_stage(out).get("name")))
    launcher.send(signal.SIGSTOP)
    first = launcher.child
    monkeypatch.setattr("sys.argv", ["rankscope", "run", str(file), "--out", str(out)])
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        launcher.send(signal.SIGINT)
        launcher.send(signal.SIGCONT)
    assert left.value.code == 2
    assert f"process {first}" in " ".join(capsys.readouterr().err.split())
    assert launcher.ended() == 130, launcher.said()
    said = " ".join(launcher.said().split())
    assert "the same command continues" in said
    assert "stopped after step" in said
    assert list((out / "checkpoints").glob("*/step-*/state.safetensors"))
    launcher.start("run", file, "--out", out)
    assert launcher.ended() == 0, launcher.said()
    assert_sound(out, expected)


def test_the_second_interrupt_aborts_and_the_study_continues(
    launcher: Launcher, file: Path, uninterrupted: tuple[dict, float], tmp_path: Path
) -> None:
    """The second comes at once: it finds the run anywhere between the first and its safe point."""
    expected, _ = uninterrupted
    out = tmp_path / "out"
    for group in (1, 3):
        launcher.start("run", file, "--out", out)
        wait_for(
            launcher, lambda group=group: f"group {group}/" in str(last_stage(out).get("name"))
        )
        launcher.send(signal.SIGINT)
        launcher.send(signal.SIGINT)
        assert launcher.ended() == 130, launcher.said()
        assert "the same command continues" in " ".join(launcher.said().split())
    launcher.start("run", file, "--out", out)
    assert launcher.ended() == 0, launcher.said()
    assert_sound(out, expected)
