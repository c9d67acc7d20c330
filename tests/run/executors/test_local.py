"""Worker processes: whichever dies, whatever its driver does, the study comes out the same."""

import os
import re
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import Outcome, rankscope
from launcher import Launcher, text_of
from pocket_study import (
    TWO_GROUPS,
    Counter,
    leftovers,
    loaded,
    results,
    rewrite_rows,
    small_study,
    study_file,
)

from fault_workers import COMMAND as FORKED_WORKERS
from faults import flip_bit
from rankscope.config.study import StudyConfig
from rankscope.errors import BaseFailed, IntegrityError, Interrupted, UserError
from rankscope.hashing import sha256_file
from rankscope.records import BASE
from rankscope.run.executors.local import LocalExecutor
from rankscope.run.workers import attempts, starter
from rankscope.run.workers.attempts import (
    KILLED_FOR_MEMORY,
    WorkerFailed,
    check_worker,
    run_worker,
    storing_errors,
)
from rankscope.run.workers.order import read_unit, seal_unit
from rankscope.run.workers.worker import work
from rankscope.store import Ledger, find_problems


class Killer(LocalExecutor):
    """Kills the worker of a unit when it has stopped itself after a step, and the starter of all
    when the next one has, as the system may when memory runs out."""

    def __init__(self, config: StudyConfig, mark: Path) -> None:
        super().__init__(config, 2)
        self.mark = mark
        self.killed_starter: Any = None

    def submit(self, folder: Path) -> Any:
        if folder.name != BASE and not self.mark.exists():
            self.mark.touch()
            threading.Thread(target=self.kill, args=(folder,), daemon=True).start()
        return super().submit(folder)

    def kill(self, folder: Path) -> None:
        first = stopped_holder(folder)
        os.kill(first, signal.SIGKILL)
        stopped_holder(folder, other_than=first)
        self.killed_starter = self.starter.process
        self.mark.write_text("over")
        workers = psutil.Process(self.killed_starter.pid).children()
        self.killed_starter.kill()
        while workers:  # until each has seen that the starter died
            time.sleep(0.02)
            for worker in tuple(workers):
                try:
                    worker.send_signal(signal.SIGCONT)
                    ended = worker.status() == psutil.STATUS_ZOMBIE
                except psutil.NoSuchProcess:
                    ended = True
                if ended:
                    workers.remove(worker)


def stopped_holder(unit: Path, other_than: int = 0) -> int:
    """The process that works on a unit, once it has stopped itself."""
    while True:
        time.sleep(0.02)
        with suppress(psutil.NoSuchProcess):
            process = int(holder(unit) or 0)
            stopped = process and psutil.Process(process).status() == psutil.STATUS_STOPPED
            if stopped and process != other_than:
                return process


STOPPING = """
import os, signal
from pathlib import Path
from rankscope.progress import SpeedMeter
def stop_after(meter, step, *rest, report=SpeedMeter.__call__):
    report(meter, step, *rest)
    if not Path("MARK").read_text():
        os.kill(os.getpid(), signal.SIGSTOP)
SpeedMeter.__call__ = stop_after
"""


def run_with_workers_that(change: str, launcher: Launcher, folder: Path) -> tuple[Path, Outcome]:
    """The study whose two workers are forked from a process that has run ``change`` on the module
    ``worker``: its folder, and what the command came to."""
    code = f"import os, signal\nfrom rankscope.run.workers import worker\n{change}{FORKED_WORKERS}"
    file, out = study_file(folder, **TWO_GROUPS), folder / "out"
    launcher.start("run", file, "--out", out, "--workers", 2, code=code)
    return out, launcher.outcome()


DIE_WHEN_SEALED = """
def seal_and_die(folder):
    seal_unit(folder)
    os.kill(os.getpid(), signal.SIGKILL)

seal_unit, worker.seal_unit = worker.seal_unit, seal_and_die
"""


@pytest.mark.usefixtures("minutes")
def test_workers_that_die_between_their_seal_and_their_end_cost_nothing(
    two_groups: dict[str, Any], launcher: Launcher, tmp_path: Path
) -> None:
    out, ran = run_with_workers_that(DIE_WHEN_SEALED, launcher, tmp_path)
    assert ran.code == 0, ran.err
    assert results(out) == two_groups
    assert leftovers(out) == []


def holder(unit: Path) -> str:
    """The process that works on a unit; empty while there is none."""
    return (text_of(unit / "ledger.lock").split() or [""])[0]


@pytest.mark.usefixtures("minutes")
def test_a_killed_worker_and_a_killed_starter_are_started_again(
    two_groups: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, (*options, command) = tmp_path / "mark", starter.STARTER
    stopping = STOPPING.replace("MARK", str(mark)) + command
    monkeypatch.setattr(starter, "STARTER", (*options, stopping))
    study = small_study(tmp_path, **TWO_GROUPS)
    killer = Killer(study.config, mark)
    # Other tests of this process may have left children, such as a tracker's service.
    before = psutil.Process().children()
    study.run(tmp_path / "out", executor=killer)
    assert killer.killed_starter.returncode == -signal.SIGKILL
    assert killer.starter.process is not killer.killed_starter
    assert set(psutil.Process().children()) <= set(before)
    assert results(tmp_path / "out") == two_groups
    assert leftovers(tmp_path / "out") == []


class Recorder(LocalExecutor):
    """Scores the base in this process, then runs one group there or leaves all unfinished."""

    def __init__(self, config: StudyConfig, *, finish: bool) -> None:
        super().__init__(config)
        self.finish = finish

    def run(self, folder: Path) -> None:
        if self.finish or folder.name == BASE:
            work(folder.parents[1], folder.name)
        if folder.name != BASE:
            while (folder.parent / BASE).exists():  # until the driver has adopted it
                time.sleep(0.01)
            raise Interrupted("the driver goes away")


def run_abandoned(folder: Path, *, finish: bool) -> None:
    """A study whose driver went away when its first group was sealed, or before."""
    study = small_study(folder, **TWO_GROUPS)
    with pytest.raises(Interrupted):
        study.run(folder / "out", executor=Recorder(study.config, finish=finish))


@pytest.fixture(scope="module")
def with_a_seal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with-a-seal")
    run_abandoned(folder, finish=True)
    return folder


@pytest.fixture(scope="module")
def without_seals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without-seals")
    run_abandoned(folder, finish=False)
    return folder


@pytest.fixture
def sealed(with_a_seal: Path, tmp_path: Path) -> Path:
    """A copy of a study whose driver went away when its first group was sealed."""
    return shutil.copytree(with_a_seal, tmp_path, dirs_exist_ok=True) / "out"


@pytest.fixture
def unsealed(without_seals: Path, tmp_path: Path) -> Path:
    """A copy of a study whose driver went away before a group was done."""
    return shutil.copytree(without_seals, tmp_path, dirs_exist_ok=True) / "out"


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_new_driver_without_workers_keeps_what_a_unit_finished(
    two_groups: dict[str, Any], sealed: Path, tmp_path: Path, is_sealed: bool
) -> None:
    units = [path.parent for path in sealed.glob("units/*/sealed.sha256")]
    assert units
    for unit in units if not is_sealed else ():
        (unit / "sealed.sha256").unlink()
    user = Counter()
    small_study(tmp_path, **TWO_GROUPS).run(sealed, user)
    assert len(user.trained) == 2 - len(units)
    assert results(sealed) == two_groups
    assert not (sealed / "units").exists()


FAIL_WITH_DROPOUT = """
class Failing(worker.Conductor):
    def train(self, group):
        if group[0].dropout:
            raise AssertionError("a bug of the second group")
        super().train(group)

worker.Conductor = Failing
"""


def test_a_unit_that_fails_three_times_is_failed_and_the_others_go_on(
    launcher: Launcher, tmp_path: Path
) -> None:
    out, ran = run_with_workers_that(FAIL_WITH_DROPOUT, launcher, tmp_path)
    assert ran.code == 3
    records = loaded(out)
    failures = {trial.status: trial.failure for trial in records.trials}
    assert sorted(trial.status for trial in records.trials) == ["done"] * 2 + ["failed"] * 2
    failure = str(failures["failed"])
    assert failure.startswith("its worker ended with exit code 1 and no result, 3 times: ")
    assert "a bug of the second group" in failure  # the last lines that the worker printed
    assert leftovers(out) == []


class BaseKiller(LocalExecutor):
    """Its workers score the base and then die, however often they are started."""

    def run(self, folder: Path) -> None:
        work(folder.parents[1], folder.name)
        raise WorkerFailed("killed")


def test_a_study_without_its_base_ends(two_groups: dict[str, Any], tmp_path: Path) -> None:
    study, out = small_study(tmp_path, **TWO_GROUPS), tmp_path / "out"
    with pytest.raises(BaseFailed, match=r"scoring the base: killed; see .*base/worker\.log"):
        study.run(out, executor=BaseKiller(study.config))
    with Ledger.open(out, write=False) as ledger:
        assert "failed" not in ledger.statuses().values()
    study.run(out)
    assert results(out) == two_groups


def test_a_worker_that_cannot_start_python_is_no_puzzle(tmp_path: Path) -> None:
    """As on a node with a broken disk."""
    unit = tmp_path / "units" / "0"
    unit.mkdir(parents=True)
    code = run_worker(unit, {"PYTHONHOME": str(unit)}, lambda: False)
    with pytest.raises(WorkerFailed, match=r"exit code 1 and no result.*encodings"):
        check_worker(code, unit)


def test_an_error_of_a_worker_keeps_its_fields(tmp_path: Path) -> None:
    unit = tmp_path / "units" / "0"
    unit.mkdir(parents=True)
    (unit / "unit.json").write_text("{}")
    worked = rankscope("work", tmp_path, "0")
    assert worked.error
    with pytest.raises(type(worked.error)) as met:
        check_worker(worked.code, unit)
    assert met.value.description() == worked.error.description()
    error = UserError("here", do="mend it", faults=[UserError("a", "b", "c", "d"), "a text"])
    with pytest.raises(UserError), storing_errors(unit):
        raise error
    with pytest.raises(UserError) as met:
        check_worker(2, unit, "node17")
    assert str(met.value) == f"node17: {error}"
    assert met.value.description()["found"] == "b"


DOOMED = """
import os, pathlib, signal, sys
unit, counter = pathlib.Path(sys.argv[-2], "units", sys.argv[-1]), pathlib.Path(COUNTER)
asked = os.environ.get("RANKSCOPE_KILLED_FOR_MEMORY")
with (unit / "asked").open("a") as file:
    print(asked, file=file)
if asked:
    sys.exit((unit / "sealed.sha256").touch())
counter.write_text(f"pswpin 7\\noom_kill {len((unit / 'asked').read_text().splitlines())}\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A worker that the system kills for memory, and counts, until it is asked for less."""


SHORT = """
import os, pathlib, signal, sys
unit = pathlib.Path(sys.argv[-2], "units", sys.argv[-1])
asked = os.environ.get("RANKSCOPE_KILLED_FOR_MEMORY")
with (unit / "asked").open("a") as file:
    print(asked, file=file)
if asked:
    sys.exit((unit / "sealed.sha256").touch())
number = len((unit / "asked").read_text().splitlines())
why = "the next attempt is smaller" if number < 5 else "shard 1 of 2 ended with code 3"
print("error: out of memory:", why, file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A worker whose shard 0 runs out of memory four times, and then another shard."""


@pytest.mark.parametrize(
    ("script", "asked"), [(DOOMED, ["None", "None", "2"]), (SHORT, ["None"] * 5 + ["1"])]
)
def test_workers_killed_for_memory_ask_the_next_one_for_less(
    script: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third attempt does, or the first after another shard died; shard 0 itself stores how to
    need less."""
    unit = tmp_path / "units" / "0"
    unit.mkdir(parents=True)
    counter = tmp_path / "vmstat"
    script = script.replace("COUNTER", repr(str(counter)))
    monkeypatch.setattr(attempts, "VMSTAT", counter)
    monkeypatch.setattr(attempts, "WORKER", ("-c", script))
    assert run_worker(unit, {}, lambda: False) == 0
    assert (unit / "asked").read_text().split() == asked


def test_a_unit_that_killed_workers_for_memory_is_made_smaller(
    unsealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = next(unsealed.glob("units/*"))
    monkeypatch.setenv(KILLED_FOR_MEMORY, "2")
    work(unit.parents[1], unit.name)
    assert "not enough memory" in text_of(unit / "log.jsonl")
    with Ledger.open(unit, write=False) as ledger:
        stored, statuses = ledger.groups(), ledger.statuses()
    assert stored.batch_tokens or len(stored.groups) == 2
    assert list(statuses.values()).count("done") == 2


def test_results_that_arrive_twice_are_dropped_if_equal_and_refused_if_not(
    sealed: Path, tmp_path: Path
) -> None:
    out = sealed
    unit = next(out.glob("units/*/sealed.sha256")).parent
    kept = shutil.copytree(unit, tmp_path / unit.name)
    study = small_study(tmp_path, **TWO_GROUPS)
    study.run(out)
    before = results(out)
    shutil.copytree(kept, unit)
    study.run(out)
    assert results(out) == before
    assert not (out / "units").exists()
    shutil.copytree(kept, unit)
    items = next(unit.rglob("*.parquet"))
    items.write_bytes(items.read_bytes() + b"!")
    changed = (sha256_file(items), items.stat().st_size, items.relative_to(unit).as_posix())
    assert rewrite_rows(
        unit, "UPDATE artifacts SET file_sha256 = ?, bytes = ? WHERE path = ?", changed
    )
    seal_unit(unit)
    with pytest.raises(IntegrityError, match=rf"another {changed[2]} than in"):
        study.run(out)
    assert results(out) == before


def test_a_study_that_gained_a_seed_adopts_what_was_sealed(sealed: Path, tmp_path: Path) -> None:
    out, user = sealed, Counter()
    num_sealed = len(list(out.glob("units/*/sealed.sha256")))
    assert num_sealed >= 1
    small_study(tmp_path, **TWO_GROUPS | {"seeds": [0, 1, 2]}).run(out, user)
    assert len(user.trained) == 2 - num_sealed + 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_model.safetensors", r"adapter_model\.safetensors: found sha256"),
        ("unit.json", r"unit\.json: found sha256 .*, remove .*units"),
    ],
)
def test_a_sealed_unit_that_was_altered_is_refused(
    sealed: Path, tmp_path: Path, name: str, message: str
) -> None:
    flip_bit(next(next(sealed.glob("units/*/sealed.sha256")).parent.rglob(name)), -2)
    with pytest.raises(IntegrityError, match=message):
        small_study(tmp_path, **TWO_GROUPS).run(sealed)


def test_a_worker_refuses_what_is_no_unit_or_another_study(unsealed: Path) -> None:
    out = unsealed
    with pytest.raises(UserError, match="found no unit of work"):
        work(out, "0123456789abcdef")
    unit = next(out.glob("units/*/unit.json"))
    assert find_problems(out) == []
    unit.write_text(unit.read_text().replace('"max_items":8', '"max_items":7'))
    assert [problem.where for problem in find_problems(out)] == [unit.relative_to(out).as_posix()]
    assert [problem.do for problem in find_problems(unit.parent)] == [
        f"remove {unit.parent} to run it again"
    ]
    with pytest.raises(UserError, match="differs from the driver's"):
        work(out, unit.parent.name)
    torch = re.search('"torch":"([^"]+)"', unit.read_text())
    assert torch is not None
    unit.write_text(unit.read_text().replace(torch[0], '"torch":"2.0.0"'))
    with pytest.raises(UserError, match=f"found torch {re.escape(torch[1])}, expected torch 2.0.0"):
        work(out, unit.parent.name)


class CrowdedExecutor(LocalExecutor):
    """The first workers of the base were killed for memory; those after them find enough."""

    def __init__(self, config: StudyConfig) -> None:
        super().__init__(config, 1)
        self.units: list[str] = []

    def run(self, folder: Path) -> None:
        self.units.append(folder.name)
        # ``auto`` would be decided anew on a node that has vLLM, and give scores another key.
        assert read_unit(folder).config["evaluate"]["engine"] == "own"
        with pytest.MonkeyPatch.context() as patch:
            if self.units == [BASE]:
                patch.setenv(KILLED_FOR_MEMORY, "2")
            work(folder.parents[1], folder.name)


def test_a_base_short_of_memory_is_scored_again_alone(
    two_groups: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing makes it smaller, so its worker ends at once instead of being killed once more. The
    driver decides what writes answers."""
    evaluate = {**TWO_GROUPS["evaluate"], "engine": "auto"}
    study, out = small_study(tmp_path, **TWO_GROUPS | {"evaluate": evaluate}), tmp_path / "out"
    executor = CrowdedExecutor(study.config)
    study.run(out, executor=executor)
    assert executor.units[0] == executor.units[-1] == BASE
    assert executor.units.count(BASE) == 2
    assert results(out) == two_groups
