"""What every test shares: the allocator setting of the product, and the real data."""

import os
from pathlib import Path

import pytest
import torch

from rankscope.device import keep_freed_memory

# Without it training steps cost many times more on virtual machines; see docs/footguns.md.
keep_freed_memory()
# Models in tests are tiny: a second thread would only wait, long where other work shares the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets, ``<task>/{train,validation,test}.jsonl``."""
    given = os.environ.get("RANKSCOPE_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.fail(
            f"real data not found at {folder}: set RANKSCOPE_DATA to a folder with "
            "<task>/{train,validation,test}.jsonl"
        )
    return folder
