"""Settings of clusters that are refused, and the one executor of a study."""

from pathlib import Path

import pytest
from pocket_study import small_study

from rankscope.errors import UserError
from rankscope.run.executors import with_executor

from ...run.test_refusals import executor as on
from ..conftest import refusals

test_what_cannot_run_is_refused = refusals(
    *((on("slurm", time=time), f"found '{time}', expected more than 3 minutes")
      for time in ("1", "3", "3:00", "0:03:00", "0-0:03")),
    *((on(name, **{key: value}), f"executor.{name}.{key}: found a setting by which code of")
      for name, key, value in (("slurm", "setup", ["rm x"]), ("slurm", "python", "a"),
                               ("slurm", "wrap", "a"),
                               ("slurm", "options", ["--export=ALL,BASH_ENV=/tmp/x"]),
                               ("ray", "address", "localhost:1"))),
)  # fmt: skip


def test_a_study_has_one_executor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exactly one of local, ray, slurm"):
        small_study(tmp_path, executor={"ray": None, "slurm": {"time": "1:00:00"}})
    config = small_study(tmp_path, executor={"slurm": {"time": "1:00:00"}}).config
    assert with_executor(config, "slurm") == config
    assert not with_executor(config, "local").runs_elsewhere
