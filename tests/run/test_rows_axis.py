"""Arms on fewer rows: the trials of a study that has no others, in one group with those that do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pocket_study import ROUNDING, changed, small_study

from rankscope.records import StudyRecords
from rankscope.run.prepare import prepare
from rankscope.store import Ledger

LORA = {"method": "lora", "rank": 2, "lr": 2e-3}
SHORT: dict[str, Any] = {
    "seeds": [0],
    "max_group_size": 8,
    **changed("train", max_steps=None, epochs=1),
    **changed("evaluate", retention=[], cross_domain=[], max_items=8),
}


def records_of(folder: Path, **changes: Any) -> StudyRecords:
    small_study(folder, **(SHORT | changes)).run(folder / "out")
    return Ledger.read(folder / "out")


def test_fewer_rows_train_as_in_a_study_of_their_own(tmp_path: Path) -> None:
    """The same ids, and losses up to rounding, though three numbers of rows share a group."""
    replay = {**LORA, "replay": {"task": "pocket_cloze", "share": 0.25}}
    arms = [{**LORA, "rows": [24, 40]}, {**replay, "rows": 24}]
    together = records_of(tmp_path / "together", arms=arms)
    rows = {t.spec.arm_label: t.train.rows for t in together.trials if t.train is not None}
    assert sorted(rows.values()) == [24, 24, 40]
    assert {t.train.group_size for t in together.trials if t.train is not None} == {3}
    steps = {t.train.rows: t.train.steps for t in together.trials if t.train is not None}
    assert steps == {24: 3, 40: 5}  # batches of eight
    for count in (24, 40):
        task = {"name": "pocket_med", "max_train_rows": count}
        alone = records_of(tmp_path / str(count), tasks=[task], arms=[LORA])
        (one,), by_id = alone.trials, {t.spec.trial_id: t for t in together.trials}
        other = by_id[one.spec.trial_id]
        assert one.train is not None
        assert other.train is not None
        losses = [[point.loss for point in t.losses] for t in (one.train, other.train)]
        assert np.array(losses[0]) == pytest.approx(losses[1], rel=10 * ROUNDING)


def test_all_is_every_row_and_each_number_is_an_arm_of_a_plan(tmp_path: Path) -> None:
    arms = [{**LORA, "rows": [24, "all"]}, LORA]
    study = prepare(small_study(tmp_path, **(SHORT | {"arms": arms})).config, is_plan=True)
    assert [trial.rows for trial in study.trials] == [24, None]
    assert study.num_steps(study.trials[0]) == 3
