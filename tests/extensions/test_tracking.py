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
from pocket_study import TWO_GROUPS, Counter, loaded, results, small_study

from rankscope.errors import Interrupted, UserError
from rankscope.extensions.tracking import Tracker
from rankscope.progress import ProgressReporter
from rankscope.run.executors.local import LocalExecutor

Told = Iterator[tuple[str, tuple[Any, ...]]]  # Run, and (step, name, value) or its status
Logged = dict[str, list[tuple[Any, ...]]]  # The same by run
NAMES = ("loss", "lr", "grad_norm")


def logged(told_by: Told) -> Logged:
    found = Logged()
    for name, told in told_by:
        found.setdefault(name, []).append(told)
    return {name: sorted(told, key=str) for name, told in found.items()}


def stored(out: Path) -> Logged:
    """What the ledger holds of trained trials, as a tracker has to have it."""
    study, found = loaded(out), []
    for trial in study.trials:
        label = trial.spec.label
        found += [(label, ("done",))] * (trial.status == "done")
        for p in trial.train.losses if trial.train else ():
            found += [(label, (p.step, name, getattr(p, name))) for name in NAMES]
        for (model, task, split), record in study.evals.items():
            if model == trial.spec.trial_id:
                found.append((label, (p.step, f"{split}/{task}", record.score)))
    return logged(iter(found))


def in_mlflow(store: Path) -> Told:
    from mlflow import MlflowClient

    client = MlflowClient()
    project = client.get_experiment_by_name("small").experiment_id
    for run in client.search_runs([project]):
        assert run.data.params["base"] == "pocket"
        assert (run.info.status == "FINISHED") == ("status" in run.data.tags)
        for name in run.data.metrics:
            for m in client.get_metric_history(run.info.run_id, name):
                yield run.info.run_name, (m.step, name, m.value)
        yield from [
            (run.info.run_name, (tag,)) for k, tag in run.data.tags.items() if k == "status"
        ]


def in_trackio(store: Path) -> Told:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(trackio.Api().runs("small"))
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        assert run.config["base"] == "pocket"
        for row in SQLiteStorage.get_logs("small", run.name, run_id=run.id):
            for name in row.keys() - {"step", "timestamp", "status"}:
                yield run.name, (row["step"], name, row[name])
            if "status" in row:
                yield run.name, (row["status"],)


def in_wandb(store: Path) -> Told:
    """W&B's small files: seven bytes, then records, each after its checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in store.glob("wandb/offline-run-*/*.wandb"):
        data, at, name, status = file.read_bytes(), 7, "", ""
        while at < len(data):
            _, length, _ = struct.unpack_from("<IHB", data, at)
            record = Record.FromString(data[at + 7 : at + 7 + length])
            at, name = at + 7 + length, record.run.display_name or name
            row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for metric in [key for key in row if key[0] != "_" and key != "step"]:
                yield name, (row["step"], metric, row[metric])
            for item in record.summary.update:
                status = json.loads(item.value_json) if item.key == "status" else status
        yield from [(name, (status,))] * bool(status)


READERS = {"mlflow": in_mlflow, "trackio": in_trackio, "wandb": in_wandb}


class Stopper(ProgressReporter):
    """Reads what was logged as the second group begins to train, and presses Ctrl-C."""

    def __init__(self, look: Callable[[], Logged]) -> None:
        self.look, self.seen = look, Logged()

    def stage(self, name: str, total: int) -> None:
        if name.startswith("group 2/2") and " train " in name:
            self.seen = self.look()
            signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", READERS)
def test_a_study_is_logged_while_it_runs_and_once(
    to: str, two_groups: dict[str, Any], tracker_stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after a group, continued by a worker, and given again."""
    monkeypatch.setattr(Tracker, "SECONDS", 0.0)
    monkeypatch.setattr(Tracker, "LOOKS", 1e9)
    study, out = small_study(tracker_stores, **TWO_GROUPS), tracker_stores / "out"
    stopper = Stopper(lambda: logged(READERS[to](tracker_stores)))
    with pytest.raises(Interrupted):
        study.run(out, stopper, track=to)
    assert stopper.seen == stopper.look() == stored(out)
    assert [len(told) > len(NAMES) * 8 for told in stopper.seen.values()] == [True, True]
    for executor in (LocalExecutor(study.config, 1), None):
        study.run(out, executor=executor, track=to)
        assert stopper.look() == stored(out)
    assert results(out) == two_groups


def test_a_tracker_that_fails_is_noted_once(
    two_groups: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", ModuleType("trackio"))
    heard = Counter()
    small_study(tmp_path, **TWO_GROUPS).run(tmp_path / "out", heard, track="trackio")
    (note,) = [note for note in heard.notes if "gets no more" in note]
    assert note.startswith("trackio gets no more of this study (module 'trackio' has no attribute")
    assert results(tmp_path / "out") == two_groups


def test_a_tracker_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    study = small_study(tmp_path, **TWO_GROUPS)
    with pytest.raises(UserError, match=r"no package trackio.* pip install 'rankscope\[track\]'"):
        study.run(tmp_path / "out", track="trackio")
    with pytest.raises(UserError, match="found 'paper', expected one of mlflow, trackio, wandb"):
        study.run(tmp_path / "out", track="paper")
    assert not (tmp_path / "out").exists()
