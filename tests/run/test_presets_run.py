"""Every preset, on the pocket model and in its shortest form, comes to an answer and a report."""

import json
from pathlib import Path

import pytest

from rankscope.config.presets import PRESETS
from rankscope.records import StudyRecords
from rankscope.run.outputs import write_outputs
from rankscope.run.study import Study
from rankscope.tools.new_study import study_template

SHORT = [
    "seeds=0",
    "train.max_steps=2",
    "train.batch_size=2",
    "train.warmup_fraction=0",
    "evaluate.max_items=8",
    "evaluate.max_new_tokens=2",
]
ENDS = ["arms.0.lr=1e-3", "arms.1.lr=5e-4"]
FEWER = {
    "default": ["arms.0.rank=[2,128]", "evaluate.max_items=10", *ENDS],
    "pocket": ["arms.0.rank=[2,128]", *ENDS],
    "paper": ["arms.0.rank=8", *ENDS],
    "rank-sanity": ["arms.0.lr=1e-3"],
    "retention-probe": ["arms.0.rank=[2,128]", *ENDS],
    "cross-domain": ["arms.0.rank=[2,32]", *ENDS],
    "base-vs-instruct": ["arms.0.rank=[2,32]", *ENDS],
    "learning-rate": ["arms.0.rank=2", "arms.0.lr=[1e-4,1e-2]", "arms.1.lr=[1e-4,1e-3]"],
    "alpha": ["arms.0.rank=32", "arms.0.lr=5e-4"],
    "high-rank": ["arms.0.rank=[8,128]", "arms.1.rank=[8,128]", *ENDS, "arms.2.lr=5e-4"],
    "methods": ["arms.2.lr=5e-4", "arms.3.lr=1e-2", "arms.4.lr=5e-4", *ENDS],
    "mitigation": [
        *(f"arms.{n}.rank=4" for n in range(6)),
        "train.evaluate_every=1",
        "train.evaluate_items=4",
    ],
}
"""What is left out of the larger grids, so that the whole of them takes seconds."""


def ran(preset: str, folder: Path) -> StudyRecords:
    """The preset's study in its shortest form."""
    file = folder / "study.yaml"
    file.write_text(study_template(preset, "pocket"), encoding="utf-8")
    return Study.load(file, [*SHORT, *FEWER.get(preset, [])]).run(folder / "out")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_shortest_form_of_every_preset_ends_in_a_report(preset: str, tmp_path: Path) -> None:
    study = ran(preset, tmp_path)
    assert {trial.status for trial in study.trials} == {"done"}
    write_outputs(tmp_path / "out")
    answer = json.loads((tmp_path / "out" / "recommendation.json").read_text("utf-8"))
    trained_on = {task.name for task in study.tasks if task.trained_on}
    assert {advice["task"] for advice in answer["advice"]} == trained_on
    assert bool(answer["mitigation"]) == (preset == "mitigation")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert all(trial.spec.arm_label in page for trial in study.trials)
    assert ("Mitigations at an equal score" in page) == (preset == "mitigation")
