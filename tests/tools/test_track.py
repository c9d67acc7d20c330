"""Trials in the stores of real trackers, read back by the trackers' own readers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import rankscope
from pocket_study import rewrite_rows, small_study

from rankscope.progress import ProgressReporter
from rankscope.records import BASE, TrialRecords
from rankscope.store import Ledger
from rankscope.tools.track import TRACKERS, TrackingReporter, tracked_runs

ignore_library_warnings = pytest.mark.filterwarnings("ignore")


def losses(trial: TrialRecords) -> list[float]:
    return [point.loss for point in trial.train.losses]


class Notes(ProgressReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def in_trackio(project: str, name: str, run_id: str) -> tuple[list[float], dict[str, float]]:
    """Losses and the last values of a run."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [run for run in trackio.Api().runs(project) if run.name == name]
    rows = SQLiteStorage.get_logs(project, run.name, run_id=run.id)
    values = {n: v for row in rows for n, v in row.items() if isinstance(v, float)}
    return [row["loss"] for row in rows if "loss" in row], values


def in_mlflow(project: str, name: str, run_id: str) -> tuple[list[float], dict[str, float]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(project).experiment_id
    (run,) = client.search_runs([experiment], f"tags.rankscope_run = '{run_id}'")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    return [m.value for m in sorted(history, key=lambda m: m.step)], run.data.metrics


STUDY = """name: a
model: pocket
tasks: [pocket_med]
arms: [{method: lora, rank: 2, lr: 1e-3}]
"""
READERS: dict[str, Callable[..., tuple[list[float], dict[str, float]]]] = {
    "trackio": in_trackio,
    "mlflow": in_mlflow,
}


@ignore_library_warnings
@pytest.mark.parametrize("to", TRACKERS)
def test_trials_arrive_while_a_study_runs_and_nothing_twice(
    to: str, tracker_stores: Path, tmp_path: Path
) -> None:
    """A study runs, loses a score, and continues: only that is sent again."""
    reporter, out, project = Notes(), tmp_path / "out", f"{to}-small"
    tracking = TrackingReporter(reporter, out, to, project)
    small_study(tmp_path).run(out, tracking)
    assert not any("--track" in note for note in reporter.notes)
    first = Ledger.read(out).trials[0].spec
    statement = "DELETE FROM records WHERE kind = 'eval' AND trial_id = ? AND key = ?"
    assert rewrite_rows(out, statement, (first.trial_id, "pocket_cloze/test")) == 1
    sent = list[tuple[str, int]]()
    send, tracking.send = tracking.send, lambda run: sent.append((run.name, len(run.results)))
    tracking.finish()
    small_study(tmp_path).run(out, tracking)
    assert sent == []  # The same score, which the tracker has
    tracking.send = send
    records = Ledger.read(out)
    runs = {run.config["trial"]: run for run in tracked_runs(records)}
    assert set(runs) == {BASE, *(t.spec.trial_id for t in records.trials)}
    for trial in records.trials:
        run = runs[trial.spec.trial_id]
        assert (run.config["lr"], run.config["train.max_steps"]) == (trial.spec.lr, 8)
        if to in READERS:
            found, values = READERS[to](project, run.name, run.id)
            assert found == pytest.approx(losses(trial), rel=1e-12)
            assert values["test/pocket_med"] == pytest.approx(run.results["test/pocket_med"])
        else:  # nothing reads W&B's own format but its server
            assert list(tracker_stores.glob(f"wandb/offline-run-*-{run.id}/*.wandb"))


@ignore_library_warnings
def test_a_tracker_that_fails_is_noted_once(
    exportable: Any, tracker_stores: Path, tmp_path: Path
) -> None:
    reporter = Notes()
    tracking = TrackingReporter(reporter, exportable.out, "trackio", "fails")

    def refuse(run: object) -> None:
        raise ConnectionError("no route")

    tracking.send = refuse
    tracking.finish()
    tracking.finish()
    assert reporter.notes == ["--track trackio failed, the study goes on: no route"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    (tmp_path / "study.yaml").write_text(STUDY, "utf-8")
    for name, found in (("trackio", "found no package trackio"), ("w&b", "found 'w&b'")):
        outcome = rankscope("run", tmp_path / "study.yaml", "--track", name)
        assert (outcome.code, found in outcome.told) == (2, True), outcome
