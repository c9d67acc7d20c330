"""A study in an experiment tracker while it runs: ``rankscope run --track NAME``.

The process that runs the study reads the ledger between two signs of progress, so it does not
matter where trials train. ``OUT/tracked.jsonl`` names what was sent, and a study that continues
sends only the rest. After a kill it may repeat the last message.
"""

import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import uuid4

from rankscope.errors import reason_of
from rankscope.hashing import sha256_json
from rankscope.progress import JsonlReporter, ProgressReporter, logged

if TYPE_CHECKING:
    from rankscope.records import StudyRecords, TrialRecords
    from rankscope.store import Ledger

History = list[tuple[int, dict[str, float]]]  # (optimizer step, values)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # Its own 7 take minutes
os.environ.setdefault("WANDB_SILENT", "true")  # It would ask a terminal for a key, and wait
MOST = 1000  # Metrics of one request to MLflow
LOGGED = {"loss", "lr", "grad_norm"}
UNSENT = {"schema_version", "prompt", "given", "init_from"}  # Rows and folders


class _TrackedRun(NamedTuple):
    id: str
    project: str  # The study's name
    name: str  # The trial's task, arm and seed
    settings: dict[str, object]  # The trial's, and the protocol


class Tracker(ProgressReporter):
    """Passes progress on, and sends new entries of the ledger."""

    SECONDS = 10.0  # Least time between two looks at the ledger
    LOOKS = 0.05  # Most of a study's time that looks take
    next_look, is_broken = 0.0, False

    def __init__(self, log: JsonlReporter, ledger: "Ledger") -> None:
        self.log, self.ledger = log, ledger
        self.memory = JsonlReporter(ProgressReporter(), log.path.with_name("tracked.jsonl"))
        events = list(logged(self.memory.path, self.name))
        self.runs = {str(event["trial"]): str(event["run"]) for event in events}
        self.sent = {key for event in events for key in event["sent"]}

    def write(self, run: _TrackedRun, points: History, status: str) -> None:
        """Add points to a run, which may not exist yet; with a status, end it.

        The call returns once the tracker has the points.
        """
        raise NotImplementedError

    def stage(self, name: str, total: int) -> None:
        self.look()
        self.log.stage(name, total)

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        self.log.advance(done, detail, **values)
        self.look()

    def finish(self, detail: str = "") -> None:
        self.log.finish(detail)
        self.look()

    def note(self, text: str) -> None:
        self.log.note(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.look(is_last=True)

    def look(self, *, is_last: bool = False) -> None:
        """Send new entries. A tracker that fails is noted and not asked again."""
        begun = time.monotonic()
        if self.is_broken or (begun < self.next_look and not is_last):
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):  # libraries print greetings
                records = self.ledger.load(with_analyses=False)
                scores: dict[object, dict[str, float]] = {}
                for (model, task, split), record in records.evals.items():
                    scores.setdefault(model, {})[f"{split}/{task}"] = record.score
                for trial in records.trials:
                    self.send(records, trial, scores.get(trial.spec.trial_id, {}))
        except (Exception, SystemExit) as error:
            self.is_broken = True
            do = "the same command sends the rest"
            self.note(f"{self.name} gets no more of this study ({reason_of(error)}); {do}")
        now = time.monotonic()
        self.next_look = now + max(self.SECONDS, (now - begun) / self.LOOKS)

    def send(self, study: "StudyRecords", trial: "TrialRecords", scores: dict[str, float]) -> None:
        """Send the pieces of a trial that were not sent before."""
        from rankscope.records import FAILED

        spec, losses = trial.spec, trial.train.losses if trial.train else ()
        last = losses[-1].step if losses else 0
        pieces: list[History] = [[(p.step, p.model_dump(include=LOGGED)) for p in losses]]
        pieces += [[(p.step, {f"during/{p.task}": p.score})] for p in trial.curve]
        pieces += [[(last, {name: score})] for name, score in scores.items()]
        status = trial.status if trial.status in FAILED | {"done"} else ""
        keyed = {sha256_json([spec.trial_id, piece])[:16]: piece for piece in (*pieces, status)}
        new = {key: piece for key, piece in keyed.items() if piece and key not in self.sent}
        if not new:
            return
        told = {"trial": spec.trial_id, "run": self.runs.get(spec.trial_id) or uuid4().hex}
        if spec.trial_id not in self.runs:  # now: a process that is killed leaves no second run
            self.memory.write(self.name, **told, sent=[])
        self.runs[spec.trial_id] = told["run"]
        points = [point for p in new.values() if not isinstance(p, str) for point in p]
        settings = spec.model_dump(mode="json", exclude_none=True, exclude=UNSENT)
        train = study.config.train.model_dump(mode="json", exclude_none=True)
        settings |= {"base": study.model.label, **{f"train.{n}": v for n, v in train.items()}}
        run = _TrackedRun(told["run"], study.name, spec.label, settings)
        self.write(run, sorted(points, key=lambda point: point[0]), status)
        self.sent |= new.keys()
        self.memory.write(self.name, **told, sent=[*new])


class Mlflow(Tracker):
    """Runs in the store of MLFLOW_TRACKING_URI, or in MLflow's default."""

    name = "mlflow"

    def write(self, run: _TrackedRun, points: History, status: str) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        from rankscope.records import FAILED

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

    name = "trackio"

    def write(self, run: _TrackedRun, points: History, status: str) -> None:
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

    name = "wandb"

    def write(self, run: _TrackedRun, points: History, status: str) -> None:
        import wandb

        from rankscope.records import FAILED

        quiet = wandb.Settings(console="off", x_disable_stats=True)
        how: Any = {"resume": "allow", "reinit": "create_new", "settings": quiet}
        opened = wandb.init(None, run.project, id=run.id, name=run.name, config=run.settings, **how)
        opened.define_metric("*", step_metric="step")  # points need not come in order
        for step, values in points:
            opened.log({"step": step, **values})
        if status:
            opened.summary["status"] = status
        opened.finish(exit_code=int(status in FAILED))  # its service writes the last of it
