"""An analysis from one file is configured, run, stored, read back and tabulated."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pocket_study import SETTINGS, small_study

import rankscope
from rankscope import analyses
from rankscope.config.study import AnalyzeConfig, StudyConfig


@pytest.fixture
def largest(
    monkeypatch: pytest.MonkeyPatch, load_extension: Callable[[str], ModuleType]
) -> Iterator[ModuleType]:
    """The analysis of the file beside this one, gone after the test."""
    monkeypatch.setattr(analyses, "_ANALYSES", dict(analyses._ANALYSES))
    yield load_extension("analysis")
    del AnalyzeConfig.__pydantic_fields__["largest"]
    AnalyzeConfig.model_rebuild(force=True)
    StudyConfig.__pydantic_fields__["analyze"].default = AnalyzeConfig()
    StudyConfig.model_rebuild(force=True)


def test_a_study_runs_stores_and_tabulates_it(largest: ModuleType, tmp_path: Path) -> None:
    changes = {"arms": SETTINGS["arms"][:1], "seeds": [0], "evaluate": {"max_items": 8}}
    study = small_study(tmp_path, **changes, analyze={"largest": {"enabled": True}})
    assert "largest" in study.plan().stages
    (trial,) = study.run(tmp_path / "out").trials
    found = trial.analysis(largest.LargestRecord)
    assert found is not None
    assert found.largest > 0
    table = rankscope.load(tmp_path / "out").analyses["largest"]
    assert table[["arm", "largest"]].values.tolist() == [[trial.spec.arm_label, found.largest]]
    assert largest.LargestAnalysis().is_enabled(small_study(tmp_path).config) is False
