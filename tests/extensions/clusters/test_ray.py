"""Units on Ray: whichever process or node is lost, the study comes out the same."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import rankscope
from launcher import Launcher, text_of
from pocket_study import TWO_GROUPS, leftovers, results, small_study, study_file

from rankscope.extensions.clusters.ray import RayExecutor, packed, run_unit, unpack
from rankscope.run.executors.local import LocalExecutor
from rankscope.run.workers import attempts
from rankscope.run.workers.attempts import check_worker
from rankscope.run.workers.starter import DRIVER
from rankscope.store import UNIT_ORDER
from rankscope.train.memory import LIBRARY_BYTES


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two nodes with one each, all on this machine. A unit is planned to
    take more memory than they have, which must not keep it from running there. Each would end its
    tasks if other work filled the memory of the machine."""
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1, memory=LIBRARY_BYTES)
    yield cluster
    cluster.shutdown()


def test_lost_nodes_and_killed_workers_cost_nothing(
    ray_cluster: Any, two_groups: dict[str, Any], tmp_path: Path
) -> None:
    """While a unit trains, Ray's worker that runs it is killed, so is the actor that says when to
    stop, and a node is removed; Ray runs both units again on the other one."""
    study, lost = small_study(tmp_path, **TWO_GROUPS), list[str]()
    executor = RayExecutor(ray_cluster.address, study.config)

    def lose() -> None:
        while not any(" train " in text_of(log) for log in tmp_path.glob("out/units/*/log.jsonl")):
            time.sleep(0.05)
        tasks = [
            p
            for p in psutil.process_iter(["name"])
            if (p.info["name"] or "").startswith("ray::_run_on")
        ]
        tasks[0].kill()
        executor.ray.kill(executor.flag, no_restart=False)
        node = min(ray_cluster.worker_nodes, key=lambda node: node.unique_id)
        ray_cluster.remove_node(node, allow_graceful=False)
        lost.append(node.unique_id)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    study.run(tmp_path / "out", executor=executor)
    thread.join()
    assert len(lost) == 1
    assert results(tmp_path / "out") == two_groups
    assert leftovers(tmp_path / "out") == []


class Forked:
    """A worker of a launcher, whose imports are done."""

    def __init__(self, launcher: Launcher, unit: Path, environment: Mapping[str, str]) -> None:
        self.launcher = launcher
        variables = {**environment, DRIVER: str(launcher.process)}
        launcher.start("work", unit.parents[1], unit.name, environment=variables)

    def wait(self, seconds: float) -> int:
        code = self.launcher.ended(seconds)
        if code is None:
            raise subprocess.TimeoutExpired("work", seconds)
        return code


@pytest.mark.usefixtures("minutes")
def test_a_node_that_does_not_see_the_folder_sends_it_back(
    two_groups: dict[str, Any], launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node does, without Ray around it: the driver's folder is somewhere else. What it sends
    is lost once on the way. Only that first worker is a new process of Python."""
    lost: list[object] = []
    start_worker = attempts.start_worker
    monkeypatch.setattr(
        attempts,
        "start_worker",
        lambda *unit: Forked(launcher, *unit) if lost else start_worker(*unit),
    )

    class Elsewhere(LocalExecutor):
        def run(self, folder: Path) -> None:
            order, away = (
                (folder / UNIT_ORDER).read_text(encoding="utf-8"),
                tmp_path / "no" / folder.name,
            )
            task = away, order, packed(folder), self.threads
            if not lost:
                lost.append(run_unit(*task, lambda: False))
            code, files = run_unit(*task, lambda: False)
            unpack(files, folder)
            check_worker(code, folder)

    study = small_study(tmp_path, **TWO_GROUPS)
    study.run(tmp_path / "out", executor=Elsewhere(study.config, 1))
    assert results(tmp_path / "out") == two_groups


@pytest.mark.parametrize(
    ("address", "message"),
    [("here", "expected auto, HOST:PORT"), ("localhost:1", "Connection refused")],
)
def test_an_address_that_cannot_be_used_is_refused_before_anything_runs(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = study_file(tmp_path, **TWO_GROUPS)
    setting = f"executor.ray.address={address}"
    monkeypatch.setenv("RANKSCOPE_TRUST_TASK_CODE", "1")
    outcome = rankscope("run", file, "--out", tmp_path / "out", "--set", setting)
    assert outcome.code == 2
    assert message in outcome.told
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_the_client_of_ray_needs_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = study_file(tmp_path, **TWO_GROUPS)
    monkeypatch.setenv("RANKSCOPE_TRUST_TASK_CODE", "1")
    monkeypatch.setitem(sys.modules, "grpc", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "ray.util.client.worker", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        setting = f"executor.ray.address={address}"
        outcome = rankscope("run", file, "--out", tmp_path / "out", "--set", setting)
    assert outcome.code == 2
    assert "no package grpc" in outcome.told
    assert "pip install 'rankscope[ray]'" in outcome.told
