"""What all tests of faults share: a study to spoil, a finished one, and a place for processes."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished_studies import own
from launcher import Launcher
from pocket_study import Undisturbed, changed, results, study_file

from faults import edit, write_study
from rankscope.models.model_folder import pocket_folder

__all__ = ["own"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study file and 40 good rows."""
    folder = tmp_path / "work"
    write_study(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def model(place: Path) -> Path:
    """A copy of the pocket model, which the study names."""
    shutil.copytree(pocket_folder(), place / "model")
    edit(place, "model: pocket", "model: ./model")
    return place / "model"


@pytest.fixture
def copied(own: Path, tmp_path: Path) -> Path:
    """A copy of the finished study's folder; ``study.yaml`` and its rows are beside it, too."""
    shutil.copytree(own.parent, tmp_path / "copied")
    return tmp_path / "copied" / "out"


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts commands in processes of their own."""
    with Launcher(tmp_path_factory.mktemp("launcher")) as started:
        yield started


@pytest.fixture(scope="session")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three groups, with what is stored while a group trains: points of curves, and
    weights by step. It writes a checkpoint after every step."""
    train = changed("train", evaluate_every=3, evaluate_items=8, checkpoint_every=5)
    three_groups = {
        "seeds": [0],
        "max_group_size": 1,
        **changed("evaluate", cross_domain=[], max_items=8),
    }
    return study_file(tmp_path_factory.mktemp("study"), **train, **three_groups)


@pytest.fixture(scope="session")
def undisturbed(
    launcher: Launcher, long_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """What a run of ``long_file`` comes to that nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    launcher.warm_up("run", long_file, "--out", out.with_name("warm-up"))
    begun = time.monotonic()
    ran = launcher.run("run", long_file, "--out", out)
    assert ran.code == 0, ran.err
    return Undisturbed(results(out), time.monotonic() - begun)
