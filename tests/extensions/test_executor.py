"""An executor is one file: it runs units, and a study comes out the same."""

from pathlib import Path

import pytest
from pocket_study import SETTINGS, leftovers, results, small_study

from rankscope.errors import UserError
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


def test_an_unknown_executor_names_those_that_there_are(tmp_path: Path) -> None:
    known = ", ".join(executor_section().model_fields)
    with pytest.raises(UserError, match=f"is not a key. Known here: {known}"):
        small_study(tmp_path, executor="dask")
    config = small_study(tmp_path).config
    with pytest.raises(UserError, match=f"found 'dask', expected one of {known}"):
        with_executor(config, "dask")
    with pytest.raises(UserError, match="at least 1"):
        start_executor(config, 0)
