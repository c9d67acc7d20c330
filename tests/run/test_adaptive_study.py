"""Adaptive studies on the pocket model: what they stop; nothing else differs from a grid."""

import re
import shutil
import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from command_line import rankscope
from pocket_study import (
    ROUNDING,
    changed,
    leftovers,
    results,
    run_interrupted,
    small_study,
    study_file,
)

from rankscope.advise.adaptive import finalists
from rankscope.advise.arms import Arm, summarize_arms
from rankscope.cli.render.plan import totals
from rankscope.errors import Interrupted
from rankscope.formatting import count
from rankscope.progress import LOG, ProgressReporter, logged_notes
from rankscope.records import BASE, OVER_BUDGET, StudyRecords, TrialRecords
from rankscope.run.adaptive import expected_shares
from rankscope.run.outputs import write_outputs
from rankscope.run.prepared import first_trials
from rankscope.run.workers.worker import work
from rankscope.store import find_problems

GRID: dict[str, Any] = {
    "arms": [
        {"method": "lora", "rank": 2, "lr": [5e-1, 2e-2]},
        {"method": "lora", "rank": 4, "lr": 2e-2},
    ],
    "seeds": [0, 1],
    "analyze": {"spectra": {"enabled": False}},
    **changed("train", max_steps=8, evaluate_items=48),
    **changed("evaluate", max_items=48, cross_domain=[]),
}
ADAPTIVE = GRID | {"strategy": "adaptive", "rungs": [0.5], "budget": "4 trials"}
# With a margin so small no answer of few items is ever sure: further seeds are trained.
ADAPTIVE |= {"objective": {"margin": 0.001}, "until": 0.999}
FIRST, DECLARED = 3, 6


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adaptive")
    small_study(folder, **ADAPTIVE).run(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> StudyRecords:
    folder = tmp_path_factory.mktemp("grid")
    return small_study(folder, **GRID).run(folder / "out")


class InThisProcess:
    """Runs each unit as soon as it is submitted."""

    name, num_local, runs_elsewhere, units = "here", 1, False, 0

    def submit(self, folder: Path) -> Future[None]:
        future: Future[None] = Future()
        self.units += 1
        work(folder.parents[1], folder.name)
        future.set_result(None)
        return future

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Steps(ProgressReporter):
    """Optimizer steps of groups whose stage has a name. Presses Ctrl-C after one of them."""

    def __init__(self, name: str, stop_at: int = 0) -> None:
        self.name, self.stop_at = name, stop_at
        self.counts = False
        self.steps: list[int] = []

    def stage(self, name: str, total: int) -> None:
        self.counts = " train " in name and self.name in name

    def advance(self, done: int, detail: str = "", **values: float | None) -> None:
        if self.counts and not detail.startswith("scoring"):
            self.steps.append(done)
            if done == self.stop_at:
                signal.raise_signal(signal.SIGINT)


def of_status(study: StudyRecords, status: str) -> list[TrialRecords]:
    return [trial for trial in study.trials if trial.status == status]


def test_a_stopped_trial_has_no_result_and_is_no_failure(adaptive: Path) -> None:
    study, recommendation = write_outputs(adaptive)
    (advice,) = recommendation.advice
    stopped, done, skipped = (of_status(study, s) for s in ("stopped", "done", "skipped"))
    assert len(stopped) + len(done) + len(skipped) == DECLARED
    assert len(stopped) >= 1
    assert FIRST < len(stopped) + len(done) <= 4
    scored = {key[0] for key in study.evals}
    for trial in stopped:
        assert (trial.stop.train.steps, trial.stop.num_steps) == (4, 8)
        assert trial.stop.rival != trial.spec.arm_label
        assert trial.train is None
        assert trial.spec.trial_id not in scored
    tested = {key[0] for key in study.evals if key[2] == "test"} - {BASE}
    assert {arm.label for arm in advice.arms if arm.score is not None} == {
        trial.spec.arm_label for trial in done if trial.spec.trial_id in tested
    }
    assert sum(arm.failed for arm in advice.arms) == 0
    (check,) = [c for c in advice.checks if c.name == "trials"]
    assert f"{len(stopped) + len(skipped)} of 6 trials stopped or not begun" in check.value
    over_budget = [t for t in skipped if t.failure == OVER_BUDGET]
    never = count(len(over_budget), "trial")
    assert f"{never} that the answer asks for never began." in check.text
    assert check.value.startswith("budget spent")
    assert any(f"(4 trials) for {never} more" in step.text for step in advice.next_steps)
    # Every trial has eight steps of as many rows, up to the length of its seed's.
    steps = sum(t.training.steps for t in study.trials if t.training is not None)
    share = int(re.search(r"trained on (\d+) %", check.value)[1])
    assert share == pytest.approx(100 * steps / (8 * DECLARED), abs=1.5)
    page = (adaptive / "report.html").read_text(encoding="utf-8")
    assert all(trial.spec.label in page for trial in stopped)


def test_an_arm_that_test_items_put_first_is_scored_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was no finalist by validation items; and the run is stopped between two of its scores."""
    best: list[str] = []

    def first_by_test_items(study: StudyRecords, task: str) -> tuple[Arm, ...]:
        best.append(finalists(study, task)[0].summary.label)
        is_tested = any(model != BASE and split == "test" for model, _, split in study.items)
        arms = [arm for arm in summarize_arms(study)[task] if arm.finished]
        return tuple(arm for arm in arms if (arm.summary.label == best[0]) == is_tested)

    class User(ProgressReporter):
        stages = 0

        def stage(self, name: str, total: int) -> None:
            self.stages += name.startswith("finalists") and name.endswith("evaluate")

        def advance(self, done: int, detail: str = "", **values: float | None) -> None:
            if self.stages == 2 and done == 0:  # of the other arm
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("rankscope.run.adaptive.finalists", first_by_test_items)
    wide = ADAPTIVE | {"objective": {"margin": 0.9}}  # so that both ranks train to their end
    study, user = small_study(tmp_path, **wide), User()
    with pytest.raises(Interrupted, match="everything finished is stored"):
        study.run(tmp_path / "out", user)
    found = study.run(tmp_path / "out")
    (arm,) = [a for a in summarize_arms(found)["pocket_med"] if a.summary.label == best[0]]
    assert arm.summary.score is not None
    prepared = study.check()
    for trial in arm.finished:
        wanted = prepared.wanted_evals(trial.spec.trial_id, "pocket_med")
        assert {*wanted} <= found.evals.keys()


def test_a_study_that_only_stopped_trials_ends_well(adaptive: Path, tmp_path: Path) -> None:
    shutil.copytree(adaptive, tmp_path / "out")
    outcome = rankscope("run", study_file(tmp_path, **ADAPTIVE), "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert results(tmp_path / "out") == results(adaptive)  # nothing was left to do
    status = rankscope("status", adaptive)
    assert " stopped" in status.told
    assert "next: rankscope report" in status.told


def test_trials_train_as_in_the_grid(adaptive: Path, grid: StudyRecords) -> None:
    """A stopped one as far as it went, the others to their last score."""
    study, _ = write_outputs(adaptive)
    whole = {trial.spec: trial for trial in grid.trials}
    for trial in study.trials:
        if trial.training is not None:
            train, other = trial.training, whole[trial.spec].train
            found = [point.loss for point in train.losses]
            expected = [point.loss for point in other.losses[: len(found)]]
            assert found == pytest.approx(expected, rel=ROUNDING)
    for key, record in study.evals.items():
        assert record.metrics == pytest.approx(grid.evals[key].metrics, rel=ROUNDING)


def test_a_rung_judges_by_its_points(tmp_path: Path) -> None:
    """Forgetting without a weight, gains in nats. A rate that ruins the model stops after step 4
    of 8."""
    rates = [1e-7, 5e-1]
    study = small_study(
        tmp_path,
        **ADAPTIVE
        | {"tasks": [{"name": "pocket_med", "scorer": "loss"}]}
        | {"arms": [{"method": "lora", "rank": 2, "lr": rates}], "seeds": [0]}
        | {"budget": None, "objective": {"retention": 0}},
    ).run(tmp_path / "out")
    gains = {
        trial.spec.lr: point.score
        for trial in study.trials
        for point in trial.curve
        if (point.task, point.step) == ("pocket_med", 4)
    }
    (stop,) = [trial.stop for trial in study.trials if trial.stop]
    assert (stop.train.steps, stop.rival) == (4, "r=2 lr=1e-07")
    assert stop.difference == pytest.approx(gains[5e-1] - gains[1e-7], rel=1e-4)


def test_interrupted_over_and_over_it_stops_the_same_trials(adaptive: Path, tmp_path: Path) -> None:
    user = run_interrupted(small_study(tmp_path, **ADAPTIVE), tmp_path / "out", every=8)
    assert user.stops > 3
    assert results(tmp_path / "out") == results(adaptive)
    assert leftovers(tmp_path / "out") == []


def test_units_of_an_executor_stop_the_same_trials(adaptive: Path, tmp_path: Path) -> None:
    executor = InThisProcess()
    small_study(tmp_path, **ADAPTIVE).run(tmp_path / "out", executor=executor)
    assert executor.units > 2 * 2  # two groups in two rounds, and later seeds
    assert results(tmp_path / "out") == results(adaptive)
    assert leftovers(tmp_path / "out") == []
    assert find_problems(tmp_path / "out") == []


def test_a_grid_takes_up_what_was_left_out(adaptive: Path, tmp_path: Path) -> None:
    shutil.copytree(adaptive, tmp_path / "out")
    one_seed = GRID | {"seeds": [0]}
    study = small_study(tmp_path, **one_seed).run(tmp_path / "out")
    assert [(trial.status, trial.stop) for trial in study.trials] == [("done", None)] * FIRST
    assert {trial.spec.trial_id for trial in study.trials} <= {k[0] for k in study.evals}


def test_a_grid_that_was_killed_goes_on_as_adaptive(adaptive: Path, tmp_path: Path) -> None:
    """Its points have no items, and its checkpoint is past the rung: both are made again."""
    curves = changed("train", max_steps=8, evaluate_items=48, evaluate_every=4)
    one_seed = GRID | curves | {"seeds": [0], "objective": ADAPTIVE["objective"]}
    with pytest.raises(Interrupted, match="after step 6 of 8"):
        small_study(tmp_path, **one_seed).run(tmp_path / "out", Steps("group 1", stop_at=6))
    changes = {"strategy": "adaptive", "rungs": [0.5]}
    study = small_study(tmp_path, **one_seed, **changes).run(tmp_path / "out")
    whole, _ = write_outputs(adaptive)
    found = {t.spec: t.stop and t.stop.text for t in study.trials}
    assert found == {t.spec: t.stop and t.stop.text for t in whole.trials if t.spec.seed == 0}
    (note,) = [note for note in logged_notes(tmp_path / "out" / LOG) if "past the rung" in note]
    assert "found a checkpoint of step 6, past the rung at step 4" in note


def test_a_kill_while_further_seeds_train_keeps_their_checkpoints(tmp_path: Path) -> None:
    study, resumed = small_study(tmp_path, **ADAPTIVE), Steps("further seeds")
    with pytest.raises(Interrupted, match="after step 6 of 8"):
        study.run(tmp_path / "out", Steps("further seeds", stop_at=6))
    study.run(tmp_path / "out", resumed)
    assert resumed.steps == [7, 8]


def test_a_budget_begins_whole_trials_in_the_order_of_the_file(tmp_path: Path) -> None:
    prepared = small_study(tmp_path, **ADAPTIVE).check()
    first = [trial for trial in prepared.trials if trial.seed == 0]
    assert first_trials(prepared) == first
    short = changed("train", max_steps=4)
    by_default = small_study(tmp_path, **{**ADAPTIVE, "rungs": None, **short}).check()
    assert by_default.rung_steps(first[0]) == (1, 2)
    cost = prepared.training_tokens(first[0])
    for budget, kept in (("2 trials", 2), (f"{3 * cost - 1} tokens", 2)):
        few = small_study(tmp_path, **{**ADAPTIVE, "budget": budget}).check()
        assert first_trials(few) == first[:kept]


def test_a_plan_expects_no_more_than_the_budget_pays_for(tmp_path: Path) -> None:
    """One rate of two goes on after half of its steps, and one arm gets its second seed; of two
    trials, none does and no third arm begins."""
    shares = []
    for budget in (None, "4 trials", "2 trials"):
        study = small_study(tmp_path, **{**ADAPTIVE, "budget": budget})
        shares.append(list(expected_shares(study.check()).values()))
    assert [sum(of_budget) for of_budget in shares] == pytest.approx([2.5 + 1, 2.5 + 1, 1.5])
    told = rankscope("plan", study_file(tmp_path, **ADAPTIVE)).told
    assert "Budget: 4 trials." in told


def test_hours_that_first_seeds_exceed_are_named_beforehand(tmp_path: Path) -> None:
    """Hours end further seeds alone, so a plan ends no earlier than its first seeds."""
    plans = {
        budget: small_study(tmp_path, **{**ADAPTIVE, "budget": budget}).plan(device="h100")
        for budget in (None, "0.001 hours", "99 hours")
    }
    free, tight, ample = plans.values()
    assert free.first_seconds < free.expected_seconds
    assert tight.expected_seconds == tight.first_seconds == free.first_seconds
    assert tight.expected_tokens < free.expected_tokens
    assert (ample.expected_seconds, ample.expected_tokens) == (
        free.expected_seconds,
        free.expected_tokens,
    )
    told = {budget: " ".join(totals(plan)) for budget, plan in plans.items()}
    assert "Budget: 0.001 hours. MORE THAN THAT: the first seeds alone take" in told["0.001 hours"]
    assert "MORE THAN THAT" not in told["99 hours"] + told[None]
    between = (free.first_seconds + free.expected_seconds) / 2
    half = {**ADAPTIVE, "budget": f"{between / 3600:.12f} hours"}
    found = small_study(tmp_path, **half).plan(device="h100")
    assert found.expected_seconds == pytest.approx(between, rel=1e-6)
    (note,) = [n for n in found.notes if n.startswith("budget: ")]
    assert "no further seed begins, but the first seeds of all" in note
