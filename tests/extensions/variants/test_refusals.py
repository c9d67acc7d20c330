"""Variants that cannot be scored."""

from pathlib import Path
from typing import Any

import pytest
from pocket_study import changed

from ...run.test_refusals import on_two
from ...run.test_refusals import (
    test_a_study_that_cannot_run_is_refused_before_anything_is_written as refused,
)

REFUSED = [
    (changed("evaluate", scales=[1.5]), "less than 1"),
    (on_two(evaluate={"scales": [0.5]}), "found variants of full fine-tuning"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_run_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(changes, said, tmp_path)
