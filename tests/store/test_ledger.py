"""The ledger: all or nothing, never twice, found when altered, one runner, and room to write."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import MODEL, PROVENANCE, Truth, synthetic_study

from rankscope.config.loader import study_values
from rankscope.errors import IntegrityError, UserError
from rankscope.records import (
    BASE,
    CurvePoint,
    EvalRecord,
    ItemResult,
    LossPoint,
    TaskRecord,
    TrainRecord,
    TrialSpec,
    write_items,
)
from rankscope.run.stages.train import _curve_point as curve_point
from rankscope.store import CHECKPOINTS, Ledger, TrialFailure, find_problems, items_path

FIXTURES = os.pathsep.join(
    [str(Path(__file__).parent), str(Path(__file__).parents[1] / "fixtures")]
)
"""What child processes import from."""

STUDY = synthetic_study(
    Truth(ranks=(2, 8, 32), full_lrs=(), seeds=(0,), num_items=4, retention=(), cross=())
)
"""Three trials of LoRA on one task, whose test split has four items."""
CONFIG, (TASK,) = STUDY.config, STUDY.tasks
SPECS = [trial.spec for trial in STUDY.trials]
IDS = [spec.trial_id for spec in SPECS]


def train_record(trial_id: str, loss: float = 0.5) -> TrainRecord:
    losses = (LossPoint(step=0, loss=loss, lr=1e-3, grad_norm=1.0),)
    train = STUDY.trials[IDS.index(trial_id)].train
    assert train is not None
    return train.model_copy(update={"losses": losses})


def eval_record(trial_id: str, task: str = "med") -> EvalRecord:
    record = STUDY.evals[trial_id if trial_id in IDS else BASE, "med", "test"]
    return record.model_copy(update={"trial_id": trial_id, "task": task})


def item_results(trial_id: str) -> list[ItemResult]:
    draws = np.random.default_rng([BASE, *IDS].index(trial_id)).random(4)
    return [
        ItemResult(
            item_id=f"item-{i}", subject=None if i else "anatomy", score=float(draw > 0.5),
            gold="A", prediction="B", gold_logprob=None if i == 3 else -float(draw),
            gold_tokens=2, prompt=None if i else "asked",
        )
        for i, draw in enumerate(draws)
    ]  # fmt: skip


def begin(ledger: Ledger) -> None:
    ledger.put_study("test", study_values(CONFIG), MODEL, [TASK], PROVENANCE)
    ledger.put_trials(SPECS)


def store_training(ledger: Ledger, trial_ids: list[str]) -> None:
    """One group: every adapter staged, published, and named in one transaction."""
    with ledger.stage() as folder:
        artifacts = []
        for trial_id in trial_ids:
            adapter = folder / trial_id
            adapter.mkdir()
            (adapter / "adapter_config.json").write_text(f'{{"trial": "{trial_id}"}}')
            (adapter / "adapter_model.safetensors").write_bytes(trial_id.encode() * 100)
            artifacts += ledger.publish(adapter, f"artifacts/{trial_id}/adapter")
        ledger.commit([train_record(i) for i in trial_ids], artifacts)


def planned(ledger: Ledger) -> list[TrialSpec]:
    """Trials still to be trained, in order."""
    statuses = ledger.statuses()
    return [spec for spec in ledger.trials() if statuses[spec.trial_id] == "planned"]


def store_eval(ledger: Ledger, trial_id: str) -> None:
    with ledger.stage() as folder:
        write_items(folder / "items.parquet", item_results(trial_id))
        place = items_path(trial_id, "med", "test")
        artifacts = ledger.publish(folder / "items.parquet", place)
        ledger.commit([eval_record(trial_id)], artifacts)


def run_everything(out: Path) -> None:
    """A whole small study; begun, continued or repeated, it ends in the same state."""
    with Ledger.open(out, write=True) as ledger:
        begin(ledger)
        missing = [spec.trial_id for spec in planned(ledger)]
        if missing:
            store_training(ledger, missing)
        for trial_id, _, _ in ledger.missing_evals((i, "med", "test") for i in [BASE, *IDS]):
            store_eval(ledger, trial_id)
        ledger.finish_trials(IDS)


def files_on_disk(out: Path) -> set[str]:
    """Every file below artifacts/ and tmp/."""
    return {
        path.relative_to(out).as_posix()
        for folder in ("artifacts", "tmp")
        for path in (out / folder).rglob("*")
        if path.is_file()
    }


def state(out: Path) -> tuple[object, ...]:
    """All a ledger says, and that the disk says the same."""
    with Ledger.open(out, write=False) as ledger:
        assert find_problems(ledger.out) == []
        artifacts = ledger.artifacts()
        assert files_on_disk(out) == {artifact.path for artifact in artifacts}
        records = ledger.load()
        items = {key: records.items[key].scores.tolist() for key in records.items}
        return artifacts, records.trials, dict(records.evals), items


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    run_everything(tmp_path)
    with Ledger.open(tmp_path, write=False) as ledger:
        records = ledger.load()
    assert records.name == "test"
    assert records.config == CONFIG
    assert (records.model, records.tasks, records.provenance) == (MODEL, (TASK,), PROVENANCE)
    assert [trial.spec for trial in records.trials] == SPECS
    assert [trial.status for trial in records.trials] == ["done"] * 3
    assert [trial.train for trial in records.trials] == [train_record(i) for i in IDS]
    assert records.evals[IDS[1], "med", "test"] == eval_record(IDS[1])
    scores = records.items[IDS[1], "med", "test"]
    expected = item_results(IDS[1])
    assert scores.item_ids == tuple(item.item_id for item in expected)
    assert scores.subjects == ("anatomy", None, None, None)
    assert scores.scores.tolist() == [item.score for item in expected]
    assert (2 * scores.gold_logprobs[:3]).tolist() == [item.gold_logprob for item in expected[:3]]
    assert np.isnan(scores.gold_logprobs[3])
    assert scores.item_ids is records.items[BASE, "med", "test"].item_ids
    whole = records.results[IDS[1], "med", "test"]
    assert whole == expected
    assert [item.prompt for item in whole] == ["asked", None, None, None]
    for stored in (records.items, records.results):
        with pytest.raises(KeyError):
            stored[IDS[0], "med", "validation"]


def test_repeating_a_run_changes_nothing(tmp_path: Path) -> None:
    run_everything(tmp_path)
    before = state(tmp_path)
    run_everything(tmp_path)
    with Ledger.open(tmp_path, write=True) as ledger:
        store_training(ledger, IDS)
        store_eval(ledger, BASE)
        ledger.commit([train_record(IDS[0], loss=9.0)])
        ledger.commit(failures=[TrialFailure(IDS[0], "oom", "too late")])
    assert state(tmp_path) == before


def test_missing_work_is_what_no_record_tells_of(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, write=True) as ledger:
        begin(ledger)
        assert planned(ledger) == SPECS
        assert ledger.without_record("words", SPECS) == []
        store_training(ledger, IDS[:1])
        ledger.commit(failures=[TrialFailure(IDS[1], "diverged", "loss is NaN at step 3")])
        assert planned(ledger) == SPECS[2:]
        assert ledger.without_record("words", SPECS) == SPECS[:1]
        wanted = [(i, "med", "test") for i in (BASE, IDS[0])]
        assert ledger.missing_evals(wanted) == wanted
        store_eval(ledger, BASE)
        assert ledger.missing_evals(wanted) == wanted[1:]
        assert list(ledger.statuses().values()) == ["trained", "diverged", "planned"]
        failed = ledger.load().trials[1]
        assert (failed.status, failed.failure) == ("diverged", "loss is NaN at step 3")
        ledger.finish_trials(IDS)
        assert list(ledger.statuses().values()) == ["done", "diverged", "planned"]
        ledger.retry_trials(IDS)
        assert list(ledger.statuses().values()) == ["done", "planned", "planned"]


def point(trial_id: str, step: int, task: str = "med", score: float = 0.5) -> CurvePoint:
    record = eval_record(trial_id, task).model_copy(update={"score": score})
    return curve_point(record, step)


def test_a_curve_has_each_point_once_and_outlives_its_trials_failure(tmp_path: Path) -> None:
    first, second = IDS[0], IDS[1]
    with Ledger.open(tmp_path, write=True) as ledger:
        begin(ledger)
        assert ledger.curve_points(SPECS) == {}
        ledger.commit([point(first, 4), point(second, 4)])
        ledger.commit([point(first, 4, score=0.9), point(first, 2)])
        stored = {(first, "med", 2), (first, "med", 4), (second, "med", 4)}
        assert set(ledger.curve_points(SPECS)) == stored
        assert set(ledger.curve_points(SPECS[:1])) == stored - {(second, "med", 4)}
        ledger.commit(failures=[TrialFailure(first, "diverged", "loss is NaN at step 5")])
        ledger.commit([point(first, 2, task="no longer in the study")])
        found = {trial.spec.trial_id: trial for trial in ledger.load().trials}
        assert found[first].status == "diverged"
        assert found[first].curve == (point(first, 2), point(first, 4))
        assert found[second].curve == (point(second, 4),)
        assert found[IDS[2]].curve == ()


def test_a_group_enters_whole_or_not_at_all(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, write=True) as ledger:
        begin(ledger)
        # A copy is not validated again, so this is the last place to refuse it.
        bad = train_record(IDS[1]).model_copy(update={"seconds": float("nan")})
        with pytest.raises(IntegrityError, match="expected finite numbers"):
            ledger.commit([train_record(IDS[0]), bad])
        with pytest.raises(KeyError, match="unknown"):
            ledger.commit([train_record(IDS[0])], failures=[TrialFailure("unknown", "oom", "x")])
        assert planned(ledger) == SPECS
        assert [trial.train for trial in ledger.load().trials] == [None] * 3
        assert ledger.load().evals == {}


# Runs the study in forked children, the n-th of which kills itself at the n-th of the operating
# system calls that Python reports (open, rename, mkdir, unlink, ...) or at an SQL statement.
KILL_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2].split(os.pathsep)
import sqlite3
import test_ledger

root, step = Path(sys.argv[1]), 0
test_ledger.run_everything(root / "whole")
expected = test_ledger.state(root / "whole")
kills = 0
while True:
    out = root / f"killed-{step}"
    child = os.fork()
    if child == 0:
        left = step
        def count(event, args):
            global left
            if event.split(".")[0] in ("open", "os", "shutil", "fcntl"):
                left -= 1
                if left < 0:
                    signal.raise_signal(signal.SIGKILL)
        sys.addaudithook(count)
        connect = sqlite3.connect
        def traced(*args, **kwargs):
            db = connect(*args, **kwargs)
            db.set_trace_callback(lambda statement: count("os.sql", ()))
            return db
        sqlite3.connect = traced
        test_ledger.run_everything(out)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
        if out.is_dir():
            test_ledger.Ledger.open(out, write=True).close()
            with test_ledger.Ledger.open(out, write=False) as ledger:
                assert test_ledger.find_problems(ledger.out) == [], step
                named = {artifact.path for artifact in ledger.artifacts()}
            assert test_ledger.files_on_disk(out) == named, step
        test_ledger.run_everything(out)
    else:
        assert status == 0, (step, status)
    assert test_ledger.state(out) == expected, step
    if not os.WIFSIGNALED(status):
        break
    step += int(sys.argv[3])
print(kills)
"""


def test_a_kill_at_any_step_leaves_a_study_that_continues(tmp_path: Path) -> None:
    stride = 23  # an odd step over a few hundred events: other places than a multiple of ten
    done = subprocess.run(
        [*(sys.executable, "-c", KILL_AT_EVERY_STEP), *(str(tmp_path), FIXTURES, str(stride))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 7


def change_rows(out: Path, change: str) -> None:
    with sqlite3.connect(out / "ledger.sqlite") as db:
        db.execute(change)
    db.close()


def test_what_no_row_names_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run_everything(tmp_path)
    before = state(tmp_path)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    for junk in ("artifacts/zz/adapter/x", f"artifacts/{IDS[0]}/adapter/optimizer.pt", "tmp/a/b"):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_text("junk")
    (tmp_path / "artifacts" / "link").symlink_to(outside)
    Ledger.open(tmp_path, write=True).close()
    assert state(tmp_path) == before
    assert not (tmp_path / "artifacts" / "zz").exists()
    assert not (tmp_path / "artifacts" / "link").is_symlink()
    assert (outside / "precious").read_text() == "kept"


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "/etc/x", "artifacts/../../x", "artifacts", "elsewhere/x", "artifacts/a\0b"),
        *("artifacts/" + "a" * 300, "artifacts\\..\\x", "artifacts/link/x"),
    ],
)
def test_names_that_leave_the_study_are_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    with Ledger.open(out, write=True) as ledger, ledger.stage() as folder:
        (out / "artifacts").mkdir()
        (out / "artifacts" / "link").symlink_to(tmp_path)
        (folder / "x").write_text("x")
        with pytest.raises(UserError, match="inside the study"):
            ledger.publish(folder / "x", name)
        assert (folder / "x").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_task_that_went_and_came_back_is_the_same_or_refused(tmp_path: Path) -> None:
    run_everything(tmp_path)
    second = TASK.model_copy(update={"name": "law"})
    only_scored = {"roles": ("cross_domain",), "trained_on": False, "sha256": "f" * 64}
    moved = TASK.model_copy(update=only_scored | {"rows": {**TASK.rows, "train": 0}})
    with Ledger.open(tmp_path, write=True) as ledger:

        def put(*tasks: TaskRecord) -> None:
            ledger.put_study("test", study_values(CONFIG), MODEL, tasks, PROVENANCE)

        put(second)
        assert ledger.load().evals == {}
        for changes, message in (
            ({"test_sha256": "e" * 64}, "task 'med' as it was before"),
            ({"contaminated_sha256": "e" * 64}, "contaminated_sha256 was '', is 'eeee"),
            (
                {"test_sha256": "e" * 64, "rows": {**TASK.rows, "test": 9}},
                r"\(4 test items before, 9 now; test_sha256 was",
            ),
        ):
            with pytest.raises(UserError, match=message):
                put(second, TASK.model_copy(update=changes))
        put(moved)
        assert len(ledger.load().evals) == 4


def test_trials_a_study_no_longer_has_are_kept_and_told_of(tmp_path: Path) -> None:
    run_everything(tmp_path)
    newer = PROVENANCE.model_copy(update={"libraries": {"torch": "2.14.0"}})
    with Ledger.open(tmp_path, write=True) as ledger:
        ledger.put_study("test", study_values(CONFIG), MODEL, [TASK], newer)
        with pytest.raises(UserError, match=r"torch was 2\.13\.0, is 2\.14\.0"):
            ledger.add_provenance(newer, allow_mixed=False)
        ledger.add_provenance(newer, allow_mixed=True)
        assert ledger.put_trials(SPECS[1:]) == 0
        records = ledger.load()
        assert [trial.spec for trial in records.trials] == SPECS[1:]
        assert {key[0] for key in records.evals} == {BASE, *IDS[1:]}
        assert "1 trial of an earlier form" in records.notes[0]
        assert "torch 2.13.0, 2.14.0" in records.notes[1]
        assert ledger.put_trials(SPECS[::-1]) == 0
        assert list(ledger.statuses().items()) == [(i, "done") for i in IDS[::-1]]


@pytest.mark.parametrize("name", ["artifacts", "tmp", CHECKPOINTS])
def test_folders_that_no_ledger_tells_of_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("kept")
    for _ in range(2):
        with pytest.raises(UserError, match=f"a folder '{name}' but no ledger"):
            Ledger.open(tmp_path, write=True)
    assert (tmp_path / name / "precious").read_text() == "kept"


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    run_everything(tmp_path)
    (tmp_path / "ledger.sha256").unlink()  # earlier versions had none
    for version in (99, 5):
        change_rows(tmp_path, f"PRAGMA user_version = {version}")
        for write in (False, True):
            with pytest.raises(UserError, match=f"ledger version {version}, expected 7"):
                Ledger.open(tmp_path, write=write)
