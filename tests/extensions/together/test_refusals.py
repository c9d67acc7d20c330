"""Commands on spectra and heads that make no sense."""

from pathlib import Path

import pytest

from ...tools.test_refusals import (
    test_what_makes_no_sense_is_refused_and_nothing_is_written as refused,
)

INSPECT = "inspect {base} {lora} --out {new} "

REFUSED = [
    (INSPECT + "--set analyze.heads.enabled=true", "found analyze.heads without a task"),
    ("inspect pocket {pocket} --out {new} --set analyze.heads.enabled=true "
     "--set evaluate.cross_domain=[pocket_medd]",
     "did you mean 'pocket_med'?"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "said"), REFUSED, ids=lambda text: text[:60])
def test_what_makes_no_sense_is_refused(
    command: str, said: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(command, said, places, monkeypatch)
