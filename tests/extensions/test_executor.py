"""An executor is one file: it runs units, and a study comes out the same."""

from pathlib import Path

import pytest
from pocket_study import SETTINGS, leftovers, results, small_study

from rankscope.errors import UserError
from rankscope.run.executors import ExecutorOptions, executor_names, new_executor

from . import executor

CHANGES = {"arms": SETTINGS["arms"][:1], "seeds": [0, 1], "max_group_size": 1}


def test_a_study_run_by_another_executor_is_the_same(tmp_path: Path) -> None:
    small_study(tmp_path, **CHANGES).run(tmp_path / "here")
    serial = new_executor("serial", ExecutorOptions())
    assert isinstance(serial, executor.SerialExecutor)
    small_study(tmp_path, **CHANGES).run(tmp_path / "units", executor=serial)
    assert len(serial.submitted) == 3  # the base, and each adapter in a group of its own
    assert results(tmp_path / "units") == results(tmp_path / "here")
    assert leftovers(tmp_path / "units") == []
    assert not (tmp_path / "units" / "units").exists()
    again = new_executor("serial", ExecutorOptions())
    small_study(tmp_path, **CHANGES).run(tmp_path / "units", executor=again)
    assert isinstance(again, executor.SerialExecutor)
    assert again.submitted == []


def test_an_unknown_executor_names_those_that_there_are() -> None:
    assert executor_names() == ["local", "ray", "serial", "slurm"]
    with pytest.raises(UserError, match="'dask': expected one of local, ray, serial, slurm"):
        new_executor("dask", ExecutorOptions())
    with pytest.raises(UserError, match="at least 1"):
        new_executor("local", ExecutorOptions(num_workers=0))
