"""``train.kernels``: chosen once for a study, and kept."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from pocket_study import ROUNDING, SETTINGS, changed, results, run_interrupted, small_study
from safetensors.torch import load_file

from rankscope.errors import UserError
from rankscope.models.compiled import CACHE, _Compiled, why_not
from rankscope.progress import LOG, logged
from rankscope.run import kernels
from rankscope.run.executors.local import LocalExecutor
from rankscope.run.prepared import PreparedStudy
from rankscope.store import Ledger

WITHOUT_COMPILER = """
import sys
from pathlib import Path
from pocket_study import changed, loaded, small_study
from rankscope.errors import UserError
from rankscope.run import kernels
folder = Path(sys.argv[1])
try:
    small_study(folder, **changed("train", kernels="compiled")).run(folder / "wanted")
except UserError as error:
    print("refused:", error.where, (folder / "wanted" / "study.resolved.yaml").exists())
kernels.WORTH_A_TRY = 0.0
study = small_study(folder, evaluate={"max_items": 2})
records = study.run(folder / "auto")
print(records.config.train.kernels, [note for note in records.notes if "kernels" in note])
"""
NO_COMPILER = ("/bin/false",)  # In place of the one that was there for the check
ARMS = SETTINGS["arms"][:2]


def study(folder: Path, wanted: str) -> Any:
    train = changed("train", kernels=wanted, max_steps=3)
    return small_study(folder, **train, arms=ARMS, seeds=[0], evaluate={"max_items": 4})


def test_a_choice_is_kept_however_a_study_runs(tmp_path: Path) -> None:
    """Compiled in one process; again with interruptions by a file that leaves the choice open; and
    in workers. All have the same bits."""
    expected = tmp_path / "whole"
    study(tmp_path, "compiled").run(expected)
    broken = tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "choose_kernels", lambda study: ("compiled", ""))
        run_interrupted(study(tmp_path, "auto"), broken, every=8)
    study(tmp_path, "auto").run(broken)
    workers = tmp_path / "workers"
    by_file = study(tmp_path, "compiled")
    (tmp_path / "file").touch()
    with pytest.MonkeyPatch.context() as patch:  # Workers cannot write the cache
        patch.delenv(CACHE, raising=False)
        patch.setenv("RANKSCOPE_CACHE", str(tmp_path / "file"))
        by_file.run(workers, executor=LocalExecutor(by_file.config, 1))
    for out in (broken, workers):
        assert results(out) == results(expected)
        with Ledger.open(out, write=False) as ledger:
            assert ledger.kernels() == "compiled"


def test_a_compiler_that_fails_during_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that asks for it ends with an error; one that leaves it open goes on as plainly, with
    notes, as do its workers, which find no compiler."""
    study(tmp_path, "plain").run(tmp_path / "plain")
    assert why_not("compiled", torch.device("cpu")) == ""
    monkeypatch.setattr(_Compiled, "failure", "")
    monkeypatch.setattr(_Compiled, "note", None)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/bin/false")  # of workers
    monkeypatch.setattr(kernels, "choose_kernels", lambda study: ("compiled", ""))
    torch._dynamo.reset()
    with inductor_config.patch({"cpp.cxx": NO_COMPILER}):
        asked = study(tmp_path, "compiled")
        with pytest.raises(UserError, match=r"train\.kernels: found a function that cannot"):
            asked.run(tmp_path / "asked")
        left_open = study(tmp_path, "auto")
        left_open.run(tmp_path / "open")
        left_open.run(tmp_path / "workers", executor=LocalExecutor(left_open.config, 1))
    assert results(tmp_path / "workers")["files"] == results(tmp_path / "plain")["files"]
    for file in (tmp_path / "plain").rglob("*.safetensors"):
        found = load_file(tmp_path / "open" / file.relative_to(tmp_path / "plain"))
        for name, weight in load_file(file).items():
            assert (found[name] - weight).norm() <= ROUNDING * weight.norm()
    for out, count in (("open", 1), ("workers", 2)):  # one for each unit
        notes = [event["text"] for event in logged(tmp_path / out / LOG, "note")]
        assert sum("train.kernels: plain" in note for note in notes) == count, notes


def test_small_studies_compile_nothing(tmp_path: Path) -> None:
    prepared: PreparedStudy = study(tmp_path, "auto").check()
    assert kernels.choose_kernels(prepared) == ("plain", "")


def test_the_fastest_way_that_pays_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured here, and what a GPU might measure."""
    prepared: PreparedStudy = study(tmp_path, "auto").check()
    monkeypatch.setattr(kernels, "WORTH_A_TRY", 0.0)
    trial = next(t for t in prepared.trials if t.method == "lora")
    assert kernels._saved_per_token(prepared, trial, "compiled")  # Equal losses
    monkeypatch.setattr(kernels, "why_not", lambda *_: "")
    for compiled, liger, chosen in ((1, 2, "liger"), (2, 1, "compiled"), (-1, -2, "plain")):
        found = {"compiled": compiled, "liger": liger}
        monkeypatch.setattr(kernels, "_saved_per_token", lambda *args, of=found: of[args[2]])
        assert kernels.choose_kernels(prepared) == (chosen, "")


def test_kernels_that_fail_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(study: PreparedStudy, trial: object, way: str) -> float:
        if way == "liger":
            raise TypeError("another version of it")
        return 1.0

    prepared: PreparedStudy = study(tmp_path, "auto").check()
    monkeypatch.setattr(kernels, "WORTH_A_TRY", 0.0)
    monkeypatch.setattr(kernels, "why_not", lambda *_: "")
    monkeypatch.setattr(kernels, "_saved_per_token", measure)
    assert kernels.choose_kernels(prepared) == ("compiled", "")


def test_without_a_compiler(tmp_path: Path) -> None:
    """A study that asks for compiled functions is refused before it has results; one that leaves it
    open goes on without, with a note."""
    outcome = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER, str(tmp_path)],
        env={**os.environ, "CXX": "/bin/false", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    refused, auto = outcome.stdout.splitlines()
    assert refused == "refused: train.kernels False"
    assert auto.startswith("plain [")
    assert "train.kernels: plain, as nothing can be compiled: InvalidCxxCompiler" in auto
