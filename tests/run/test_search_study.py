"""Searches on the pocket model: the same rounds and answer in one go, by workers, and after kills;
what they spend, and what they train beyond their lists."""

import shutil
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from command_line import rankscope
from pocket_study import (
    UNANALYZED,
    changed,
    leftovers,
    loaded,
    results,
    run_interrupted,
    small_study,
    study_file,
)

from rankscope.advise.recommend import recommend
from rankscope.progress import LOG, ProgressReporter, logged
from rankscope.records import BASE, OVER_BUDGET, StudyRecords, TrainRecord, TrialRecords
from rankscope.report.study_view import StudyView
from rankscope.report.tables import rounds_table
from rankscope.run.outputs import write_outputs
from rankscope.run.workers.worker import work
from rankscope.store import Ledger, find_problems

LORA = {"method": "lora", "rank": [2, 4], "lr": [5e-3, 1e-2]}
SEARCH: dict[str, Any] = {
    "strategy": "search",
    "budget": "14 trials",
    "tasks": [{"name": "pocket_med", "scorer": "loss"}],
    "arms": [LORA, {"method": "full", "lr": 2e-4}],
    "max_group_size": 8,
    "analyze": UNANALYZED,
    # With a margin so small no answer of few items is ever sure: round follows on round.
    "objective": {"margin": 0.001},
    **changed("train", gradient_accumulation=1),
    **changed("evaluate", max_items=24, retention=[], cross_domain=[]),
}
RATES = [5e-4, 1e-3]
NARROW = SEARCH | {
    "budget": "4 trials",
    "arms": [{"method": "lora", "rank": 4, "lr": RATES}],
    "seeds": [0],
    "max_group_size": 1,
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    small_study(folder, **SEARCH).run(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search whose rates are too low: the best is the highest one."""
    folder = tmp_path_factory.mktemp("narrow")
    small_study(folder, **NARROW).run(folder / "out")
    return folder / "out"


class InThisProcess:
    """Two workers, of which each begins its unit as soon as it is submitted."""

    name, num_local, runs_elsewhere, units = "here", 2, False, 0

    def submit(self, folder: Path) -> Future[None]:
        future: Future[None] = Future()
        self.units += 1
        work(folder.parents[1], folder.name)
        future.set_result(None)
        return future

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Killed(Exception):
    pass


class Killer(ProgressReporter):
    """Kills the run at the first note or stage that begins with a text."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def note(self, text: str) -> None:
        if text.startswith(self.moment):
            raise Killed

    def stage(self, name: str, total: int) -> None:
        self.note(name)


def begun(study: StudyRecords) -> list[TrialRecords]:
    return [trial for trial in study.trials if trial.status not in ("planned", "skipped")]


def trained(study: StudyRecords) -> dict[str, TrainRecord]:
    """By trial, its training with the seconds that it took: other ones if it trained again."""
    return {t.spec.trial_id: t.train for t in study.trials if t.train is not None}


def course_of(study: StudyRecords) -> tuple[object, ...]:
    """What a search decided and came to, but for rounding: groups may be others."""
    (advice,) = recommend(study).advice
    return (
        [(of.number, of.labels, of.leader) for of in study.rounds],
        [(trial.spec, trial.status, trial.failure) for trial in study.trials],
        (advice.decision, advice.confidence, [step.text for step in advice.next_steps]),
    )


def rates_of(trials: Sequence[TrialRecords]) -> list[float]:
    return sorted(trial.spec.lr for trial in trials)


# --- the same study


def assert_alike(out: Path, other: Path) -> None:
    """Both searches came to the same, and nothing is left over."""
    assert results(out) == results(other)
    assert leftovers(out) == []
    assert find_problems(out) == []


def test_the_answer_of_a_search_names_arms_with_test_scores(searched: Path) -> None:
    """Two ranks and full fine-tuning at the least, though not all."""
    study = loaded(searched)
    arms = {
        t.spec.arm: (t.spec.trial_id, "pocket_med", "test") in study.evals for t in begun(study)
    }
    tested = [t.spec for t in begun(study) if arms[t.spec.arm]]
    assert {spec.rank for spec in tested} == {2, 4, None}
    assert not all(arms.values())
    (note,) = [e["text"] for e in logged(searched / LOG, "note") if "search: " in e["text"][:8]]
    assert note.startswith("search: at most 14 trials; the lists have 10 trials")
    write_outputs(searched)
    page = (searched / "report.html").read_text("utf-8")
    assert all(label in page for of in study.rounds for label in of.labels)


def test_two_workers_come_to_the_same(narrow: Path, tmp_path: Path) -> None:
    executor = InThisProcess()
    small_study(tmp_path, **NARROW).run(tmp_path / "out", executor=executor)
    assert executor.units >= 1 + 2 + 1 + 1 + 1  # Base, first design, two rounds, finalist
    assert_alike(tmp_path / "out", narrow)


def test_stopped_over_and_over_it_comes_to_the_same(narrow: Path, tmp_path: Path) -> None:
    user = run_interrupted(small_study(tmp_path, **NARROW), tmp_path / "out", every=9)
    assert user.stops > 3
    assert_alike(tmp_path / "out", narrow)


def test_killed_at_any_moment_it_comes_to_the_same(narrow: Path, tmp_path: Path) -> None:
    study = small_study(tmp_path, **NARROW)
    for moment in (
        "search: ",  # Before the first design is stored
        "round 1: ",  # When it is decided, and nothing of it is trained
        "round 2, group 4/4 pocket_med train",
        "finalists, group 1/",
    ):
        with pytest.raises(Killed):
            study.run(tmp_path / "out", Killer(moment))
    study.run(tmp_path / "out")
    assert_alike(tmp_path / "out", narrow)


def test_a_larger_budget_goes_on_as_if_it_had_been_there_at_once(
    searched: Path, tmp_path: Path
) -> None:
    """Budgets that cut the first design, and a round; each trial is trained once."""
    out, before = tmp_path / "out", dict[str, TrainRecord]()
    prepared = small_study(tmp_path, **SEARCH).check()
    cost = prepared.training_tokens(prepared.first[0])
    for budget, most in ((f"{3 * cost - 1} tokens", 2), ("6 trials", 6), ("14 trials", 14)):
        study = small_study(tmp_path, **SEARCH | {"budget": budget}).run(out)
        found = trained(study)
        assert found.items() >= before.items()
        assert len(found) == len(begun(study)) <= most
        if most < 14:
            assert len(found) == most
            assert_budget_is_spent(study)
        before = found
    assert course_of(study) == course_of(loaded(searched))
    # Those that were finalists before have test scores, too.
    assert study.evals.keys() >= loaded(searched).evals.keys()


def assert_budget_is_spent(study: StudyRecords) -> None:
    left = [trial for trial in study.trials if trial.status == "skipped"]
    assert {trial.failure for trial in left} == {OVER_BUDGET, "not needed for the answer"}
    recommendation = recommend(study)
    (check,) = [c for c in recommendation.advice[0].checks if c.name == "trials"]
    assert check.value.startswith(f"budget spent, {len(left)} of {len(study.trials)} runs not")
    shown = rounds_table(StudyView(study, recommendation))["trained"]
    assert sum(labels.count("seed=") for labels in shown) == len(begun(study))


# --- what it trains


def test_the_first_design_is_a_cross_and_full_fine_tuning(tmp_path: Path) -> None:
    arms = [LORA | {"rank": [2, 4, 8], "lr": [1e-3, 2e-3, 4e-3]}, {"method": "full", "lr": 2e-4}]
    tasks = ["pocket_med", "pocket_gsm"]
    study = small_study(tmp_path, **SEARCH | {"arms": arms, "tasks": tasks, "budget": None}).check()
    cross = [(4, 2e-3), (None, 2e-4), (8, 2e-3), (2, 2e-3), (4, 4e-3), (4, 1e-3)]
    found = [(t.rank, t.lr, t.seed, t.task) for t in study.first]
    assert found == [(*arm, 0, task) for arm in cross for task in tasks]
    # A quarter of 2 x 20 trials is 10; two rounds after the first design of each task are more.
    assert study.search_budget.trials == 24
    told = rankscope("plan", study_file(tmp_path, **SEARCH)).told
    assert "The search spends at most 14 trials, on these" in told


def test_rates_and_ranks_beyond_the_ends_of_the_lists(tmp_path: Path) -> None:
    def beyond(**changes: Any) -> set[tuple[int | None, float]]:
        study = small_study(tmp_path, **SEARCH | {"seeds": [0]} | changes).check()
        return {(trial.rank, trial.lr) for trial in study.beyond}

    rates = [6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2]
    ranks = [1, 2, 4, 8, 16, 32]
    wide = {*product(ranks, rates)} - {*product([2, 4], [5e-3, 1e-2])}
    assert beyond(arms=[LORA]) == wide
    full = [{"method": "full", "lr": 2e-4}]
    assert beyond(arms=full) == {(None, 2e-4 * f) for f in (2, 4, 8, 1 / 2, 1 / 4, 1 / 8)}
    # One rank was chosen; and none is above the hidden size, 128.
    assert {rank for rank, _ in beyond(arms=[LORA | {"rank": 4}])} == {4}
    assert {rank for rank, _ in beyond(arms=[LORA | {"rank": [32, 64]}])} == {4, 8, 16, 32, 64, 128}
    assert beyond(strategy="grid", budget=None) == set()


def test_the_best_at_the_end_of_its_rates_has_the_next_one_trained(
    narrow: Path, tmp_path: Path
) -> None:
    study = loaded(narrow)
    assert rates_of(study.trials[:2]) == RATES
    assert rates_of(begun(study)) == [5e-4, 1e-3, 2e-3, 4e-3]
    assert [of.leader for of in study.rounds] == ["", "r=4 lr=0.001", "r=4 lr=0.002"]
    shutil.copytree(narrow, tmp_path / "out")
    small_study(tmp_path, **NARROW).run(tmp_path / "out")
    assert results(tmp_path / "out") == results(narrow)  # nothing was left to do
    outcome = rankscope("status", tmp_path / "out")
    assert "next: rankscope report" in outcome.told


def test_a_grid_takes_over_the_trials_of_its_lists_and_trains_the_rest(
    narrow: Path, tmp_path: Path
) -> None:
    shutil.copytree(narrow, tmp_path / "out")
    grid = NARROW | {"strategy": "grid", "budget": None, "seeds": [0, 1]}
    before, study = trained(loaded(narrow)), small_study(tmp_path, **grid).run(tmp_path / "out")
    assert [(trial.spec.lr, trial.status) for trial in study.trials] == [
        (lr, "done") for lr in RATES for _ in range(2)
    ]
    for trial in study.trials:
        if trial.spec.trial_id in before:
            assert trial.train == before[trial.spec.trial_id]
        assert (trial.spec.trial_id, "pocket_med", "test") in study.evals
    # The search again: its extra trials were kept.
    again = small_study(tmp_path, **NARROW).run(tmp_path / "out")
    assert trained(again).items() >= before.items()
    assert course_of(again) == course_of(loaded(narrow))


def test_a_grid_that_was_killed_goes_on_as_a_search(tmp_path: Path) -> None:
    """The third rate of four is not in the cross, and had been trained when the kill came."""
    arms = [{"method": "lora", "rank": 4, "lr": [1e-3, 5e-4, 2e-4, 1e-4]}]
    grid = NARROW | {"arms": arms, "strategy": "grid", "budget": None}
    with pytest.raises(Killed):
        small_study(tmp_path, **grid).run(tmp_path / "out", Killer("group 3/4 pocket_med evaluate"))
    search = NARROW | {"arms": arms, "budget": "4 trials"}
    study = small_study(tmp_path, **search).run(tmp_path / "out")
    assert rates_of(begun(study)) == [1e-4, 2e-4, 5e-4, 1e-3]
    assert all((t.spec.trial_id, "pocket_med", "validation") in study.evals for t in begun(study))


def test_longer_lists_begin_with_what_their_cross_lacks(narrow: Path, tmp_path: Path) -> None:
    shutil.copytree(narrow, tmp_path / "out")
    longer = NARROW | {"arms": [*NARROW["arms"], {"method": "full", "lr": 1e-4}]}
    study = small_study(tmp_path, **longer | {"budget": "5 trials"}).run(tmp_path / "out")
    (full,) = [trial for trial in study.trials if trial.spec.is_full and trial.status == "done"]
    assert study.rounds[3].trial_ids == (full.spec.trial_id,)
    assert len(begun(study)) == 5


@pytest.mark.parametrize("rates", [[1e4, 1e5], [1e38]])
def test_where_every_arm_diverges_lower_rates_are_tried(rates: list[float], tmp_path: Path) -> None:
    arms = [{"method": "lora", "rank": 4, "lr": rates}]
    changes = SEARCH | {"arms": arms, "seeds": [0], "budget": "3 trials"}
    study = small_study(tmp_path, **changes).run(tmp_path / "out")
    assert {trial.status for trial in begun(study)} == {"diverged"}
    lower = [min(rates) / 2, min(rates) / 4]
    assert rates_of(begun(study)) == sorted([*rates, *lower])[-3:]
    _, recommendation = write_outputs(tmp_path / "out")
    (advice,) = recommendation.advice
    assert (advice.chosen, advice.confidence) == (None, "none")


# --- time


def test_no_trial_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    """The clock is the study's: it has the hours that other runs took."""
    timed, out = NARROW | {"budget": "1 hour"}, tmp_path / "out"
    with pytest.raises(Killed):
        small_study(tmp_path, **timed).run(out, Killer("round 1: "), anyway=True)
    assert len(begun(loaded(out))) == 2
    with Ledger.open(out, write=True) as ledger:
        ledger.add_seconds(3600 - 0.09 * 3600)  # a tenth is held back
    study = small_study(tmp_path, **timed).run(out)
    assert {t.status: t.failure for t in study.trials} == {"done": None, "skipped": OVER_BUDGET}
    assert rates_of(begun(study)) == RATES
    assert any(split == "test" for model, _, split in study.evals if model != BASE)
    outcome = rankscope("report", out)
    assert "budget spent" in outcome.told
    study = small_study(tmp_path, **timed | {"budget": "2 hours"}).run(out)
    assert len(begun(study)) > 2


def test_minutes_that_are_too_few_for_one_trial_train_none(tmp_path: Path) -> None:
    file, out = study_file(tmp_path, **NARROW), tmp_path / "out"
    outcome = rankscope("run", file, "--out", out, "--minutes", "0.001", "--anyway")
    assert outcome.code == 0, outcome.told
    study = loaded(out)
    assert begun(study) == []
    assert study.rounds[0].seconds > 0.06  # The base alone took longer
    assert {trial.failure for trial in study.trials} == {OVER_BUDGET}
    assert (BASE, "pocket_med", "validation") in study.evals
    assert leftovers(out) == []
