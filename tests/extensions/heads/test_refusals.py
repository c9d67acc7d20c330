"""Heads that cannot be looked at."""

from pathlib import Path
from typing import Any

import pytest

from ...run.test_refusals import on_two
from ...run.test_refusals import (
    test_a_study_that_cannot_run_is_refused_before_anything_is_written as refused,
)

REFUSED = [
    ({"analyze": {"heads": {"enabled": True, "ablate": ["pocket_law"]}}}, "pocket_law"),
    (on_two(analyze={"heads": {"enabled": True}}), "found analyze.heads.enabled"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_run_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(changes, said, tmp_path)
