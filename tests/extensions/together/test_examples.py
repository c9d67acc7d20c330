"""Examples, which name keys of several extensions, load as documented."""

from pathlib import Path

import pytest

from rankscope.config.loader import dump_study, load_study_file

from ...config.test_presets import ROOT, load_text, planned

EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_plan_and_dump(path: Path, tmp_path: Path) -> None:
    config = load_study_file(path)
    assert 0 < planned(config) <= config.num_trials_as_written()
    # Of one model; docs/gpus-and-clusters.md quotes it.
    assert path.stem != "paper-grid" or planned(config) == 255
    assert load_text(dump_study(config), tmp_path) == config
