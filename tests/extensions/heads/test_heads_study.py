"""A whole study that looks at its heads: stored once, continued, refused where it changed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import rankscope
from evaluation_worlds import choice_items, loaded
from pocket_study import UNANALYZED, small_study, study_file

from rankscope.extensions.heads.record import HeadsRecord
from rankscope.extensions.heads.tasks import related_tasks
from rankscope.records import StudyRecords
from rankscope.store import Ledger, find_problems

from ...run.test_given import (
    test_scores_that_do_not_fit_are_refused_by_name_before_anything_is_written as unfit,
)
from ...run.test_presets_run import page_of

HEADS = {"enabled": True, "items": 8, "ablate": ["pocket_cloze", "pocket_med"]}
ARMS: list[dict[str, Any]] = [
    {"method": "lora", "rank": 2, "lr": 5e-3},
    {"method": "dora", "rank": 2, "lr": 5e-3},
    {"method": {"peft": {"peft_type": "OFT", "oft_block_size": 16}}, "lr": 5e-3},
    {"method": "full", "lr": 5e-4},
]
NUM_LAYERS, NUM_HEADS = 4, 8


def asked(folder: Path, **heads: Any) -> dict[str, Any]:
    return {"arms": ARMS, "seeds": [0], "analyze": {"heads": {**HEADS, **heads}}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyRecords]:
    folder = tmp_path_factory.mktemp("heads")
    return folder / "out", small_study(folder, **asked(folder)).run(folder / "out")


def records(study: StudyRecords) -> dict[str, HeadsRecord]:
    found = {t.spec.method: t.analysis(HeadsRecord) for t in study.trials}
    assert None not in found.values()
    return {method: record for method, record in found.items() if record is not None}


def test_every_method_has_its_heads_beside_the_same_base(
    finished: tuple[Path, StudyRecords],
) -> None:
    found = records(finished[1])
    assert set(found) == {"lora", "dora", "peft", "full"}
    for record in found.values():
        assert (record.task, record.items) == ("pocket_med", 8)
        assert record.dtype == finished[1].model.dtype
        assert len(record.changes) == 4 * NUM_LAYERS
        assert all(value > 0 for change in record.changes for value in change.relative)
        assert record.base == found["lora"].base
        assert record.tuned != record.base
        for layer in (*record.base, *record.tuned):
            assert len(layer.entropy) == len(layer.importance) == NUM_HEADS
            assert np.linalg.norm(layer.importance) == pytest.approx(1)
            assert np.linalg.norm(layer.group_importance) == pytest.approx(1)
            assert all(value is not None and 0 < value < 1 for value in layer.entropy)


def test_ablations_begin_with_the_task_that_was_trained_on(
    finished: tuple[Path, StudyRecords],
) -> None:
    for method, record in records(finished[1]).items():
        med, cloze = record.ablations
        assert (med.task, cloze.task) == ("pocket_med", "pocket_cloze")
        assert med.base_score == records(finished[1])["lora"].ablations[0].base_score
        base, tuned = np.array(med.base_gold_change), np.array(med.tuned_gold_change)
        assert np.array(record.skill) == pytest.approx(base - tuned), method
        assert np.shape(record.skill) == np.shape(record.lost) == (NUM_LAYERS, NUM_HEADS)


def test_heads_added_later_are_all_that_is_done(tmp_path: Path) -> None:
    """On all items, so that the ablation's own scores of the intact models are the study's."""
    first = {**asked(tmp_path, items=16, ablate=["pocket_cloze"]), "arms": ARMS[:1]}
    out = tmp_path / "out"
    before = small_study(tmp_path, **{**first, "analyze": {}}).run(out)
    assert before.trials[0].analysis(HeadsRecord) is None
    after = small_study(tmp_path, **first).run(out)
    again = small_study(tmp_path, **first).run(out)
    heads = after.trials[0].analysis(HeadsRecord)
    assert after.trials[0].train == before.trials[0].train
    assert again.trials[0].analysis(HeadsRecord) == heads
    (cloze,) = heads.ablations
    assert cloze.tuned_score == after.evals[heads.trial_id, "pocket_cloze", "test"].score
    assert cloze.base_score == after.evals["base", "pocket_cloze", "test"].score
    with Ledger.open(out, write=False) as ledger:
        assert ledger.without_record("heads", ledger.trials()) == []
        assert find_problems(ledger.out) == []


@pytest.mark.parametrize(
    ("heads", "named"),
    [
        ({"items": 9}, "items 8"),
        ({"task": "pocket_cloze"}, "pocket_cloze"),
        ({"ablate": []}, "ablate"),
    ],
)
def test_records_made_otherwise_are_not_mixed(
    finished: tuple[Path, StudyRecords], heads: dict[str, Any], named: str, tmp_path: Path
) -> None:
    file = study_file(tmp_path, **asked(tmp_path, **heads))
    outcome = rankscope("run", file, "--out", finished[0])
    assert outcome.code == 2
    assert named in outcome.told
    assert "--out" in outcome.told


def test_stored_scores_have_no_heads(evaluated: Path, tmp_path: Path) -> None:
    asked = {"analyze": UNANALYZED | {"heads": {"enabled": True, "task": "pocket_med"}}}
    unfit(
        {"trial": "lora"}, asked, "without the weights .*without analyze.heads", evaluated, tmp_path
    )


def test_parts_of_a_joined_task_are_related_to_it_and_it_to_them() -> None:
    med, law, math = (
        replace(made, spec=replace(made.spec, name=name))
        for name in ("med", "law", "math")
        for made in [loaded(choice_items(), "option_text")]
    )
    both = replace(med, spec=replace(med.spec, name="both"), parts=(med, law))
    tasks = {task.spec.name: task for task in (both, med, law, math)}
    assert related_tasks(tasks, "both") == {"both", "med", "law"}
    assert related_tasks(tasks, "med") == {"both", "med"}
    assert related_tasks(tasks, "math") == {"math"}


def test_the_preset_shows_heads(tmp_path: Path) -> None:
    assert "Attention heads" in page_of("heads", [], tmp_path)
