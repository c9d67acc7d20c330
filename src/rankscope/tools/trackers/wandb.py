"""Runs on the server that ``wandb`` is logged in to, or in ``wandb/`` if WANDB_MODE is offline."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rankscope.tools.trackers import TrackedRun

COMPLETE = "rankscope-complete"  # A file in the folder of an offline run that was written whole


class Wandb:
    def __init__(self, project: str) -> None:
        import wandb

        self.wandb, self.project = wandb, project
        self.is_offline = os.environ.get("WANDB_MODE") == "offline"
        self.folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
        self.store = str(self.folder) if self.is_offline else "wandb"

    def runs(self) -> Iterator[tuple[str, Callable[[], object]]]:
        if self.is_offline:
            for folder in [mark.parent for mark in self.folder.glob(f"offline-run-*/{COMPLETE}")]:
                yield folder.name.split("-", 3)[3], partial(shutil.rmtree, folder)
            return
        api = self.wandb.Api()
        try:
            found = list(api.runs(f"{api.default_entity}/{self.project}"))
        except ValueError:  # no such project yet
            return
        yield from ((run.id, run.delete) for run in found if run.state in ("finished", "failed"))

    def write(self, run: TrackedRun) -> None:
        started = self.wandb.init(
            project=self.project,
            id=run.id,
            name=run.name,
            group=run.group or None,
            config=run.config,
            settings=self.wandb.Settings(console="off", silent=True),
        )
        for step, values in run.history:
            started.log(values, step=step)
        folder = Path(started.dir).parent
        started.finish(exit_code=int("failure" in run.config))
        if self.is_offline:
            (folder / COMPLETE).touch()
