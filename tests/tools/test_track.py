"""Trials in the stores of real trackers, read back by the trackers' own readers."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import folder_contents, rankscope
from pocket_study import rewrite_rows

from rankscope.records import BASE, TrialRecords
from rankscope.tools.track import track, tracked_runs
from rankscope.tools.trackers import RUN, TrackedRun

ignore_library_warnings = pytest.mark.filterwarnings("ignore")


def losses(trial: TrialRecords) -> list[float]:
    return [point.loss for point in trial.train.losses]


def test_a_run_holds_what_the_ledger_holds(exportable: Any) -> None:
    """Scores are planted: of a trial .5 on validation and .75 on test items, of the base .25."""
    of_trial = {"validation": 0.5, "test": 0.75}
    evals = {
        key: record.model_copy(update={"score": 0.25 if key[0] == BASE else of_trial[key[2]]})
        for key, record in exportable.records.evals.items()
    }
    records = replace(exportable.records, evals=evals)
    runs = {str(run.config["trial"]): run for run in tracked_runs(records)}
    assert list(runs) == [BASE, *(t.spec.trial_id for t in records.trials)]
    for trial in records.trials:
        run = runs[trial.spec.trial_id]
        assert [values["loss"] for _, values in run.history] == losses(trial)
        results = run.history[-1][1]
        assert (results["test/pocket_med"], results["change/pocket_med"]) == (0.75, 0.5)
        assert run.config["lr"] == trial.spec.lr
        assert run.config["train.max_steps"] == 4
    other = tracked_runs(replace(records, name="another study in the same project"))
    assert not {identity(run) for run in other} & {identity(run) for run in runs.values()}
    assert [run.id for run in tracked_runs(records)] == [run.id for run in runs.values()]


def identity(run: TrackedRun) -> str:
    return run.id.split("-")[0]


def study_files(folder: Path) -> dict[str, bytes]:
    """A study's files, except those that SQLite keeps beside an open ledger."""
    return {n: c for n, c in folder_contents(folder).items() if not n.endswith(("-shm", "-wal"))}


def trackio_losses(store: Path, identity: str) -> list[list[float]]:
    """Losses of every run with an identity."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = [r for r in trackio.Api().runs("small") if r.config[RUN].startswith(identity)]
    logs = [SQLiteStorage.get_logs("small", run.name, run_id=run.id) for run in runs]
    return [[row["loss"] for row in rows if "loss" in row] for rows in logs]


def mlflow_losses(store: Path, identity: str) -> list[list[float]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("small").experiment_id
    runs = client.search_runs([experiment], f"tags.{RUN} LIKE '{identity}%'")
    assert all(run.info.status == "FINISHED" for run in runs)
    metrics = [client.get_metric_history(run.info.run_id, "loss") for run in runs]
    return [[m.value for m in sorted(history, key=lambda m: m.step)] for history in metrics]


READERS = {"trackio": trackio_losses, "mlflow": mlflow_losses}
TRACKERS = (*READERS, "wandb")


@ignore_library_warnings
@pytest.mark.parametrize("to", TRACKERS)
def test_each_trial_is_one_run_however_often_it_is_sent(
    to: str, exportable: Any, tracker_stores: Path, tmp_path: Path
) -> None:
    trials = exportable.records.trials
    first = trials[0].spec.trial_id
    # The same study before one trial was scored on one task.
    early = tmp_path / "early"
    shutil.copytree(exportable.out, early)
    statement = "DELETE FROM records WHERE kind = 'eval' AND trial_id = ? AND key = ?"
    assert rewrite_rows(early, statement, (first, "pocket_cloze/test")) == 1
    before = study_files(exportable.out)
    assert len(track(early, to)[2]) == len(trials) + 1
    if to == "mlflow":
        from mlflow.telemetry.utils import is_telemetry_disabled

        assert is_telemetry_disabled()
    assert track(exportable.out, to)[2] == [trials[0].spec.label]
    assert track(exportable.out, to)[2:] == ([], len(trials) + 1)
    runs = {run.config["trial"]: identity(run) for run in tracked_runs(exportable.records)}
    for trial in trials:
        one = runs[trial.spec.trial_id]
        if to in READERS:
            (found,) = READERS[to](tracker_stores, one)
            assert found == pytest.approx(losses(trial), rel=1e-12)
        else:  # nothing reads W&B's own format but its server
            assert len(list(tracker_stores.glob(f"wandb/offline-run-*-{one}-*/*.wandb"))) == 1
    assert study_files(exportable.out) == before


@ignore_library_warnings
def test_an_interrupted_trackio_run_is_written_again(
    exportable: Any, tracker_stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trackio

    def interrupted(run: Any) -> None:
        finish(run)
        raise KeyboardInterrupt

    finish = trackio.Run.finish
    with monkeypatch.context() as patch:
        patch.setattr(trackio.Run, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            track(exportable.out, "trackio", "interrupted")
    runs = len(exportable.records.trials) + 1
    assert len(track(exportable.out, "trackio", "interrupted")[2]) == runs
    assert track(exportable.out, "trackio", "interrupted")[3] == runs


@ignore_library_warnings
def test_a_tracker_that_fails_is_an_error_of_its_own(
    exportable: Any, tracker_stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonesuch://place")
    outcome = rankscope("track", exportable.out, "--to", "mlflow")
    assert outcome.code == 2
    assert "error: --to mlflow: " in outcome.err


def test_what_is_missing_is_named(exportable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    outcome = rankscope("track", exportable.out, "--to", "trackio")
    assert outcome.code == 2
    assert "found no package trackio" in outcome.told
    assert "install it with pip install 'rankscope[track]'" in outcome.told
