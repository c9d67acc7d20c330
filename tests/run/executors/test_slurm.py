"""Units in SLURM's queue: a signal before the time limit costs nothing, nor does a driver that
goes away."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import rankscope
from pocket_study import TWO_GROUPS, changed, leftovers, results, small_study, study_file
from slurm_host import slurm_host

from rankscope.config.slurm import SlurmConfig
from rankscope.run.executors.slurm import JOB, batch_script, cancel_tasks
from rankscope.run.executors.worker_process import WORKER

STUDY: dict[str, Any] = {
    **TWO_GROUPS,
    **changed("train", max_steps=100),  # long enough for a signal to come meanwhile
    "slurm": {"partition": "main", "time": "1:00:00"},
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """SLURM on this machine; every command started after this belongs to it."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm_host(folder) as configuration:
        monkeypatch.setenv("SLURM_CONF", str(configuration))
        yield folder


def start_driver(file: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = ["run", str(file), "--out", str(out), "--executor", "slurm"]
    with (out.parent / "driver.log").open("ab") as log:
        return subprocess.Popen([sys.executable, *WORKER, *arguments], stdout=log, stderr=log)


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path) -> None:
    while not condition():
        assert driver.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_a_preempted_unit_and_a_driver_that_goes_away_cost_nothing(
    slurm: Path, tmp_path: Path
) -> None:
    """SLURM's warning comes while a unit trains, which requeues it; then the driver is killed.
    Another unit waits, trains or has ended meanwhile."""
    small_study(tmp_path, **STUDY).run(tmp_path / "undisturbed")
    file, out, log = study_file(tmp_path, **STUDY), tmp_path / "out", tmp_path / "driver.log"
    driver = start_driver(file, out)

    def training() -> list[Path]:
        logs = out.glob("units/*/log.jsonl")
        return [path.parent for path in logs if " train " in path.read_text(encoding="utf-8")]

    wait_for(lambda: bool(training()), driver, log)
    job = (training()[0] / JOB).read_text(encoding="utf-8")
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_for(lambda: task_states(job) == ["PENDING"], driver, log)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # SLURM lets a requeued task wait for two minutes.
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)
    driver = start_driver(file, out)
    assert driver.wait() == 0, log.read_text(encoding="utf-8")
    assert results(out) == results(tmp_path / "undisturbed")
    assert leftovers(out) == []
    assert not (out / "units").exists()


def test_another_executor_takes_waiting_tasks_off_the_queue(slurm: Path, tmp_path: Path) -> None:
    held = ["sbatch", "--parsable", "--hold", "--array=0-1", f"--chdir={slurm}", "--wrap=true"]
    job = subprocess.run(held, capture_output=True, text=True, check=True).stdout.strip()
    for task in (0, 1):
        (tmp_path / str(task)).mkdir()
        (tmp_path / str(task) / JOB).write_text(f"{job}_{task}")
    cancel_tasks(tmp_path)
    assert task_states(job) == []
    assert list(tmp_path.glob(f"*/{JOB}")) == []


def task_states(job: str) -> list[str]:
    """Of the tasks of ``job`` that wait or run."""
    command = ["squeue", "--noheader", "--array", "--format=%T", f"--jobs={job}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_batch_script_asks_for_what_the_study_says(tmp_path: Path) -> None:
    config = SlurmConfig(
        partition="gpu", account="lab", time="4:00:00", gres="gpu:1", options=["--mem=32G"]
    )
    folders = [tmp_path / "units" / name for name in ("0123456789abcdef", "fedcba9876543210")]
    script = batch_script(config, folders, threads=8, max_running=4).splitlines()
    for line in (
        "--array=0-1%4",
        "--requeue",
        "--signal=B:USR1@120",
        "--cpus-per-task=8",
        "--partition=gpu",
        "--account=lab",
        "--time=4:00:00",
        "--gres=gpu:1",
        "--mem=32G",
    ):
        assert f"#SBATCH {line}" in script
    assert "units=(0123456789abcdef fedcba9876543210)" in script
    check = subprocess.run(["bash", "-n"], input="\n".join(script), text=True, check=False)
    assert check.returncode == 0


def test_without_slurm_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    file = study_file(tmp_path, **STUDY)
    outcome = rankscope("run", file, "--out", tmp_path / "out", "--executor", "slurm")
    assert outcome.code == 2
    assert "found no 'sbatch' on this machine" in outcome.told
    assert list(tmp_path.iterdir()) == [file]
