"""What the tests of every executor compare with."""

import pytest


@pytest.fixture
def shard_processes() -> None:
    """Marks a test of shards or of SLURM's time limits, which take long."""
