"""An executor is one file: it runs units, and a study comes out the same."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pocket_study import SETTINGS, leftovers, results, small_study

from rankscope.errors import UserError
from rankscope.run import executors
from rankscope.run.executors import executor_section, start_executor, with_executor

from .executor import SerialExecutor

CHANGES = {"arms": SETTINGS["arms"][:1], "seeds": [0, 1], "max_group_size": 1}


def test_a_study_run_by_another_executor_is_the_same(tmp_path: Path) -> None:
    small_study(tmp_path, **CHANGES).run(tmp_path / "here")
    serial = SerialExecutor()
    small_study(tmp_path, **CHANGES).run(tmp_path / "units", executor=serial)
    assert len(serial.submitted) == 3  # the base, and each adapter in a group of its own
    assert results(tmp_path / "units") == results(tmp_path / "here")
    assert leftovers(tmp_path / "units") == []
    assert not (tmp_path / "units" / "units").exists()


READ = """
import sys
from rankscope.run import executors
executors.__path__[:] = [sys.argv[1]]
from rankscope.config.study import StudyConfig
arm = {"method": "lora", "rank": 2, "lr": 1e-3}
study = {"name": "a", "model": "pocket", "tasks": ["pocket_med"], "arms": [arm]}
config = StudyConfig.model_validate({**study, "executor": {"serial": {"most": 7}}})
assert config.executor.settings.start(config, None).most == 7
assert StudyConfig.model_validate({**study, "executor": "ray"}).executor.name == "ray"
assert "torch" not in sys.modules
StudyConfig.model_validate({**study, "executor": "slurm"})
"""


def test_executors_are_the_files_of_the_package(tmp_path: Path) -> None:
    """With a file more and one less."""
    shutil.copytree(Path(str(executors.__file__)).parent, tmp_path / "executors")
    (tmp_path / "executors" / "slurm.py").unlink()
    shutil.copy(Path(__file__).with_name("executor.py"), tmp_path / "executors" / "serial.py")
    command = [sys.executable, "-c", READ, str(tmp_path / "executors")]
    read = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "executor.slurm\n  Extra inputs are not permitted" in read.stderr, read.stderr


def test_an_unknown_executor_names_those_that_there_are(tmp_path: Path) -> None:
    assert list(executor_section().model_fields) == ["local", "ray", "slurm"]
    with pytest.raises(UserError, match="found an unknown key, expected one of local, ray, slurm"):
        small_study(tmp_path, executor="dask")
    with pytest.raises(UserError, match="exactly one of local, ray, slurm"):
        small_study(tmp_path, executor={"ray": None, "slurm": {"time": "1:00:00"}})
    config = small_study(tmp_path, executor={"slurm": {"time": "1:00:00"}}).config
    assert with_executor(config, "slurm") == config
    assert not with_executor(config, "local").runs_elsewhere
    with pytest.raises(UserError, match="found 'dask', expected one of local, ray, slurm"):
        with_executor(config, "dask")
    with pytest.raises(UserError, match="at least 1"):
        start_executor(config, 0)
