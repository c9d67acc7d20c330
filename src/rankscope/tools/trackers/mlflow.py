"""Runs of an MLflow experiment, in the store of MLFLOW_TRACKING_URI or MLflow's default."""

import logging
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial

from rankscope.tools.trackers import RUN, TrackedRun

BATCH = 1000  # Most metrics of one request


class Mlflow:
    def __init__(self, project: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client, self.project = mlflow.MlflowClient(), project
        self.store = str(self.client.tracking_uri)
        self.experiment = mlflow.set_experiment(project).experiment_id

    def runs(self) -> Iterator[tuple[str, Callable[[], object]]]:
        import mlflow

        for run in mlflow.search_runs([self.experiment], output_format="list"):
            if run_id := run.data.tags.get(RUN):
                is_complete = run.info.status in ("FINISHED", "FAILED")
                delete = partial(self.client.delete_run, run.info.run_id)
                yield run_id if is_complete else run_id.split("-")[0], delete

    def write(self, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param

        time = int(datetime.fromisoformat(run.created).timestamp() * 1000)
        tags = {RUN: run.id, "task": run.group}
        made = self.client.create_run(self.experiment, time, tags, run_name=run.name)
        metrics = [
            Metric(name, value, time, step)
            for step, values in run.history
            for name, value in values.items()
        ]
        params = [Param(name, str(value)) for name, value in run.config.items()]
        self.client.log_batch(made.info.run_id, params=params[:100])
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(made.info.run_id, metrics=metrics[start : start + BATCH])
        status = "FAILED" if "failure" in run.config else "FINISHED"
        self.client.set_terminated(made.info.run_id, status, end_time=time)
