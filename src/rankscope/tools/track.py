"""Send a study's trials to an experiment tracker, as runs, from the ledger.

The study is only read, so a tracker cannot disturb training, and runs that the tracker already has
are left alone: the same command is safe to repeat, also while a study runs.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rankscope.errors import UserError, installed, reading
from rankscope.hashing import sha256_json
from rankscope.records import BASE, FAILED, StudyRecords, TrialRecords
from rankscope.store import Ledger
from rankscope.tools.frames import TRAINING_COLUMNS, trial_row
from rankscope.tools.trackers import Scalar, TrackedRun, tracker_class, tracker_names


def track(
    folder: Path,
    to: str,
    project: str | None = None,
    report: Callable[[str], None] = lambda label: None,
) -> tuple[str, str, list[str], int]:
    """Write every trained or failed trial, and the base, as a run of a project.

    Args:
        to: name of a tracker, which finds its store as it always does.
        project: name of the project or experiment; the study's name by default.
        report: receives the label of each run before it is written.

    Returns:
        The project, where it is, labels of new or changed trials, and how many are unchanged.

    Raises:
        UserError: no study, an unknown tracker, one that is not installed, or one that fails.
    """
    if to not in tracker_names():
        raise UserError("--to", repr(to), f"one of {', '.join(tracker_names())}")
    study = Ledger.read(folder)
    runs = list(tracked_runs(study))
    written: list[str] = []
    place, do = f"--to {to}", "give the same command again: it continues"
    with (
        contextlib.redirect_stdout(sys.stderr),  # trackers print greetings
        reading(place, "a tracker that works", do=do),
        installed(place, "track"),
    ):
        tracker = tracker_class(to)(project or study.name)
        known = list(tracker.runs())
        for run in runs:
            if run.id in (run_id for run_id, _ in known):
                continue
            report(run.name)
            for run_id, delete in known:
                if run_id.split("-")[0] == run.id.split("-")[0]:
                    delete()
            tracker.write(run)
            written.append(run.name)
    return tracker.project, tracker.store, written, len(runs) - len(written)


def tracked_runs(study: StudyRecords) -> Iterator[TrackedRun]:
    """The base, then every trial that was trained or failed."""
    model = study.model
    train = study.config.train.model_dump(mode="json")
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
    """The run of a trial, or of the base."""
    trial_id, name, group = BASE, f"{study.model.label} (base)", ""
    config, history = {"trial": BASE, **common}, dict[int, dict[str, float]]()
    last = _scores(study, BASE)
    if trial is not None:
        trial_id, name, group = trial.spec.trial_id, trial.spec.label, trial.spec.task
        row, history = trial_row(trial), _history(trial)
        hidden = {"arm", "failure", "final_loss", "status", *TRAINING_COLUMNS}
        config |= {key: value for key, value in row.items() if key not in hidden}
        if trial.status in FAILED:
            config["failure"] = trial.failure
        costs = {n: float(row[n]) for n in TRAINING_COLUMNS if row.get(n) is not None}  # type: ignore[arg-type]
        last = costs | _scores(study, trial_id)
    history.setdefault(max(history, default=0), {}).update(last)
    # Unknown values are left out; what is no scalar is text.
    known = {name: value for name, value in config.items() if value is not None}
    settings = {n: v if isinstance(v, Scalar) else str(v) for n, v in known.items()}
    points = tuple(sorted(history.items()))
    # Studies that share a project may share trials, scored on other tasks.
    identity = sha256_json([study.name, trial_id])[:16]
    content = sha256_json([name, settings, points])[:16]
    created = study.provenance.created
    return TrackedRun(f"{identity}-{content}", name, group, settings, points, created)


def _history(trial: TrialRecords) -> dict[int, dict[str, float]]:
    """Loss, rate and gradient norm of each optimizer step, and scores during training."""
    history: dict[int, dict[str, float]] = {}
    for point in () if trial.train is None else trial.train.losses:
        values = {"loss": point.loss, "lr": point.lr, "grad_norm": point.grad_norm}
        history.setdefault(point.step, {}).update(values)
    for score in trial.curve:
        history.setdefault(score.step, {})[f"during/{score.task}"] = score.score
    return history


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
