"""What all tests of faults share: a study to spoil, a finished one, and a place for processes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import rankscope
from launcher import Launcher

from faults import edit, write_study


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study file and 40 good rows."""
    folder = tmp_path / "work"
    write_study(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished study of ranks 2 and 4; ``study.yaml`` and its rows are beside it."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_study(folder)
    edit(folder, "rank: [2]", "rank: [2, 4]")
    ran = rankscope("run", file, "--out", folder / "out")
    assert ran.code == 0, ran.err
    return folder / "out"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study's folder; ``study.yaml`` and its rows are beside it, too."""
    shutil.copytree(finished.parent, tmp_path / "copied")
    return tmp_path / "copied" / "out"


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts commands in processes of their own."""
    with Launcher(tmp_path_factory.mktemp("launcher")) as started:
        yield started
