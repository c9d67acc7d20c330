"""A study in trackers while it runs, read back from their real local stores."""

import json
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import rankscope
from pocket_study import TWO_GROUPS, Counter, loaded, results, small_study, study_file

from rankscope.errors import Interrupted, UserError
from rankscope.extensions import tracking
from rankscope.progress import ProgressReporter
from rankscope.run.executors.local import LocalExecutor

Told = Iterator[tuple[str, Any, str, Any]]  # Run, step, name and value, or the run's status


def stored(out: Path) -> Told:
    """What the ledger holds of trained trials, as a tracker has to have it."""
    study = loaded(out)
    labels = {trial.spec.trial_id: trial.spec.label for trial in study.trials}
    for trial in [trial for trial in study.trials if trial.train]:
        yield from [(trial.spec.label, "", "status", "done")] * (trial.status == "done")
        for p in trial.train.losses:
            yield from ((trial.spec.label, p.step, n, getattr(p, n)) for n in tracking.LOGGED)
    for (model, task, split), record in study.evals.items():
        yield from [(labels.get(model), 7, f"{split}/{task}", record.score)] * (model in labels)


def in_mlflow(store: Path) -> Told:
    from mlflow import MlflowClient

    client = MlflowClient()
    for run in client.search_runs([client.get_experiment_by_name("small").experiment_id]):
        name, tags = run.info.run_name, run.data.tags
        assert run.data.params["base"] == "pocket"
        assert (run.info.status == "FINISHED") == ("status" in tags)
        yield from ((name, "", tag, tags[tag]) for tag in tags.keys() & {"status"})
        for metric in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, metric)
            yield from ((name, m.step, metric, m.value) for m in points)


def in_trackio(store: Path) -> Told:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    for run in trackio.Api().runs("small"):
        for row in SQLiteStorage.get_logs("small", run.name, run_id=run.id):
            step, keys = "" if "status" in row else row["step"], row.keys() - {"step", "timestamp"}
            yield from ((run.name, step, key, row[key]) for key in keys)


def in_wandb(store: Path) -> Told:
    """W&B's small files: seven bytes, then records, each after its checksum, length and kind."""
    import wandb.proto.wandb_internal_pb2

    wandb.teardown()  # waits for its service, which still writes after finish()
    for file in store.glob("wandb/offline-run-*/*.wandb"):
        data, at, name = file.read_bytes(), 7, ""
        while at < len(data):
            end = at + 7 + struct.unpack_from("<IH", data, at)[1]
            record = wandb.proto.wandb_internal_pb2.Record.FromString(data[at + 7 : end])
            at, name = end, record.run.display_name or name
            row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            yield from ((name, row["step"], k, row[k]) for k in row if k[0] != "_" and k != "step")
            told = [i.value_json for i in record.summary.update if i.key == "status"]
            yield from ((name, "", "status", json.loads(text)) for text in told)


READERS = {"mlflow": in_mlflow, "trackio": in_trackio, "wandb": in_wandb}


class Stopper(ProgressReporter):
    """Reads what a tracker has as the second group begins to train, and presses Ctrl-C."""

    def __init__(self, read: Callable[[Path], Told], store: Path) -> None:
        self.look, self.seen = lambda: sorted(read(store), key=str), list[Any]()

    def stage(self, name: str, total: int) -> None:
        if name.startswith("group 2/2") and " train " in name:
            self.seen = self.look()
            signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", READERS)
def test_a_study_is_sent_while_it_runs_and_once(
    to: str, two_groups: dict[str, Any], tracker_stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after a group, continued by a worker, and given again."""
    monkeypatch.setattr(tracking.Tracker, "next_look", property(lambda _: 0.0, lambda *_: None))
    study, out = small_study(tracker_stores, **TWO_GROUPS), tracker_stores / "out"
    stopper = Stopper(READERS[to], tracker_stores)
    with pytest.raises(Interrupted):
        study.run(out, stopper, track=to)
    assert stopper.seen == stopper.look() == sorted(stored(out), key=str)
    assert [name for _, _, name, _ in stopper.seen].count("loss") == 2 * 8
    for executor in (LocalExecutor(study.config, 1), None):
        study.run(out, executor=executor, track=to)
        assert stopper.look() == sorted(stored(out), key=str)
    assert results(out) == two_groups


def test_a_broken_tracker_is_noted_once(two_groups: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "trackio", ModuleType("trackio"))
    study, heard = small_study(tmp_path, **TWO_GROUPS), Counter()
    study.run(tmp_path / "out", heard, track="trackio")
    (note,) = [note for note in heard.notes if "trackio" in note]
    assert note.startswith("trackio gets no more of this study (module 'trackio' has no attribute")
    assert results(tmp_path / "out") == two_groups
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"no package trackio.* pip install 'rankscope\[track\]'"):
        study.run(tmp_path / "out", track="trackio")


def test_a_tracker_that_is_not_there_is_refused(tmp_path: Path) -> None:
    outcome = rankscope("run", study_file(tmp_path), "--track", "paper", "--out", tmp_path / "out")
    assert (outcome.code, (tmp_path / "out").exists()) == (2, False)
    assert "expected one of mlflow, trackio, wandb" in outcome.told
