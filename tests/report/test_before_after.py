"""Items before and after: a fair choice, a stated budget, and the answers as they were stored."""

import numpy as np
import pytest
from report_studies import study_and_advice, with_results
from synthetic_study import Truth

from rankscope.formatting import NATS, POINTS
from rankscope.records import BASE
from rankscope.report.study_page import Outcome, compared_items, fair_choice, outcome_of
from rankscope.report.study_view import StudyView

KINDS: tuple[Outcome, ...] = ("gained", "lost", "kept", "missed")


def test_ten_are_chosen_in_proportion_and_at_even_steps() -> None:
    """100 items, of which 60, 20, 10 and 10: 6, 2, 1 and 1, each in the middle of its share."""
    outcomes = [*["gained"] * 60, *["lost"] * 20, *["kept"] * 10, *["missed"] * 10]
    assert fair_choice(outcomes) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_every_outcome_is_shown_and_none_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet([0.3] * 4)
    outcomes = [KINDS[k] for k in rng.choice(4, size=int(rng.integers(1, 80)), p=weights)]
    chosen = fair_choice(outcomes)
    assert len(set(chosen)) == len(chosen) == min(10, len(outcomes))
    if len(outcomes) >= 4:
        assert {outcomes[i] for i in chosen} == set(outcomes)
    for kind in KINDS:
        share = 10 * outcomes.count(kind) / len(outcomes)
        # Rounding moves a share by less than one, and making room for rare outcomes by up to three.
        assert sum(outcomes[i] == kind for i in chosen) <= max(1, share + 1) or len(outcomes) < 10


def test_outcomes_by_right_and_wrong_and_by_shown_log_probability() -> None:
    assert [outcome_of(*pair, POINTS) for pair in ((0, 1), (1, 0), (1, 1), (0, 0))] == list(KINDS)
    pairs = ((-2.0, -1.0), (-1.0, -2.0), (-1.0, -1.0004))
    assert [outcome_of(*pair, NATS) for pair in pairs] == ["gained", "lost", "kept"]


def test_every_item_of_the_trained_and_the_retention_task_has_both_answers(view: StudyView) -> None:
    arm = view.focus("med")
    trained, retained = compared_items(view, "med", 10**6)
    assert [trained.tested_on, retained.tested_on] == ["med", "general"]
    trial = next(t for t in view.trials(arm) if t.status == "done")
    before = view.study.results[BASE, "med", "test"]
    after = view.study.results[trial.spec.trial_id, "med", "test"]
    assert [(p.prompt, p.before, p.after) for p in trained.pairs] == [
        (b.prompt.strip(), b.prediction.strip(), a.prediction.strip())  # type: ignore[union-attr]
        for b, a in zip(before, after, strict=True)
    ]
    gained = sum(b.score < a.score for b, a in zip(before, after, strict=True))
    assert f"{gained} gained (wrong before, right after)" in trained.note
    assert f"{arm.label}, seed {trial.spec.seed}" in trained.note
    assert len(trained.shown) == 10
    assert "left out" not in trained.note


def test_what_does_not_fit_is_left_out_at_even_steps_and_said(view: StudyView) -> None:
    whole, _ = compared_items(view, "med", 10**6)
    part, _ = compared_items(view, "med", 4000)
    assert 10 < len(part.pairs) < len(whole.pairs)
    places = [whole.pairs.index(pair) for pair in part.pairs]
    assert set(np.diff(places)) <= {1, 2}
    size = sum(len(p.prompt) + len(p.gold) + len(p.before) + len(p.after) for p in part.pairs)
    assert size <= 2000
    assert f"covers {len(part.pairs)} of the items" in part.note
    assert compared_items(view, "med", 0)[0].pairs == ()


def test_without_stored_texts_there_is_nothing_to_compare() -> None:
    study, advice = study_and_advice(Truth(num_items=20))
    assert compared_items(StudyView(study, advice), "med", 10**6) == []
    study, advice = study_and_advice(Truth(num_items=20, metric="log_probability"))
    (trained, *_) = compared_items(StudyView(with_results(study), advice), "med", 10**6)
    assert all(pair.before.startswith("wrong") for pair in trained.pairs)
