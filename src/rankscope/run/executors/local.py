"""Worker processes on this machine, one per unit."""

import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from rankscope.run.executors import Executor, ExecutorSettings
from rankscope.run.workers.attempts import (
    check_worker,
    fork_worker,
    run_worker,
    shared_threads,
    start_worker,
)
from rankscope.run.workers.starter import CAN_FORK, Starter

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig


class LocalSettings(ExecutorSettings):
    """Worker processes on this machine."""

    name = "local"

    def start(self, config: "StudyConfig", num_workers: int | None) -> Executor:
        return LocalExecutor(config, num_workers)


class LocalExecutor:
    """Runs up to ``num_workers`` processes at a time; by default one per visible GPU, else one.

    On a machine with several GPUs each process sees ``train.devices`` of them. A process that ended
    has returned all its memory, so no unit takes the blame for an earlier one.
    """

    name = "local"

    def __init__(self, config: "StudyConfig", num_workers: int | None = None) -> None:
        from rankscope.device import visible_gpus

        # Workers of a study that names its device, such as cuda:1, share it.
        gpus = visible_gpus() if config.device in ("auto", "cuda") else []
        width = config.train.devices
        count = len(gpus) // width
        num_workers = num_workers or max(1, count)
        self.num_local = math.ceil(num_workers / max(1, count))
        self.threads = shared_threads(num_workers * width)
        self.pool = ThreadPoolExecutor(num_workers)
        self.starter = Starter({"OMP_NUM_THREADS": str(self.threads)})
        self.start = partial(fork_worker, self.starter) if CAN_FORK else start_worker
        self.environments: SimpleQueue[dict[str, str]] = SimpleQueue()
        for i in range(num_workers):
            environment = {"OMP_NUM_THREADS": str(self.threads)}
            if count:
                first = i % count * width
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + width])
            self.environments.put(environment)
        self.stopped, self.killed = threading.Event(), threading.Event()

    def submit(self, folder: Path) -> Future[None]:
        return self.pool.submit(self.run, folder)

    def run(self, folder: Path) -> None:
        environment = self.environments.get()
        try:
            code = run_worker(
                folder, environment, self.stopped.is_set, self.killed.is_set, self.start
            )
        finally:
            self.environments.put(environment)
        check_worker(code, folder)

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        """Wait for all workers; a second Ctrl-C kills them, which costs no finished result."""
        try:
            self.pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            self.killed.set()
            self.pool.shutdown(wait=True)
            raise
        finally:
            self.starter.close()
