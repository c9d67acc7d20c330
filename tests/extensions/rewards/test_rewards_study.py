"""Studies by reward, as a user runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
from pocket_study import changed

from rankscope.run.study import Study
from rankscope.store import Ledger

from ...run.test_presets_run import page_of
from ..conftest import refusals
from ..pocket_objectives import STUDY, TRAIN, run


def test_rewards_are_recorded_and_drawn(tmp_path: Path) -> None:
    train = TRAIN | {"objective": {"grpo": {"answers": 4, "max_new_tokens": 12}}}
    ran = run(tmp_path, tasks=["pocket_gsm"], train=train,
              evaluate={"max_items": 20, "max_new_tokens": 12})  # fmt: skip
    assert ran.code == 0, ran.err
    study = Ledger.read(tmp_path / "out", with_analyses=False)
    for trial in study.trials:
        assert trial.train is not None
        points = trial.train.rewards
        assert [point["step"] for point in points] == [0, 1, 2, 3]
        assert all(0 < point["length"] <= 12 and point["entropy"] > 0 for point in points)
        # Prompts and their answers alone; what taught nothing did not run.
        assert 0 < trial.train.num_label_tokens <= 4 * 4 * 4 * 12
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "Reward while training, pocket_gsm" in page
    assert "Training loss, pocket_gsm" not in page


def test_the_preset_ends_in_a_report(tmp_path: Path) -> None:
    page_of("grpo", ["arms.0.rank=[1,8]"], tmp_path)


def by(objective: Any, task: Any = "pocket_gsm", **train: Any) -> dict[str, Any]:
    return {"tasks": [task], **changed("train", objective=objective, **train)}


BOTH = {"name": "both", "mixture": ["pocket_gsm", "pocket_med"]}
test_what_rewards_cannot_train_is_refused = refusals(
    (by({"grpo": {"answers": 1}}), "greater than or equal to 2"),
    (by({"grpo": {"reward": "option_text"}}), "the reward 'option_text'"),
    (by({"grpo": {"reward": {"numbr": 1.0}}}), "did you mean 'number'"),
    (by({"grpo": {"reward": "python:a.py:f"}}), "--trust-task-code"),
    (by("grpo", "pocket_med"), "the reward 'option_text'"),
    (by("grpo", BOTH), "a mixture of tasks"),
    (by("grpo", tokens=5000, max_steps=None), "'train.tokens'"),
    (by("grpo", labels="all"), "'labels: all'"),
)


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
        config = STUDY | {"tasks": ["pocket_gsm"], "arms": arms}
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
