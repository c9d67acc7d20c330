"""One class per experiment tracker: which runs it has, and how a run is written to it."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

Scalar = str | int | float | bool
RUN, KEY = "rankscope_run", "rankscope_key"  # Names in a run's configuration or tags


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    identity: str  # Of the trial within its study
    key: str  # Hash of everything below: a changed trial has another one
    name: str
    group: str  # The training task
    config: dict[str, Scalar]
    history: tuple[tuple[int, dict[str, float]], ...]  # (optimizer step, values)
    results: dict[str, float]
    failure: str | None
    created: str  # ISO 8601, UTC


class _Tracker(Protocol):
    """A project of a tracker. ``write`` marks a run with its key last: a cut one is redone."""

    project: str
    place: str  # Where its runs are, for people

    def stored(self) -> dict[str, str]:
        """Key of every run that came from a study, by identity."""

    def remove(self, identity: str) -> None:
        """Delete a run."""

    def write(self, run: TrackedRun) -> None:
        """Add a run."""


class Trackio:
    """Runs in trackio's local database, which ``trackio show`` displays.

    A run is complete if a file named by its identity and its key exists.
    """

    def __init__(self, project: str) -> None:
        import trackio
        from trackio.utils import TRACKIO_DIR

        self.trackio, self.project, self.place = trackio, project, str(TRACKIO_DIR)
        self.complete = Path(TRACKIO_DIR) / "rankscope-complete"

    def runs(self) -> list[tuple[Any, dict[str, Any]]]:
        """Every run with its configuration."""
        try:
            return [(run, run.config or {}) for run in self.trackio.Api().runs(self.project)]
        except ValueError:  # no such project yet
            return []

    def stored(self) -> dict[str, str]:
        configs = [config for _, config in self.runs() if RUN in config]
        keys = {config[RUN]: config.get(KEY, "") for config in configs}
        return {
            identity: key if self.mark(identity, key).is_file() else ""
            for identity, key in keys.items()
        }

    def mark(self, identity: str, key: str) -> Path:
        return self.complete / f"{identity}-{key}"

    def remove(self, identity: str) -> None:
        for run, config in self.runs():
            if config.get(RUN) == identity:
                self.mark(identity, config.get(KEY, "")).unlink(missing_ok=True)
                run.delete()

    def write(self, run: TrackedRun) -> None:
        started = self.trackio.init(
            project=self.project,
            name=run.name,
            group=run.group or None,
            config={**run.config, RUN: run.identity, KEY: run.key},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for step, values in run.history:
            started.log(values, step=step)
        last = run.history[-1][0] if run.history else 0
        failed = {"failed": 1.0} if run.failure else {}
        started.log({**run.results, **failed}, step=last)
        started.finish()
        self.complete.mkdir(parents=True, exist_ok=True)
        self.mark(run.identity, run.key).touch()


class _Wandb:
    """Runs on the server that ``wandb`` is logged in to, or in ``wandb/`` with WANDB_MODE=offline.

    A run's id holds its identity and its key, so one that is there is found by its id.
    """

    WHOLE = "rankscope-complete"  # A file in the folder of an offline run that was written whole

    def __init__(self, project: str) -> None:
        import wandb

        self.wandb, self.project = wandb, project
        self.offline = os.environ.get("WANDB_MODE") == "offline"
        self.folder = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
        self.place = str(self.folder) if self.offline else "wandb"

    def runs(self) -> Iterator[tuple[str, Any]]:
        """Id of every finished run, with its folder or the server's record of it."""
        if self.offline:
            for mark in self.folder.glob(f"offline-run-*/{self.WHOLE}"):
                yield mark.parent.name.split("-", 3)[3], mark.parent
            return
        api = self.wandb.Api()
        try:
            runs = list(api.runs(f"{api.default_entity}/{self.project}"))
        except ValueError:  # no such project yet
            runs = []
        yield from ((run.id, run) for run in runs if run.state in ("finished", "failed"))

    def stored(self) -> dict[str, str]:
        parts = [name.split("-") for name, _ in self.runs()]
        return {part[0]: part[1] for part in parts if len(part) == 2}

    def remove(self, identity: str) -> None:
        for name, run in list(self.runs()):
            if name.split("-")[0] == identity:
                shutil.rmtree(run) if self.offline else run.delete()

    def write(self, run: TrackedRun) -> None:
        started = self.wandb.init(
            project=self.project,
            id=f"{run.identity}-{run.key}",
            name=run.name,
            group=run.group or None,
            config=run.config,
            settings=self.wandb.Settings(console="off", silent=True),
        )
        for step, values in run.history:
            started.log(values, step=step)
        started.summary.update(run.results)
        if run.failure:
            started.summary["failure"] = run.failure
        folder = Path(started.dir).parent
        started.finish(exit_code=1 if run.failure else 0)
        if self.offline:
            (folder / self.WHOLE).touch()


class _Mlflow:
    """Runs of an MLflow experiment, in the store of MLFLOW_TRACKING_URI or MLflow's default."""

    BATCH = 1000  # Most metrics of one request

    def __init__(self, project: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.client, self.project = MlflowClient(), project
        self.place = str(self.client.tracking_uri)
        found = self.client.get_experiment_by_name(project)
        self.experiment = (
            self.client.create_experiment(project) if found is None else found.experiment_id
        )

    def runs(self) -> list[Any]:
        found, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], page_token=token)
            found += [run for run in page if RUN in run.data.tags]
            if not (token := page.token):
                return found

    def stored(self) -> dict[str, str]:
        return {run.data.tags[RUN]: run.data.tags.get(KEY, "") for run in self.runs()}

    def remove(self, identity: str) -> None:
        for run in self.runs():
            if run.data.tags[RUN] == identity:
                self.client.delete_run(run.info.run_id)

    def write(self, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        time = int(datetime.fromisoformat(run.created).timestamp() * 1000)
        tags = {RUN: run.identity, "task": run.group, "failure": run.failure}
        made = self.client.create_run(
            self.experiment,
            start_time=time,
            run_name=run.name,
            tags={name: text for name, text in tags.items() if text},
        )
        place = made.info.run_id
        last = run.history[-1][0] if run.history else 0
        metrics = [
            Metric(name, value, time, step)
            for step, values in (*run.history, (last, run.results))
            for name, value in values.items()
        ]
        params = [Param(name, str(value)) for name, value in run.config.items()]
        self.client.log_batch(place, params=params[:100], metrics=[])
        for start in range(0, len(metrics), self.BATCH):
            self.client.log_batch(place, metrics=metrics[start : start + self.BATCH])
        self.client.log_batch(place, tags=[RunTag(KEY, run.key)])
        self.client.set_terminated(place, "FAILED" if run.failure else "FINISHED", end_time=time)


TRACKERS: dict[str, Callable[[str], _Tracker]] = {
    "trackio": Trackio,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}
