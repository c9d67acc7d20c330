"""Studies by preference and by reward, as a user runs them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Outcome, rankscope, write_rows

from faults import flip_bit
from rankscope.run.study import Study
from rankscope.store import Ledger

TRAIN = {"max_steps": 4, "batch_size": 4, "gradient_accumulation": 1, "max_length": 64}
PAIRS = [
    {
        "prompt": f"How is the {thing}?",
        "chosen": f"The {thing} is {word}.",
        "rejected": f"I do not know how the {thing} is, or whether it is {word}.",
    }
    for thing in ("house", "river", "road", "child", "horse", "town", "garden", "door")
    for word in ("old", "new", "small", "large", "good")
]


def run(folder: Path, *options: object, **study: Any) -> Outcome:
    """A study of two ranks and full fine-tuning on the pocket model."""
    arms = [{"method": "lora", "rank": [1, 8], "lr": 4e-3}, {"method": "full", "lr": 5e-4}]
    whole = {"name": "s", "model": "pocket", "arms": arms, "seeds": [0], "dtype": "float32"}
    file = folder / "study.yaml"
    file.write_text(json.dumps(whole | study), "utf-8")  # YAML, too
    return rankscope("run", file, "--out", folder / "out", *options)


@pytest.fixture(scope="module")
def preferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    write_rows(folder / "pairs.jsonl", PAIRS)
    ran = run(folder, tasks=[{"name": "pairs", "train": "pairs.jsonl"}],
              train=TRAIN | {"objective": {"dpo": {"beta": 0.5}}})  # fmt: skip
    assert ran.code == 0, ran.err
    return folder


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


def test_rewards_are_recorded_and_drawn(tmp_path: Path) -> None:
    train = TRAIN | {"objective": {"grpo": {"answers": 4, "max_new_tokens": 12}}}
    ran = run(tmp_path, tasks=["pocket_gsm"], train=train,
              evaluate={"max_items": 20, "max_new_tokens": 12})  # fmt: skip
    assert ran.code == 0, ran.err
    study = Ledger.read(tmp_path / "out", with_analyses=False)
    for trial in study.trials:
        assert trial.train is not None
        points = trial.train.rewards
        assert [point.step for point in points] == [0, 1, 2, 3]
        assert all(0 < point.length <= 12 and point.entropy > 0 for point in points)
        # Prompts and their answers alone; what taught nothing did not run.
        assert 0 < trial.train.num_label_tokens <= 4 * 4 * 4 * 12
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "Reward while training, pocket_gsm" in page
    assert "Training loss, pocket_gsm" not in page


@pytest.mark.parametrize(
    ("tasks", "objective", "found"),
    [
        (["pocket_gsm"], "dpo", "rows of the shape 'question and answer', with one answer"),
        (["pocket_gsm"], "dpoo", "did you mean 'dpo'"),
        (["pocket_gsm"], {"dpo": {"beta": 0}}, "greater than 0"),
        (["pocket_gsm"], {"dpo": {}, "sft": {}}, "one of sft, dpo, grpo"),
        (["pocket_gsm"], {"grpo": {"answers": 1}}, "greater than or equal to 2"),
        (["pocket_gsm"], {"grpo": {"reward": "option_text"}}, "the reward 'option_text'"),
        (["pocket_gsm"], {"grpo": {"reward": {"numbr": 1.0}}}, "did you mean 'number'"),
        (["pocket_gsm"], {"grpo": {"reward": "python:a.py:f"}}, "--trust-task-code"),
        (["pocket_med"], "grpo", "the reward 'option_text'"),
        ([{"name": "both", "mixture": ["pocket_gsm", "pocket_med"]}], "grpo", "a mixture of tasks"),
        ([{"name": "pocket_med", "scorer": "preference"}], "sft", "4 choices"),
    ],
)
def test_a_task_that_cannot_be_trained_so_is_refused(
    tasks: list[Any], objective: Any, found: str, tmp_path: Path
) -> None:
    ran = run(tmp_path, tasks=tasks, train=TRAIN | {"objective": objective})
    assert ran.code == 2, ran.told
    assert found in ran.told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("train", "arm", "found"),
    [
        ({"tokens": 5000, "max_steps": None}, {}, "'train.tokens'"),
        ({"labels": "all"}, {}, "'labels: all'"),
    ],
)
def test_a_protocol_that_rewards_cannot_train_is_refused(
    train: dict[str, Any], arm: dict[str, Any], found: str, tmp_path: Path
) -> None:
    arms = [{"method": "lora", "rank": 2, "lr": 1e-3, **arm}]
    ran = run(
        tmp_path, tasks=["pocket_gsm"], train=TRAIN | {"objective": "grpo"} | train, arms=arms
    )
    assert ran.code == 2, ran.told
    assert found in ran.told


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


def test_weights_belong_to_the_content_of_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one name in two folders: each weight moves the ids, and so does an exchange."""
    monkeypatch.setenv("RANKSCOPE_TRUST_TASK_CODE", "1")
    one, two = (f"python:{tmp_path / name}/g.py:f" for name in ("a", "b"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text = f"def f(answer, gold, prompt):\n    return {name!r} in answer\n"
        (tmp_path / name / "g.py").write_text(text)

    def ids(*rewards: Any) -> list[str]:
        arms = [
            {"method": "lora", "rank": 1, "lr": 1e-3, "objective": {"grpo": {"reward": reward}}}
            for reward in rewards
        ]
        whole = {"name": "s", "model": "pocket", "tasks": ["pocket_gsm"], "train": TRAIN}
        config = whole | {"arms": arms, "seeds": [0], "dtype": "float32"}
        (tmp_path / "study.yaml").write_text(json.dumps(config), "utf-8")
        trials = Study.load(tmp_path / "study.yaml").check().trials
        return [trial.trial_id for trial in trials]

    found = [
        ids({one: 1.0, two: 0.2}),
        ids({one: -5.0, two: 0.2}),
        ids({one: 1.0, two: 0.3}),
        ids({one: 0.2, two: 1.0}),
    ]
    assert len({trial for trials in found for trial in trials}) == 4
    assert len(ids(one, two)) == 2
    (tmp_path / "b/g.py").write_bytes((tmp_path / "a/g.py").read_bytes())
    assert ids({one: 1.0, two: 0.2}) != ids({one: -5.0, two: 0.2})
    assert len(ids(one, two)) == 1


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("import sys\n\ndef f(answer, gold, prompt):\n    sys.exit(0)\n", "f of "),
        ("raise SystemExit\n", "scorer 'python:"),
    ],
)
def test_a_reward_that_ends_python_does_not_end_the_run_well(
    text: str, where: str, tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(text, "utf-8")
    objective = {"grpo": {"answers": 2, "max_new_tokens": 2, "reward": "python:reward.py:f"}}
    ran = run(tmp_path, "--trust-task-code", tasks=["pocket_gsm"],
              arms=[{"method": "lora", "rank": 1, "lr": 1e-3}],
              train=TRAIN | {"objective": objective, "max_steps": 2},
              evaluate={"max_items": 4, "max_new_tokens": 2})  # fmt: skip
    assert ran.code == 2, ran.told
    assert f"{where}{tmp_path / 'reward.py'}" in ran.told
    assert "sys.exit(" in ran.told
