"""A tracker that is not there."""

from pathlib import Path

import pytest

from ...tools.test_refusals import (
    test_what_makes_no_sense_is_refused_and_nothing_is_written as refused,
)

REFUSED = [
    ("run study.yaml --track paper", "expected one of mlflow, trackio, wandb"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "said"), REFUSED, ids=lambda text: text[:60])
def test_what_makes_no_sense_is_refused(
    command: str, said: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(command, said, places, monkeypatch)
