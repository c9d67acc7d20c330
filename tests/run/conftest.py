"""Studies that several tests of the conductor look at."""

from pathlib import Path

import pytest
from pocket_study import small_study

from rankscope.run.outputs import write_outputs


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study, run and reported; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    write_outputs(folder / "out", small_study(folder).run(folder / "out"))
    return folder / "out"
