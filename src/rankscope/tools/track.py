"""Trials as runs of an experiment tracker, while their study runs: ``rankscope run --track NAME``.

At the end of every stage the ledger is read, and what is new is sent: a run for each trial that was
trained or failed, and one for the base. ``tracked.json`` beside the ledger says what was sent, so a
continued study sends nothing twice. A tracker that fails is noted once, and the study goes on.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope.errors import UserError, first_line, installed, reading
from rankscope.filesystem import replace_text
from rankscope.hashing import sha256_json
from rankscope.progress import ProgressReporter
from rankscope.records import BASE, FAILED, StudyRecords, TrialRecords
from rankscope.store import LEDGER, Ledger
from rankscope.tools.frames import TRAINING_COLUMNS, trial_row

SENT = "tracked.json"
RUN = "rankscope_run"  # Tag with a run's id, by which a continued study finds it again
BATCH = 1000  # Most metrics of one request to MLflow


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The news of a trial, or of the base."""

    id: str
    name: str
    group: str  # The training task; empty for the base
    config: Mapping[str, str | int | float | bool]
    history: Mapping[int, Mapping[str, float]]  # Values by optimizer step
    results: Mapping[str, float]  # Scores and costs, which belong to no step
    failed: bool


Send = Callable[[TrackedRun], object]


class TrackingReporter(ProgressReporter):
    """Passes progress on to another reporter, and trials to a tracker."""

    def __init__(self, inner: ProgressReporter, out: Path, to: str, project: str) -> None:
        """``out`` is the study's folder. Raises UserError: the tracker is unknown or not installed,
        or cannot be reached."""
        if to not in TRACKERS:
            raise UserError("--track", repr(to), f"one of {', '.join(TRACKERS)}")
        self.inner, self.out, self.to, self.is_broken = inner, out, to, False
        place = f"--track {to}"
        with _quiet(), reading(place, "a tracker that works"), installed(place, "track"):
            self.send = TRACKERS[to](project)

    def stage(self, name: str, total: int) -> None:
        self.inner.stage(name, total)

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        self.inner.advance(done, detail, **values)

    def note(self, text: str) -> None:
        self.inner.note(text)

    def finish(self, detail: str = "") -> None:
        self.inner.finish(detail)
        if self.is_broken or not (self.out / LEDGER).exists():
            return
        try:
            with _quiet():
                self.send_new()
        except Exception as error:
            self.is_broken = True
            self.note(f"--track {self.to} failed, the study goes on: {first_line(error)}")

    def send_new(self) -> None:
        with Ledger.open(self.out, write=False) as ledger:
            study = ledger.load()
        place = self.out / SENT
        sent: dict[str, list[str]] = json.loads(place.read_text("utf-8")) if place.exists() else {}
        for run in tracked_runs(study):
            key = f"{self.to} {run.id}"
            known = sent.get(key, [])
            results = {name: v for name, v in run.results.items() if name not in known}
            if results or key not in sent:
                history = {} if known else run.history
                config = {} if known else run.config
                group, failed = run.group, run.failed
                self.send(TrackedRun(run.id, run.name, group, config, history, results, failed))
                sent[key] = [*known, *results]
                replace_text(place, json.dumps(sent) + "\n")


def _quiet() -> contextlib.AbstractContextManager[object]:
    """Trackers print greetings."""
    return contextlib.redirect_stdout(sys.stderr)


# --- what is sent


def tracked_runs(study: StudyRecords) -> Iterator[TrackedRun]:
    """The base, then every trial that was trained or failed."""
    model, train = study.model, study.config.train.model_dump(mode="json")
    common: dict[str, object] = {
        "study": study.name,
        "base": model.label,
        "base_sha256": model.sha256,
        "dtype": model.dtype,
        "device": model.device,
        "prompt_format": model.prompt_format,
        "rankscope": study.provenance.rankscope,
        **{f"train.{name}": value for name, value in train.items()},
    }
    yield _run(study, None, common)
    for trial in study.trials:
        if trial.train is not None or trial.status in FAILED:
            yield _run(study, trial, common)


def _run(study: StudyRecords, trial: TrialRecords | None, common: dict[str, object]) -> TrackedRun:
    config, history = {"trial": BASE, **common}, dict[int, dict[str, float]]()
    trial_id, name, group, failed = BASE, f"{study.model.label} (base)", "", False
    costs: dict[str, float] = {}
    if trial is not None:
        trial_id, name, group = trial.spec.trial_id, trial.spec.label, trial.spec.task
        row, history, failed = trial_row(trial), _history(trial), trial.status in FAILED
        hidden = {"arm", "final_loss", "status", *TRAINING_COLUMNS}
        config |= {key: value for key, value in row.items() if key not in hidden}
        costs = {n: float(row[n]) for n in TRAINING_COLUMNS if row.get(n) is not None}  # type: ignore[arg-type]
    # Unknown values are left out; what is no scalar is text.
    known = {n: v for n, v in config.items() if v is not None}
    settings = {n: v if isinstance(v, str | int | float) else str(v) for n, v in known.items()}
    # Studies that share a project may share trials, scored on other tasks.
    run_id = sha256_json([study.name, trial_id])[:16]
    results = costs | _scores(study, trial_id)
    return TrackedRun(run_id, name, group, settings, history, results, failed)


def _history(trial: TrialRecords) -> dict[int, dict[str, float]]:
    """Loss, rate and gradient norm of each optimizer step, and scores during training."""
    history: dict[int, dict[str, float]] = {}
    for point in () if trial.train is None else trial.train.losses:
        values = {"loss": point.loss, "lr": point.lr, "grad_norm": point.grad_norm}
        history.setdefault(point.step, {}).update(values)
    for score in trial.curve:
        history.setdefault(score.step, {})[f"during/{score.task}"] = score.score
    return dict(sorted(history.items()))


def _scores(study: StudyRecords, model_id: str) -> dict[str, float]:
    """``test/TASK``, and ``change/TASK``: the same minus the base's."""
    scores: dict[str, float] = {}
    for (scored, task, split), record in study.evals.items():
        if scored != model_id:
            continue
        scores[f"{split}/{task}"] = record.score
        base = study.evals.get((BASE, task, split))
        if split == "test" and base is not None and model_id != BASE:
            scores[f"change/{task}"] = record.score - base.score
    return scores


# --- the trackers, each with its own store


def _mlflow(project: str) -> Send:
    """The store of MLFLOW_TRACKING_URI, or MLflow's default."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.entities import Metric, Param

    client, experiment = mlflow.MlflowClient(), mlflow.set_experiment(project).experiment_id

    def send(run: TrackedRun) -> None:
        found = client.search_runs([experiment], f"tags.{RUN} = '{run.id}'")
        tags = {RUN: run.id, "task": run.group}
        made = found[0] if found else client.create_run(experiment, tags=tags, run_name=run.name)
        points = [*run.history.items(), (max(run.history, default=0), run.results)]
        now, params = int(time.time() * 1000), [Param(n, str(v)) for n, v in run.config.items()]
        metrics = [Metric(n, v, now, step) for step, values in points for n, v in values.items()]
        client.log_batch(made.info.run_id, params=params[:100])
        for start in range(0, len(metrics), BATCH):
            client.log_batch(made.info.run_id, metrics=metrics[start : start + BATCH])
        client.set_terminated(made.info.run_id, "FAILED" if run.failed else "FINISHED")

    return send


def _trackio(project: str) -> Send:
    """Trackio's local database, which ``trackio show`` displays."""
    import trackio

    def send(run: TrackedRun) -> None:
        quiet: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        group, config = run.group or None, {**run.config, RUN: run.id} if run.config else None
        own = {"project": project, "name": run.name, "group": group, "config": config}
        started = trackio.init(**own, resume="allow", **quiet)
        for step, values in run.history.items():
            started.log(dict(values), step=step)
        started.log(dict(run.results))
        started.finish()

    return send


def _wandb(project: str) -> Send:
    """The server that ``wandb`` is logged in to, or ``wandb/`` if WANDB_MODE is offline."""
    import wandb

    def send(run: TrackedRun) -> None:
        settings = wandb.Settings(console="off", silent=True)
        own = {"project": project, "id": run.id, "name": run.name, "group": run.group or None}
        started = wandb.init(**own, config=dict(run.config), resume="allow", settings=settings)
        for step, values in run.history.items():
            started.log(dict(values), step=step)
        started.summary.update(dict(run.results))
        started.finish(exit_code=int(run.failed))

    return send


TRACKERS: Mapping[str, Callable[[str], Send]] = {
    "mlflow": _mlflow,
    "trackio": _trackio,
    "wandb": _wandb,
}
