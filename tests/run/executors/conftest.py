"""What the tests of every executor compare with."""

from typing import Any

import pytest
from pocket_study import TWO_GROUPS, results, small_study


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a run in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    small_study(folder, **TWO_GROUPS).run(folder / "out")
    return results(folder / "out")


@pytest.fixture
def shard_processes() -> None:
    """Marks a test of shards or of SLURM's time limits, which take long."""
