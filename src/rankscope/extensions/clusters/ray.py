"""Units as tasks of a Ray cluster, or of a Ray that starts on this machine.

A node that finds the unit's order under the driver's path works there. Any other node gets the
folder through Ray's object store, works in a temporary copy and returns that copy, checkpoints
included.
"""

import io
import logging
import os
import re
import socket
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope.config.section import PlainText
from rankscope.errors import CONTINUES, Interrupted, UserError, first_line, installed, reading
from rankscope.run.executors import Executor, ExecutorSettings
from rankscope.run.workers.attempts import (
    SEAL,
    WorkerFailed,
    check_worker,
    run_worker,
    shared_threads,
)

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig

MAX_WORKERS = 256  # Most units that wait in Ray at a time, unless ``--workers`` sets a number
MAX_PLACEMENTS = 5  # Nodes that may be lost under a unit: a preempted one is no fault of the unit
ASK_SECONDS = 1.0  # How often a node asks whether to stop


class RaySettings(ExecutorSettings):
    """A Ray cluster, or a Ray that is started on this machine."""

    name = "ray"

    address: PlainText | None = None
    """``auto``, ``HOST:PORT`` or ``ray://HOST:PORT`` of a running cluster; by default Ray starts on
    this machine."""

    @property
    def runs_elsewhere(self) -> bool:
        return self.address is not None

    def start(self, config: "StudyConfig", num_workers: int | None) -> Executor:
        if self.address != "auto":  # the user's own cluster
            self.check_trusted("address")
        return RayExecutor(self.address, config, num_workers)


class _StopFlag:
    """Flag in the cluster, which tells every node whether the driver wants to stop."""

    def __init__(self) -> None:
        self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True

    def asked(self) -> bool:
        return self.is_stopped


class RayExecutor:
    """Runs each unit as a Ray task.

    A task gets ``train.devices`` GPUs, or CPUs for all of its threads, and the unit's planned
    memory. Ray places the tasks, and runs those of lost nodes again.
    """

    name = "ray"

    def __init__(
        self, address: str | None, config: "StudyConfig", num_workers: int | None = None
    ) -> None:
        device, width = config.device, config.train.devices
        if re.fullmatch(r"cuda:\d+", device):
            why = "auto, cuda or cpu, as Ray chooses the GPU"
            raise UserError("device", repr(device), why)
        self.ray, self.is_here = _connect_ray(address), address is None
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        # A task that asks for more than any node has, memory included, would wait forever.
        most_cpus = int(max(node.get("CPU", 0) for node in nodes))
        self.threads = max(1, min(shared_threads((num_workers or 1) * width), most_cpus))
        most_gpus = int(max(node.get("GPU", 0) for node in nodes))
        uses_gpus = device == "cuda" or (most_gpus > 0 and device != "cpu")
        if uses_gpus and most_gpus < width:
            raise UserError(
                "device",
                f"{device!r}, and nodes of Ray with up to {most_gpus} GPUs",
                f"{width} GPUs for each unit",
                "start a node with more, or set device: cpu",
            )
        # A trial on a GPU is Python's own work besides: one CPU.
        cpus = width if uses_gpus else min(most_cpus, width * self.threads)
        needs = {"num_gpus": width} if uses_gpus else {}
        kind, least = ("GPU", width) if uses_gpus else ("CPU", cpus)
        usable = [node for node in nodes if node.get(kind, 0) >= least]
        self.most_memory = int(max(node.get("memory", 0) for node in usable))
        self.num_local = 1 if needs else max(1, most_cpus // cpus)
        remote = self.ray.remote(max_retries=MAX_PLACEMENTS - 1, num_cpus=cpus, **needs)
        self.task = remote(_run_on_node)
        # Beside the driver: with another node it would be lost, and all units would stop.
        node_id = self.ray.get_runtime_context().get_node_id()
        beside = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, False)
        remote = self.ray.remote(num_cpus=0, scheduling_strategy=beside, max_restarts=-1)
        flag = remote(_StopFlag)
        self.flag = flag.remote()
        self.pool = ThreadPoolExecutor(num_workers or MAX_WORKERS)
        self.stopped = threading.Event()

    def submit(self, folder: Path) -> Future[None]:
        """Hand a unit to Ray as soon as fewer than ``--workers`` others wait there."""
        return self.pool.submit(self.run, folder)

    def run(self, folder: Path) -> None:
        from rankscope.run.workers.order import read_unit
        from rankscope.store import UNIT_ORDER

        if self.stopped.is_set():
            raise Interrupted("unit", "a request to stop before it began", do=CONTINUES)
        order = (folder / UNIT_ORDER).read_text(encoding="utf-8")
        # A Ray that was started here has no other node.
        files = b"" if self.is_here else packed(folder)
        memory = min(read_unit(folder).host_bytes, self.most_memory)
        placed = self.task.options(memory=memory)
        try:
            code, files_after = self.ray.get(
                placed.remote(folder, order, files, self.threads, self.flag)
            )
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except self.ray.exceptions.RayError as error:
            raise WorkerFailed(f"Ray gave it up: {first_line(error)}") from error
        if files_after is not None:
            unpack(files_after, folder)
        check_worker(code, folder)

    def stop(self) -> None:
        self.stopped.set()
        self.flag.stop.remote()

    def close(self) -> None:
        """Return once all units ended; a second Ctrl-C leaves them to Ray, which ends them."""
        try:
            self.pool.shutdown(wait=True, cancel_futures=True)
        finally:
            self.ray.shutdown()


def _connect_ray(address: str | None) -> Any:
    """Connect Ray to the cluster at ``address``, or start it on this machine.

    Raises UserError: Ray is not installed, or no cluster answers.
    """
    place, do = "executor ray", ""
    if address is not None:
        place = f"executor.ray.address: {address}"
        do = "start a cluster with 'ray start --head', or leave the address out to use this machine"
    if address is not None and address != "auto":  # Ray itself would try for a minute
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(place, expected="auto, HOST:PORT or ray://HOST:PORT")
        with reading(place, "a cluster that answers", do=do):
            socket.create_connection((host, int(port)), timeout=5).close()
    with installed("executor ray", "ray"):
        import ray

        if address and address.startswith("ray://"):
            import ray.util.client.worker  # needs gRPC, which Ray alone does not
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Rankscope reports nothing to anybody
    with reading(place, "Ray to start or to answer", do=do):
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
    return ray


def _run_on_node(
    folder: Path, order: str, files: bytes, threads: int, flag: Any
) -> tuple[int, bytes | None]:
    """Call :func:`run_unit` on the node that Ray chose; ``flag`` is a handle of the _StopFlag."""
    import ray

    next_question = 0.0

    def should_stop() -> bool:
        nonlocal next_question
        if time.monotonic() < next_question:
            return False
        next_question = time.monotonic() + ASK_SECONDS
        try:
            return bool(ray.get(flag.asked.remote()))
        except ray.exceptions.ActorUnavailableError:
            return False  # the network may come back
        except ray.exceptions.RayError:
            return True  # the flag ends with the driver

    return run_unit(folder, order, files, threads, should_stop)


def run_unit(
    folder: Path, order: str, files: bytes, threads: int, should_stop: Callable[[], bool]
) -> tuple[int, bytes | None]:
    """Run one unit in its folder if this machine sees it, else in a temporary copy.

    Args:
        folder: the unit's folder on the driver's machine.
        order: content of its ``unit.json``, by which a node knows the folder.
        files: the folder as a tar archive, for nodes that do not see it.
        threads: threads of the worker.
        should_stop: whether the worker should write a checkpoint and end.

    Returns:
        Exit code of the worker, and the folder as a tar archive; None if the driver sees it.
    """
    from rankscope.store import UNIT_ORDER, UNITS

    is_here = False
    with suppress(OSError):
        is_here = (folder / UNIT_ORDER).read_text(encoding="utf-8") == order
    with nullcontext() if is_here else tempfile.TemporaryDirectory(prefix="rankscope-") as copy:
        here = folder if copy is None else Path(copy) / UNITS / folder.name
        if copy is not None:
            unpack(files, here)
        code = run_worker(here, {"OMP_NUM_THREADS": str(threads)}, should_stop)
        return code, None if is_here else packed(here)


def packed(folder: Path) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(folder, arcname=".")
    return archive.getvalue()


def unpack(files: bytes, folder: Path) -> None:
    """Write an archive's files into a folder, the seal last, because it vouches for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(files)) as tar:
        members = sorted(tar.getmembers(), key=lambda member: member.name.endswith(SEAL))
        tar.extractall(folder, members, filter="data")
