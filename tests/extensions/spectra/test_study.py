"""Spectra in whole studies: of every trial, stored once, told of, not mixed."""

from pathlib import Path
from typing import Any

import pytest
from pocket_study import changed

from rankscope.extensions.spectra.record import SpectraRecord

from ...run.test_given import (
    given_study,
    test_scores_that_do_not_fit_are_refused_by_name_before_anything_is_written as unfit,
)
from ...run.test_study import test_an_edit_that_would_mix_results_is_refused as refused


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"intruder_k": 9}, "intruder_k"),
        ({"intruder_epsilon": 0.4}, "intruder_epsilon"),
        ({"top_k": 64}, "top_k of 128 x 128 matrices 32"),
    ],
)
def test_spectra_of_other_settings_are_not_mixed(
    setting: dict[str, Any], named: str, copy: Path, tmp_path: Path
) -> None:
    refused({"analyze": {"spectra": setting}}, named, copy, tmp_path)


def test_stored_scores_have_no_spectra(evaluated: Path, tmp_path: Path) -> None:
    said = "without the weights .*without analyze.spectra"
    unfit({"trial": "lora"}, {"analyze": {}}, said, evaluated, tmp_path)


def test_given_models_have_the_norms_of_their_updates(given_models: Path, tmp_path: Path) -> None:
    few = changed("evaluate", cross_domain=[], max_items=4)
    given = (given_models / name for name in ("zero", "lora", "full"))
    zero, lora, full = given_study(tmp_path, *given, **few).run(tmp_path / "out").trials
    norms = [t.analysis(SpectraRecord).matrices[0].frobenius for t in (zero, lora, full)]
    assert norms[0] == 0 < norms[1] == pytest.approx(norms[2], rel=1e-5)
