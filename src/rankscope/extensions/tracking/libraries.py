"""The libraries, each found by the lower-case name of its class, which is that of its package."""

import logging
import os
import time
from typing import Any

from rankscope.extensions.tracking import History, TrackedRun, Tracker
from rankscope.records import FAILED

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # Its own 7 take minutes
os.environ.setdefault("WANDB_SILENT", "true")  # It would ask a terminal for a key, and wait
MOST = 1000  # Metrics of one request to MLflow


class Mlflow(Tracker):
    """Runs in the store of MLFLOW_TRACKING_URI, or in MLflow's default."""

    def write(self, run: TrackedRun, points: History, status: str) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client, now, tag = mlflow.MlflowClient(), int(time.time() * 1000), "rankscope_run"
        project = mlflow.set_experiment(run.project).experiment_id
        known = client.search_runs([project], f"tags.{tag} = '{run.id}'")
        made = known or [client.create_run(project, tags={tag: run.id}, run_name=run.name)]
        run_id = made[0].info.run_id
        if not known:
            params = [Param(name, str(value)) for name, value in run.settings.items()]
            client.log_batch(run_id, params=params[:100])
        metrics = [Metric(n, v, now, step) for step, values in points for n, v in values.items()]
        for start in range(0, len(metrics), MOST):
            client.log_batch(run_id, metrics=metrics[start : start + MOST])
        if status:
            client.set_tag(run_id, "status", status)
            client.set_terminated(run_id, "FAILED" if status in FAILED else "FINISHED")


class Trackio(Tracker):
    """Runs in Trackio's local database, or on the server that its variables name."""

    def write(self, run: TrackedRun, points: History, status: str) -> None:
        import trackio

        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        opened = trackio.init(run.project, run.name, config=run.settings, **quiet)
        opened.id = run.id
        for step, values in points:
            opened.log(values, step=step)
        if status:
            opened.log({"status": status}, step=points[-1][0] if points else 0)
        opened.finish()  # returns once all is written


class Wandb(Tracker):
    """Runs on the server that ``wandb`` is logged in to, or in ``wandb/`` if it is offline."""

    def write(self, run: TrackedRun, points: History, status: str) -> None:
        import wandb

        quiet = wandb.Settings(console="off", x_disable_stats=True)
        how: Any = {"resume": "allow", "reinit": "create_new", "settings": quiet}
        opened = wandb.init(None, run.project, id=run.id, name=run.name, config=run.settings, **how)
        opened.define_metric("*", step_metric="step")  # points need not come in order
        for step, values in points:
            opened.log({"step": step, **values})
        if status:
            opened.summary["status"] = status
        opened.finish(exit_code=int(status in FAILED))  # returns once all is written
