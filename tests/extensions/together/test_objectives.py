"""Spectra of models that other objectives trained."""

import math
from pathlib import Path

import pytest
from pocket_study import Counter, changed, small_study

import rankscope
from rankscope.advise.recommend import recommend
from rankscope.extensions.spectra.figures import NORM, draw_objectives
from rankscope.extensions.spectra.record import SpectraRecord
from rankscope.report.study_view import StudyView


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
def test_methods_and_objectives_have_spectra_where_an_update_is_one(tmp_path: Path) -> None:
    """What tunes norms has none; objectives are compared by norms; nothing is measured again."""
    lora = {"method": "lora", "rank": 2, "lr": 4e-3}
    arms = [
        {**lora, "objective": ["sft", "dpo", {"dpo": {"beta": 1}}]},
        {"method": {"peft": {"peft_type": "VERA", "r": 16}}, "lr": 1e-2},
        {"method": {"peft": {"peft_type": "LN_TUNING"}}, "lr": 1e-3},
    ]
    fewer = changed("train", max_steps=4) | changed("evaluate", cross_domain=[], max_items=8)
    study, again = small_study(tmp_path, arms=arms, seeds=[0], **fewer), Counter()
    study.run(out := tmp_path / "out")
    assert "cannot be merged into a weight" in (out / "log.jsonl").read_text("utf-8")
    records = study.run(out, again)
    assert again.stages == ["preparing"]
    spectra = {t.spec.arm_label: t.analysis(SpectraRecord) for t in records.trials}
    *merged, norms = spectra.values()
    assert norms.matrices == ()
    assert all(matrix.frobenius > 0 for found in merged for matrix in found.matrices)
    rows = sum(len(found.matrices) for found in merged)
    assert len(rankscope.load(out).analyses["matrices"]) == rows > 0
    figure = draw_objectives(StudyView(records, recommend(records)), "pocket_med")
    assert list(dict.fromkeys(figure.data["objective"])) == ["sft", "dpo", '{"dpo":{"beta":1.0}}']
    drawn = dict(zip(figure.data["arm"], figure.data[NORM], strict=True))
    expected = {arm: found.frobenius or math.nan for arm, found in spectra.items()}
    assert drawn == pytest.approx(expected, nan_ok=True)
    assert figure.finding.count(" gained ") == 3
