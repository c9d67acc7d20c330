"""Presets on the pocket model: those of a kind of their own come to an answer and a report."""

from pathlib import Path

import pytest

from rankscope.config.presets import PRESETS
from rankscope.run.outputs import write_outputs
from rankscope.run.study import Study
from rankscope.tools.new_study import study_template

SHORT = [
    *("seeds=0", "train.max_steps=2", "train.batch_size=2", "train.warmup_fraction=0"),
    *("evaluate.max_items=8", "evaluate.max_new_tokens=2"),
]
ENDS = ["arms.0.lr=1e-3", "arms.1.lr=5e-4"]
RUN = {
    "high-rank": ["arms.0.rank=[8,128]", "arms.1.rank=[8,128]", *ENDS, "arms.2.lr=5e-4"],
    "methods": ["arms.0.rank=4", "arms.2.lr=5e-4", "arms.3.lr=1e-2", "arms.4.lr=5e-4", *ENDS],
}
"""Presets of the core that ask for something of their own, and what is left out of their grids; the
others are only prepared here."""
assert RUN.keys() <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_run_and_ends_in_a_report(preset: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(study_template(preset, "pocket"), encoding="utf-8")
    if preset in RUN:
        page_of(preset, RUN[preset], tmp_path)
    else:
        study = Study.load(file, SHORT)
        prepared = study.check()
        assert len(prepared.trials) == study.config.num_trials_as_written()
        assert sorted(t.trial_id for group in prepared.groups for t in group) == sorted(
            t.trial_id for t in prepared.trials
        )


def page_of(preset: str, changes: list[str], folder: Path) -> str:
    """The page of a short run of the preset, which has an answer for each task."""
    file = folder / "study.yaml"
    file.write_text(study_template(preset, "pocket"), encoding="utf-8")
    records = Study.load(file, [*SHORT, *changes]).run(folder / "out")
    assert {trial.status for trial in records.trials} == {"done"}
    _, answer = write_outputs(folder / "out")
    trained_on = {task.name for task in records.tasks if task.trained_on}
    assert {advice.task for advice in answer.advice} == trained_on
    page = (folder / "out" / "report.html").read_text("utf-8")
    assert all(trial.spec.arm_label in page for trial in records.trials)
    return page
