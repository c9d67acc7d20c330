"""Studies by preference, as a user runs them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import rankscope, write_rows
from pocket_study import changed

from faults import flip_bit
from rankscope.run.study import Study
from rankscope.store import Ledger
from rankscope.tools.new_study import study_template

from ...run.test_presets_run import ENDS, page_of
from ...run.test_trials import test_what_trains_changes_every_id as changes_every_id
from ..conftest import refusals
from ..pocket_objectives import TRAIN, run

PAIRS = [
    {
        "prompt": f"How is the {thing}?",
        "chosen": f"The {thing} is {word}.",
        "rejected": f"I do not know how the {thing} is, or whether it is {word}.",
    }
    for thing in ("house", "river", "road", "child", "horse", "town", "garden", "door")
    for word in ("old", "new", "small", "large", "good")
]


@pytest.fixture(scope="module")
def preferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    write_rows(folder / "pairs.jsonl", PAIRS)
    ran = run(folder, tasks=[{"name": "pairs", "train": "pairs.jsonl"}],
              train=TRAIN | {"objective": {"dpo": {"beta": 0.5}}})  # fmt: skip
    assert ran.code == 0, ran.err
    return folder


def test_pairs_begin_with_their_preset() -> None:
    task = {"name": "pairs", "train": "pairs.jsonl", "scorer": "preference"}
    assert "objective: dpo" in study_template("default", task=task)


def test_the_preset_ends_in_a_report(tmp_path: Path) -> None:
    page_of("dpo", ["strategy=grid", "arms.0.rank=8", *ENDS], tmp_path)


def test_an_objective_changes_every_id() -> None:
    changes_every_id({"train": {"objective": "dpo"}})


def test_the_base_prefers_nothing_against_itself(preferred: Path) -> None:
    study = Ledger.read(preferred / "out", with_analyses=False)
    base = {key: record for key, record in study.evals.items() if key[0] == "base"}
    assert {record.score for record in base.values()} == {0.5}
    assert {record.metrics["margin"] for record in base.values()} == {0.0}
    for trial in study.trials:
        scored = study.evals[trial.spec.trial_id, "pairs", "test"]
        assert scored.score > 0.5
        assert scored.metrics["margin"] > 0
        assert trial.train is not None
        assert trial.train.losses[0].loss == pytest.approx(0.6931, abs=1e-4)


def test_replayed_rows_are_counted_by_pairs(preferred: Path) -> None:
    """Half of the rows drawn: as many as pairs, of the mean length of a replayed row."""
    arms = [{"method": "lora", "rank": 1, "lr": 4e-3, "replay": {"task": "pocket_med", "share": s}}
            for s in (0.5, 0.0)]  # fmt: skip
    config = yaml.safe_load((preferred / "study.yaml").read_text("utf-8")) | {"arms": arms}
    (preferred / "replay.yaml").write_text(json.dumps(config), "utf-8")
    study = Study.load(preferred / "replay.yaml").check()
    replaying, plain = (study.training_tokens(trial) for trial in study.trials)
    rows = study.data.replay_rows["pocket_med"]
    assert replaying - plain == round(4 * 4 * rows.num_tokens / len(rows.rows))


def test_the_reference_is_stored_once_and_checked(preferred: Path, tmp_path: Path) -> None:
    """Of the rows, and of the items of either split."""
    copied = shutil.copytree(preferred, tmp_path / "copy")
    files = sorted((copied / "out/artifacts/base/rows").iterdir())
    assert len(files) == 3
    again = rankscope("run", copied / "study.yaml", "--out", copied / "out")
    assert again.code == 0
    assert "adapters" not in again.err  # nothing trains again
    flip_bit(files[0])
    refused = rankscope("run", copied / "study.yaml", "--out", copied / "out")
    assert refused.code != 0
    assert files[0].name in refused.told


def test_preference_and_supervised_training_are_arms_of_one_study(tmp_path: Path) -> None:
    """Of multiple choice, whose scores stay what they are; each is another trial."""
    objectives = ["sft", "dpo", {"dpo": {"beta": 1}}]
    arms = [{"method": "lora", "rank": 2, "lr": 4e-3, "objective": objectives}]
    ran = run(tmp_path, tasks=["pocket_med"], arms=arms, train=TRAIN, evaluate={"max_items": 20})
    assert ran.code == 0, ran.err
    study = Ledger.read(tmp_path / "out", with_analyses=False)
    labels = [trial.spec.arm_label for trial in study.trials]
    assert labels[:2] == ["r=2 lr=0.004", "r=2 lr=0.004 objective=dpo"]
    assert labels[2] == "r=2 lr=0.004 objective=dpo:beta:1.0"
    assert len({trial.train.group_id for trial in study.trials if trial.train}) == 1
    assert {record.metric for record in study.evals.values()} == {"acc"}


def test_the_base_margin_belongs_to_the_right_choice(tmp_path: Path) -> None:
    """Which of two options is right is told by ``answer``, and not by their order."""
    rows = [
        {"question": row["prompt"], "answer": 1, "choices": [row["rejected"], row["chosen"]]}
        for row in PAIRS
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    task = {"name": "two", "train": "rows.jsonl", "scorer": "preference"}
    ran = run(tmp_path, tasks=[task], train=TRAIN | {"objective": "dpo"})
    assert ran.code == 0, ran.err
    study = Ledger.read(tmp_path / "out", with_analyses=False)
    assert study.evals["base", "two", "test"].score == 0.5
    for trial in study.trials:
        assert study.evals[trial.spec.trial_id, "two", "test"].metrics["margin"] > 0


def by(objective: Any, task: Any = "pocket_gsm") -> dict[str, Any]:
    return {"tasks": [task], **changed("train", objective=objective)}


test_a_task_that_cannot_be_trained_so_is_refused = refusals(
    (by("dpo"), "rows of the shape 'question and answer', with one answer"),
    (by("dpoo"), "did you mean 'dpo'"),
    (by({"dpo": {"beta": 0}}), "greater than 0"),
    (by({"dpo": {}, "sft": {}}), "one of sft, dpo"),
    (by("sft", {"name": "pocket_med", "scorer": "preference"}), "4 choices"),
)
