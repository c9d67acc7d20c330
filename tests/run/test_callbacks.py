"""A curve point is what a trial's weights score, and scoring does not change its training."""

from pathlib import Path
from typing import Any

from pocket_study import SETTINGS, UNANALYZED, changed, results, small_study

from rankscope.records import StudyRecords, TrialRecords
from rankscope.run.outputs import write_outputs
from rankscope.run.plan import make_plan

TASKS = ("pocket_cloze", "pocket_med")
STEPS = (3, 6, 8)
"""Of eight steps, every third and the last."""


def curved(**train: Any) -> dict[str, Any]:
    """Settings of the small study that ask for curves, on as many items as its splits have."""
    return changed("train", evaluate_every=3, evaluate_items=16, **train)


def stored(study: StudyRecords) -> dict[str, list[dict[str, Any]]]:
    """Every curve, but for seconds."""
    return {
        t.spec.label: [point.model_dump(exclude={"seconds"}) for point in t.curve]
        for t in study.trials
    }


def assert_last_point_is_the_final_score(study: StudyRecords, trial: TrialRecords) -> None:
    last = [point for point in trial.curve if point.step == STEPS[-1]]
    assert sorted(point.task for point in last) == sorted(TASKS)
    for point in last:
        final = study.evals[trial.spec.trial_id, point.task, "validation"]
        assert (point.score, point.standard_error) == (final.score, final.standard_error)
        assert (point.n, point.metric, point.num_tokens) == (
            final.n,
            final.metric,
            final.num_tokens,
        )


METHODS = [
    *SETTINGS["arms"][1:],
    {"method": "dora", "rank": 4, "lr": 2e-3, "dropout": 0.1},
    {"method": {"peft": {"peft_type": "ADALORA", "init_r": 6, "target_r": 3}}, "lr": 5e-3},
    {"method": {"peft": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.2}}, "lr": 2e-3},
]


def test_every_method_ends_at_its_final_score_and_trains_the_same(tmp_path: Path) -> None:
    """Weights, losses and scores, bit for bit. Modules of PEFT's have a training mode and draw from
    torch's own generator."""
    settings = {
        "arms": METHODS,
        "seeds": [0],
        "analyze": UNANALYZED,
        **changed("evaluate", cross_domain=[]),
    }
    never = {"checkpoint_seconds": 600}
    without = small_study(tmp_path / "without", **settings, **changed("train", **never))
    without.run(tmp_path / "without" / "out")
    watched = small_study(tmp_path / "with", **settings, **curved(**never))
    study = watched.run(tmp_path / "with" / "out")
    assert [trial.status for trial in study.trials] == ["done"] * 5
    for trial in study.trials:
        found = [(point.step, point.task) for point in trial.curve]
        assert sorted(found) == [(step, task) for step in STEPS for task in TASKS]
        assert_last_point_is_the_final_score(study, trial)
    # The weights move between the points: a curve of the base alone would prove nothing.
    assert any(trial.curve[0].score != trial.curve[-1].score for trial in study.trials)
    expected, same = (results(tmp_path / name / "out") for name in ("without", "with"))
    for part in ("trials", "evals", "files", "tasks", "notes"):
        assert same[part] == expected[part]


def test_every_model_is_scored_in_the_studys_dtype(tmp_path: Path) -> None:
    settings = {"seeds": [0], "dtype": "bfloat16", "analyze": UNANALYZED}
    study = small_study(tmp_path, **curved(), **settings).run(tmp_path / "out")
    assert study.trials[-1].spec.method == "full"
    for trial in study.trials:
        assert_last_point_is_the_final_score(study, trial)


def test_curves_asked_for_later_are_those_of_later_trials(tmp_path: Path) -> None:
    arms = SETTINGS["arms"][:1]
    before = small_study(tmp_path, arms=arms, seeds=[0]).run(tmp_path / "out")
    assert stored(before) == {before.trials[0].spec.label: []}
    after = small_study(tmp_path, arms=arms, seeds=[0, 1], **curved()).run(tmp_path / "out")
    old, new = after.trials
    assert old == before.trials[0]
    assert len(new.curve) == len(STEPS) * len(TASKS)
    changed_again = changed("train", evaluate_every=2, evaluate_items=8)
    again = small_study(tmp_path, arms=arms, seeds=[0, 1], **changed_again).run(tmp_path / "out")
    assert again.trials == after.trials
    write_outputs(tmp_path / "out")
    assert "1 run of 2 has no curve" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_the_plan_counts_them(tmp_path: Path) -> None:
    plain = make_plan(small_study(tmp_path).check())
    plan = make_plan(small_study(tmp_path, **curved()).check())
    assert plain.curve_evaluations == 0
    assert plan.curve_evaluations == 6 * 3 * 2  # trials, points, tasks
    assert plan.evaluations == plain.evaluations
    # Each point reads the 16 validation items of 8 tokens, as the score at the end does.
    assert plan.evaluation_tokens - plain.evaluation_tokens == 6 * 3 * 2 * 16 * 8


def test_an_epoch_is_all_rows_once(tmp_path: Path) -> None:
    """Two and a half epochs of ten rows in steps of eight rows: 2, 4 and the last, 5."""
    task = {"name": "pocket_med", "max_train_rows": 10}
    train = changed("train", max_steps=None, epochs=2.5, evaluate_every="epoch")
    inputs = small_study(tmp_path, tasks=[task], **train).check()
    assert {inputs.curve_steps(trial) for trial in inputs.trials} == {(2, 4, 5)}
