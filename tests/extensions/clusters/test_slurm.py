"""Units in SLURM's queue: a signal before the time limit costs nothing, nor does a driver that
goes away."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import rankscope
from launcher import Launcher, text_of
from pocket_study import TWO_GROUPS, changed, leftovers, results, small_study, study_file
from slurm_host import slurm_host

from rankscope.errors import Interrupted, UserError
from rankscope.extensions.clusters.slurm import (
    EXIT_CODE,
    JOB,
    SlurmExecutor,
    SlurmSettings,
    _QueuedUnit,
    most_tasks,
    slurm as run_slurm,
)
from rankscope.models.model_folder import pocket_folder
from rankscope.progress import LOG, logged
from rankscope.run.context import Round
from rankscope.run.workers.attempts import SEAL
from rankscope.run.workers.order import UnitOrder, read_unit
from rankscope.store import running_process

STUDY: dict[str, Any] = {
    **TWO_GROUPS,
    **changed("train", max_steps=100),  # long enough for a signal to come meanwhile
    "executor": {"slurm": {"partition": "main", "time": "1:00:00"}},
}


@pytest.fixture
def slurm(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """SLURM on this machine, with a further node if it gets a name; every command started after
    this belongs to it."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm_host(folder, *getattr(request, "param", ())) as configuration:
        monkeypatch.setenv("SLURM_CONF", str(configuration))
        yield folder


def start_driver(launcher: Launcher, file: Path, out: Path, *options: str) -> None:
    environment = {"SLURM_CONF": os.environ["SLURM_CONF"]}
    launcher.start("run", file, "--out", out, *options, environment=environment)


def training_units(out: Path) -> list[Path]:
    """The folders of units that have begun to train."""
    return [path.parent for path in logs_of(out) if " train " in text_of(path)]


def test_a_preempted_unit_and_a_driver_that_goes_away_cost_nothing(
    slurm: Path, launcher: Launcher, tmp_path: Path
) -> None:
    """SLURM's warning comes while a unit trains, which requeues it; then the driver is killed.
    Another unit waits, trains or has ended meanwhile."""
    small_study(tmp_path, **STUDY | {"executor": None}).run(tmp_path / "undisturbed")
    file, out = study_file(tmp_path, **STUDY), tmp_path / "out"
    start_driver(launcher, file, out)
    launcher.wait_for(lambda: bool(training_units(out)))
    job = (training_units(out)[0] / JOB).read_text(encoding="utf-8")
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    launcher.wait_for(lambda: task_states(job) == ["PENDING"])
    launcher.send(signal.SIGKILL)
    launcher.ended()
    update(f"jobid={job}", "starttime=now")  # SLURM lets a requeued task wait for two minutes
    start_driver(launcher, file, out)
    assert launcher.ended() == 0, launcher.said()
    assert results(out) == results(tmp_path / "undisturbed")
    assert leftovers(out) == []
    assert not (out / "units").exists()


def test_a_task_that_no_node_could_launch_is_queued_again(
    slurm: Path, launcher: Launcher, tmp_path: Path
) -> None:
    """There are scripts in the node's way. SLURM queues such tasks again and holds them for good;
    on the second launch the scripts are gone."""
    for number in (1, 2, 3):  # the jobs of the first three tasks
        job = slurm / f"spool-{socket.gethostname()}" / f"job{number:05d}"
        job.mkdir()
        (job / "slurm_script").touch()
    settings = TWO_GROUPS | {"executor": STUDY["executor"]}
    file, out = study_file(tmp_path, **settings), tmp_path / "out"
    start_driver(launcher, file, out)
    assert launcher.ended() == 0, launcher.said()
    assert (slurm / f"slurmd-{socket.gethostname()}.log").read_text(encoding="utf-8").count(
        "File exists"
    ) >= 3
    small_study(tmp_path, **TWO_GROUPS).run(tmp_path / "undisturbed")
    assert results(out) == results(tmp_path / "undisturbed")
    assert leftovers(out) == []


@pytest.mark.usefixtures("minutes")
def test_a_time_limit_and_nodes_that_are_drained_and_lost_cost_nothing(
    slurm: Path, launcher: Launcher, tmp_path: Path
) -> None:
    """A worker is stopped while it trains until SLURM itself warns it of a limit that is near; the
    node is drained meanwhile, so its task waits. Later the node goes down under a worker."""
    small_study(tmp_path, **STUDY | {"executor": None}).run(tmp_path / "undisturbed")
    file, out = study_file(tmp_path, **STUDY), tmp_path / "out"
    node, begun = f"nodename={socket.gethostname()}", time.monotonic()
    start_driver(launcher, file, out)

    def stopped_worker() -> tuple[int, str]:
        """A worker that trains, stopped; its process and its task."""
        launcher.wait_for(lambda: any(map(holder, training_units(out))))
        unit = next(filter(holder, training_units(out)))
        process = int(holder(unit))
        os.kill(process, signal.SIGSTOP)
        return process, (unit / JOB).read_text(encoding="utf-8")

    process, job = stopped_worker()
    minutes = (time.monotonic() - begun) / 60 + SlurmSettings().warning + 1
    update(f"jobid={job}", f"timelimit={math.ceil(minutes)}")
    update(node, "state=drain", "reason=test")
    launcher.wait_for(lambda: is_pending(process, signal.SIGTERM))
    os.kill(process, signal.SIGCONT)
    launcher.wait_for(lambda: task_states(job) == ["PENDING"])
    update(node, "state=resume")
    update(f"jobid={job}", "timelimit=60", "starttime=now")
    process, job = stopped_worker()
    update(node, "state=down", "reason=test")
    launcher.wait_for(lambda: task_states(job) == ["PENDING"])
    lose_processes(out, launcher)
    # It may have come back by itself, since its daemon answers.
    subprocess.run(["scontrol", "update", node, "state=resume"], check=False)
    update(f"jobid={job}", "starttime=now")
    assert launcher.ended() == 0, launcher.said()
    assert results(out) == results(tmp_path / "undisturbed")
    assert leftovers(out) == []


def lose_processes(out: Path, launcher: Launcher) -> None:
    """A lost node has no processes. With those of a task that was queued again, SLURM would drain
    it as soon as it resumes, and hold the task."""
    for process in filter(None, map(holder, training_units(out))):
        os.kill(int(process), signal.SIGKILL)
    subprocess.run(["pkill", "-KILL", "slurmstepd"], check=False)
    launcher.wait_for(lambda: subprocess.run(["pgrep", "slurmstepd"], check=False).returncode == 1)


def holder(unit: Path) -> str:
    """The process that works on a unit; empty if it has ended."""
    process = running_process(unit)
    return process.split()[0] if process else ""


def is_pending(process: int, number: int) -> bool:
    """Whether a stopped process will get a signal when it goes on."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    masks = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def update(*words: str) -> None:
    subprocess.run(["scontrol", "update", *words], check=True)


def test_another_executor_takes_waiting_tasks_off_the_queue(slurm: Path, tmp_path: Path) -> None:
    submit = ("sbatch", "--parsable", f"--chdir={slurm}", "--wrap=true")
    ended, job = run_slurm(*submit), run_slurm(*submit, "--hold", "--array=0-1")
    for place, task in (("a", ended), ("b", f"{job}_0"), ("c", f"{job}_1")):
        (tmp_path / place).mkdir()
        (tmp_path / place / JOB).write_text(task)
    while task_states(ended):
        time.sleep(0.1)
    SlurmSettings.withdraw(tmp_path)
    assert task_states(job) == []
    assert list(tmp_path.glob(f"*/{JOB}")) == []


def task_states(job: str) -> list[str]:
    """Of the tasks of ``job`` that wait or run."""
    command = ["squeue", "--noheader", "--array", "--format=%T", f"--jobs={job}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_batch_script_asks_for_what_the_study_says(tmp_path: Path) -> None:
    config = SlurmSettings(
        partition="gpu",
        account="lab",
        time="4:00:00",
        gres="gpu:1",
        options=["--constraint=a100"],
        setup=["module load cuda"],
        python="/opt/python",
        wrap="srun",
        warning=5,
        cpus=8,
    )
    folders = [tmp_path / "units" / name for name in ("0123456789abcdef", "fedcba9876543210")]
    script = config.script(folders, 2, 32 * 2**30 - 1, 4).splitlines()
    for line in (
        "--array=0-1%4",
        "--requeue",
        "--signal=B:USR1@300",
        "--cpus-per-task=8",
        "--partition=gpu",
        "--account=lab",
        "--time=4:00:00",
        "--gres=gpu:1",
        "--mem=32768M",
        "--constraint=a100",
    ):
        assert f"#SBATCH {line}" in script
    begun = script.index("module load cuda")
    assert begun < script.index(next(line for line in script if line.startswith("srun env ")))
    assert "srun env OMP_NUM_THREADS=4 /opt/python " in "\n".join(script)
    assert "units=(0123456789abcdef fedcba9876543210)" in script
    check = subprocess.run(["bash", "-n"], input="\n".join(script), text=True, check=False)
    assert check.returncode == 0
    for mem, line in (("64G", "#SBATCH --mem=64G"), ("site", None)):
        asked = SlurmSettings(mem=mem).script(folders, 1, 2**30, None).splitlines()
        assert [line for line in asked if "--mem" in line] == [line] * (line is not None)


@pytest.mark.parametrize(
    ("threads", "settings", "expected"), [("", {}, 8), ("3", {}, 6), ("3", {"cpus": 12}, 12)]
)
def test_processors_do_not_depend_on_the_login_node(
    threads: str, settings: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a unit on two devices, submitted from a machine with 64 threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    script = SlurmSettings(**settings).script([Path("units/base")], 2, 2**30, None)
    assert f"--cpus-per-task={expected}\n" in script
    assert f"OMP_NUM_THREADS={expected // 2} " in script


@pytest.mark.parametrize("time", ["4", "3:01", "1:00:00", "1-0", "0-1:00", "0", "UNLIMITED"])
def test_limits_that_slurm_takes(time: str) -> None:
    assert SlurmSettings(time=time).time == time


@pytest.mark.parametrize(("time", "warning"), [("3", 2), ("11", 10), ("1:00:00", 60)])
def test_limits_that_leave_no_time_to_train(time: str, warning: int) -> None:
    with pytest.raises(ValueError, match=f"more than {warning + 1} minutes"):
        SlurmSettings(time=time, warning=warning)


class Refusing:
    """An executor that takes units and runs none."""

    name, num_local = "refusing", 1

    def __init__(self) -> None:
        self.host_bytes: dict[str, int] = {}

    def submit(self, folder: Path) -> Future[None]:
        self.host_bytes[folder.name] = read_unit(folder).host_bytes
        future: Future[None] = Future()
        future.set_exception(UserError("unit", "no machine"))
        return future

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_a_dry_run_prints_what_a_run_submits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All units, with the memory of the largest; without SLURM on this machine, and nothing is
    written. Other executors have nothing to show."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    file, out = study_file(tmp_path, **STUDY), tmp_path / "out"
    outcome = rankscope("run", file, "--out", out, "--dry-run", "--workers", 2)
    assert outcome.code == 0
    assert not out.exists()
    executor = Refusing()
    with pytest.raises(UserError, match="no machine"):
        small_study(tmp_path, **STUDY).run(out, executor=executor)
    units = re.search(r"^units=\((.*)\)$", outcome.out, re.MULTILINE)
    assert units is not None
    assert sorted(units[1].split()) == sorted(executor.host_bytes)
    lines = outcome.out.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=0-2%2" in lines
    memory = math.ceil(max(executor.host_bytes.values()) / 2**20)
    assert f"#SBATCH --mem={memory}M" in lines
    assert f"cd {out}/units || exit 2" in lines
    outcome = rankscope("run", file, "--out", out, "--dry-run", "--executor", "local")
    assert outcome.code == 2
    assert "--dry-run: found executor local, expected slurm" in outcome.told


def test_units_are_submitted_in_chunks_and_the_queue_is_asked_ever_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for SLURM's commands, of a site with two tasks in an array. The test's clock is its
    own."""
    tasks = "\n".join(f"7_{index}|RUNNING|None" for index in range(3))
    answers = {"sbatch": "7", "squeue": tasks, "scontrol": "MaxArraySize = 2", "scancel": ""}
    for command, answer in answers.items():
        file = tmp_path / command
        file.write_text(f"#!/bin/sh\necho {command} >> {tmp_path}/asked\necho '{answer}'\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    most_tasks.cache_clear()
    executor, now = SlurmExecutor(SlurmSettings()), 0.0
    executor.close()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    units = [_QueuedUnit(tmp_path / "units" / name) for name in "abc"]
    order = UnitOrder(
        config={}, study_sha256="", trial_ids=(), round=Round(), versions={}, host_bytes=1
    )
    for unit in units:
        unit.folder.mkdir(parents=True)
        (unit.folder / "unit.json").write_text(order.model_dump_json(), "utf-8")
    asked: dict[float, list[str]] = {}
    while now < 100:
        executor.take_turn(units)
        if now < 4:
            assert [unit.job for unit in units] == ["7_0", "7_1", "7_0" if now else ""]
        if (tmp_path / "asked").exists():
            asked[now] = text_of(tmp_path / "asked").split()
            (tmp_path / "asked").unlink()
        now += 2
    most_tasks.cache_clear()
    assert asked == {
        0: ["scontrol", "sbatch"],
        2: ["squeue", "sbatch"],
        **{at: ["squeue"] for at in (4, 8, 16, 32, 62, 92)},
    }


def test_an_error_of_nodes_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two may lack what others have; the third ends the study."""
    monkeypatch.setattr(shutil, "which", lambda command: command)
    executor, unit = SlurmExecutor(SlurmSettings()), _QueuedUnit(tmp_path)
    (tmp_path / "worker.log").write_text("error: no model here", "utf-8")
    for node in ("node17", "node18", "node18", "node19"):
        assert not unit.future.done()
        (tmp_path / EXIT_CODE).write_text(f"2 {node}\n", "utf-8")
        executor.look_at(unit)
    executor.close()
    with pytest.raises(UserError, match="node19: no model here"):
        unit.future.result()
    notes = [e["text"].rpartition(": no model here")[0] for e in logged(tmp_path / LOG, "note")]
    kept_off = "tasks keep off a node from now on: node"
    assert notes == [f"{kept_off}17", f"{kept_off}18", f"{kept_off}18"]


@pytest.mark.parametrize(("told", "code"), [("", 1), ("no controller", 1), ("", 2)])
def test_scancel_fails_in_silence_where_a_task_has_ended(
    told: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho '{told}' >&2\nexit {code}\n")
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with nullcontext() if (told, code) == ("", 1) else pytest.raises(UserError, match="scancel"):
        run_slurm("scancel", "--quiet", "7_0")


def test_a_unit_that_is_sealed_has_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody need take it off the queue."""
    monkeypatch.setattr(shutil, "which", lambda command: command)
    executor, unit = SlurmExecutor(SlurmSettings()), _QueuedUnit(tmp_path)
    (tmp_path / JOB).write_text("7_0", "utf-8")
    (tmp_path / SEAL).touch()
    executor.look_at(unit)
    executor.close()
    unit.future.result()
    assert not (tmp_path / JOB).exists()


@pytest.mark.parametrize("slurm", [("poor", "unwanted")], indirect=True)
@pytest.mark.parametrize("comes_back", [True, False])
def test_units_keep_off_a_node_that_lacks_the_model(
    comes_back: bool, slurm: Path, launcher: Launcher, tmp_path: Path
) -> None:
    """Another node has it, or none does: then the study ends with what the nodes said. A node that
    the user excluded stays so."""
    model, away, host = tmp_path / "pocket", tmp_path / "away", socket.gethostname()
    shutil.copytree(pocket_folder(), model)
    setup = [f'[ "$SLURMD_NODENAME" = poor ] && mkdir {tmp_path / "once"} && mv {model} {away}']
    settings = TWO_GROUPS | {"model": {"path": str(model)}}
    executor = {"slurm": {"setup": setup, "options": ["--exclude unwanted"]}}
    file = study_file(tmp_path, **settings | {"executor": executor})
    out = tmp_path / "out"
    update(f"nodename={host}", "state=drain", "reason=test")
    start_driver(launcher, file, out, "--trust-task-code")
    launcher.wait_for(lambda: "keep off" in "".join(map(text_of, logs_of(out))))
    if comes_back:
        away.rename(model)
    update(f"nodename={host}", "state=resume")
    code, said = launcher.ended(), launcher.said()
    lacks = f": model folder {model}: found no such folder"
    if comes_back:
        assert code == 0, said
        assert f"tasks keep off a node from now on: poor{lacks}" in said
        small_study(tmp_path, **settings).run(tmp_path / "undisturbed")
        assert results(out) == results(tmp_path / "undisturbed")
    else:
        assert code == 2, said
        assert f"poor{lacks}" in said
        assert f"{host}{lacks}" in said
        assert f"unwanted{lacks}" not in said


def logs_of(out: Path) -> list[Path]:
    return list(out.glob("units/*/log.jsonl"))


def test_without_slurm_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    file = study_file(tmp_path, **STUDY)
    outcome = rankscope("run", file, "--out", tmp_path / "out", "--executor", "slurm")
    assert outcome.code == 2
    assert "found no 'sbatch' on this machine" in outcome.told
    assert list(tmp_path.iterdir()) == [file]


def test_a_canceled_task_is_not_queued_again(
    slurm: Path, launcher: Launcher, tmp_path: Path
) -> None:
    """Neither one that runs nor one that waits; the same command goes on."""
    file, out = study_file(tmp_path, **STUDY), tmp_path / "out"
    start_driver(launcher, file, out)
    launcher.wait_for(lambda: bool(training_units(out)))
    job = (training_units(out)[0] / JOB).read_text(encoding="utf-8").partition("_")[0]
    subprocess.run(["scancel", job], check=True)
    assert launcher.ended() == Interrupted.exit_code, launcher.said()
    assert "found it canceled; the same command queues it again" in launcher.said()
    shown = partial(subprocess.run, ["scontrol", "--oneliner", "show", "job", job], text=True)
    while True:  # SLURM ends what runs in its own time
        tasks = shown(capture_output=True, check=True).stdout
        if all(state.startswith("C") for state in re.findall(r"JobState=(\w+)", tasks)):
            break
    assert set(re.findall(r"Restarts=(\d+)", tasks)) == {"0"}
    assert list(out.glob(f"units/*/{JOB}")) == []
