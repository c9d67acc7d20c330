"""Send a study's trials to an experiment tracker, as runs, from the ledger.

The study is only read, so a tracker cannot disturb training, and runs that the tracker already has
are left alone: the same command is safe to repeat, also while a study runs.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rankscope.errors import RankscopeError, UserError, first_line
from rankscope.hashing import sha256_json
from rankscope.records import BASE, FAILED, StudyRecords, TrialRecords
from rankscope.store import Ledger
from rankscope.tools.frames import TRAINING_COLUMNS, trial_row
from rankscope.tools.inspection_tables import TableRow
from rankscope.tools.trackers import TRACKERS, Scalar, TrackedRun

ResultsOf = dict[str, float]


@dataclass(frozen=True, slots=True)
class _TrackingResult:
    project: str
    place: str
    written: tuple[str, ...]  # Labels of new or changed trials
    unchanged: int


def track(
    folder: Path,
    to: str,
    project: str | None = None,
    report: Callable[[str], None] = lambda label: None,
) -> _TrackingResult:
    """Write every trained or failed trial, and the base, as a run of a project.

    Args:
        to: ``trackio``, ``wandb`` or ``mlflow``; each finds its store as it always does.
        project: name of the project or experiment; the study's name by default.
        report: receives the label of each run before it is written.

    Raises:
        UserError: no study, an unknown tracker, one that is not installed, or one that fails.
    """
    if to not in TRACKERS:
        raise UserError(f"--to {to!r}: expected one of {', '.join(TRACKERS)}")
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
    runs = list(tracked_runs(study))
    written: list[str] = []
    with contextlib.redirect_stdout(sys.stderr):  # trackers print greetings
        try:
            tracker = TRACKERS[to](project or study.name)
            known = tracker.stored()
            for run in runs:
                if known.get(run.identity) == run.key:
                    continue
                report(run.name)
                if run.identity in known:
                    tracker.remove(run.identity)
                tracker.write(run)
                written.append(run.name)
        except ImportError as error:
            raise UserError(
                f"--to {to}: {error.name} is not installed; install it with "
                "pip install 'rankscope[track]'"
            ) from error
        except RankscopeError:
            raise
        except Exception as error:  # whatever a tracker raises; the study is untouched
            raise UserError(
                f"--to {to}: {first_line(error)}; {len(written)} runs were written, and the same "
                "command continues"
            ) from error
    return _TrackingResult(tracker.project, tracker.place, tuple(written), len(runs) - len(written))


def tracked_runs(study: StudyRecords) -> Iterator[TrackedRun]:
    """The base, then every trial that was trained or failed."""
    common = _common_settings(study)
    yield _run(study, None, common)
    for trial in study.trials:
        if trial.training is not None or trial.status in FAILED:
            yield _run(study, trial, common)


def _run(study: StudyRecords, trial: TrialRecords | None, common: dict[str, Scalar]) -> TrackedRun:
    """The run of a trial, or of the base."""
    trial_id, name, group = BASE, f"{study.model.label} (base)", ""
    row: TableRow = {}
    if trial is not None:
        trial_id, name, group = trial.spec.trial_id, trial.spec.label, trial.spec.task
        row = trial_row(trial)
    hidden = {"trial", "arm", "failure", "final_loss", "status", *TRAINING_COLUMNS}
    own = {key: value for key, value in row.items() if key not in hidden}
    config = {"trial": trial_id, **common, **_scalars(own)}
    costs = {n: float(row[n]) for n in TRAINING_COLUMNS if row.get(n) is not None}  # type: ignore[arg-type]
    results = costs | _scores(study, trial_id)
    history = () if trial is None else tuple(sorted(_history(trial).items()))
    failure = trial.failure if trial is not None and trial.status in FAILED else None
    content = [name, config, [list(point) for point in history], results, failure]
    return TrackedRun(
        # Studies that share a project may share trials, scored on other tasks.
        identity=sha256_json([study.name, trial_id])[:16],
        key=sha256_json(content)[:16],
        name=name,
        group=group,
        config=config,
        history=history,
        results=results,
        failure=failure,
        created=study.provenance.created,
    )


def _common_settings(study: StudyRecords) -> dict[str, Scalar]:
    """What all trials of a study share."""
    model = study.model
    train = {f"train.{k}": v for k, v in study.config.train.model_dump(mode="json").items()}
    return _scalars(
        {
            "study": study.name,
            "base": model.label,
            "base_sha256": model.sha256,
            "dtype": model.dtype,
            "device": model.device,
            "prompt_format": model.prompt_format,
            "rankscope": study.provenance.rankscope,
            **train,
        }
    )


def _scalars(values: dict[str, object]) -> dict[str, Scalar]:
    """Without unknown values, and with everything else that is no scalar as text."""
    return {
        name: value if isinstance(value, Scalar) else str(value)
        for name, value in values.items()
        if value is not None
    }


def _history(trial: TrialRecords) -> dict[int, dict[str, float]]:
    """Loss, rate and gradient norm of each optimizer step, and scores during training."""
    history: dict[int, dict[str, float]] = {}
    for point in () if trial.training is None else trial.training.losses:
        values = {"loss": point.loss, "lr": point.lr, "grad_norm": point.grad_norm}
        history.setdefault(point.step, {}).update(values)
    for score in trial.curve:
        history.setdefault(score.step, {})[f"during/{score.task}"] = score.score
    return history


def _scores(study: StudyRecords, model_id: str) -> ResultsOf:
    """``test/TASK``, and ``change/TASK``: the same minus the base's."""
    scores: ResultsOf = {}
    for (scored, task, split), record in study.evals.items():
        if scored != model_id:
            continue
        scores[f"{split}/{task}"] = record.score
        base = study.evals.get((BASE, task, split))
        if split == "test" and base is not None and model_id != BASE:
            scores[f"change/{task}"] = record.score - base.score
    return scores
