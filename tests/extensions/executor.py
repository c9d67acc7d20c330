"""An executor of one's own: units run one after another, in this process."""

from concurrent.futures import Future
from pathlib import Path

from rankscope.run.executors import ExecutorOptions, register_executor
from rankscope.run.worker import work


class SerialExecutor:
    """Runs each unit as soon as it is submitted."""

    num_local = 1
    runs_elsewhere = False

    def __init__(self, options: ExecutorOptions) -> None:
        self.submitted: list[str] = []

    def submit(self, folder: Path) -> Future[None]:
        future: Future[None] = Future()
        self.submitted.append(folder.name)
        try:
            work(folder.parents[1], folder.name)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def stop(self) -> None: ...

    def close(self) -> None: ...


register_executor("serial", SerialExecutor)
