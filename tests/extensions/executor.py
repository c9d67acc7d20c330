"""An executor of one's own: units run one after another, in this process."""

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.run.executors import Executor, ExecutorSettings

if TYPE_CHECKING:
    from rankscope.config.study import StudyConfig


class SerialSettings(ExecutorSettings):
    """One unit after another, in this process."""

    name = "serial"
    most: int = 99
    """Units that it takes."""

    def start(self, config: "StudyConfig", num_workers: int | None) -> Executor:
        return SerialExecutor(self.most)


class SerialExecutor:
    """Runs each unit as soon as it is submitted."""

    name = "serial"
    num_local = 1

    def __init__(self, most: int = 99) -> None:
        self.most = most
        self.submitted: list[str] = []

    def submit(self, folder: Path) -> Future[None]:
        from rankscope.run.workers.worker import work

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
