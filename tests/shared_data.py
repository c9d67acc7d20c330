"""Where the real data sets lie that some tests read."""

import os
from pathlib import Path


def shared_data() -> Path:
    """Folder with ``<task>/*.jsonl``: ``RANKSCOPE_DATA``, else ``../shared/data``."""
    named = os.environ.get("RANKSCOPE_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "arc_easy" / "test.jsonl").is_file():
        raise FileNotFoundError(
            f"{folder} does not hold the data sets this test reads (arc_easy/test.jsonl, ...); set "
            "RANKSCOPE_DATA to the folder that does"
        )
    return folder
