"""Spectra in whole studies: of every trial, stored once, told of, not mixed."""

from pathlib import Path
from typing import Any

import pytest
from pocket_study import small_study

from rankscope.errors import UserError
from rankscope.run.begin import check_record_settings
from rankscope.store import Ledger


@pytest.mark.parametrize(
    "change",
    [
        {"analyze": {"spectra": {"intruder_k": 3}}},
        {"analyze": {"spectra": {"intruder_epsilon": 0.4}}},
    ],
)
def test_spectra_of_other_settings_are_not_mixed(
    small: Path, change: dict[str, Any], tmp_path: Path
) -> None:
    same = small_study(tmp_path).check()
    other = small_study(tmp_path, **change).check()
    with Ledger.open(small, write=False) as ledger:
        check_record_settings(ledger, same)
        with pytest.raises(UserError, match="use another --out"):
            check_record_settings(ledger, other)
