"""Tasks of a harness where a study cannot take them."""

from pathlib import Path
from typing import Any

import pytest
from pocket_study import changed

from ...run.test_refusals import REPLAY, arm
from ...run.test_refusals import (
    test_a_study_that_cannot_run_is_refused_before_anything_is_written as refused,
)

REFUSED = [
    (arm(replay={**REPLAY, "task": "lm_eval:x"}), "found 'lm_eval:x'"),
    (changed("evaluate", cross_domain=["nothing:5"]), "expected one of lm_eval before the colon"),
    (changed("evaluate", retention=["lm_eval:hellaswag"]), "rankscope eval --tasks lm_eval:"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_run_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(changes, said, tmp_path)
