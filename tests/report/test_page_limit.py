"""A page of many arms: which are shown, that it says so, and that its size does not grow."""

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from synthetic_study import Truth, synthetic_study

from fault_scale import store
from rankscope.advise.recommend import recommend
from rankscope.records import FAILED, Recommendation, StudyRecords
from rankscope.report import page_limit
from rankscope.report.page_limit import limited
from rankscope.report.study_page import render_study
from rankscope.report.study_view import StudyView
from rankscope.run.outputs import write_outputs


def many(ranks: int) -> StudyRecords:
    """Two tasks, arms at as many ranks and two rates, and full fine-tuning; some trials failed."""
    truth = Truth(
        tasks=("med", "law"), ranks=tuple(2 + i for i in range(ranks)), lrs=(1e-3, 2e-3),
        seeds=(0,), num_items=30, failed={(2, 1e-3, 0): "diverged", (3, 1e-3, 0): "failed"},
    )  # fmt: skip
    return synthetic_study(truth)


@pytest.fixture(scope="module")
def view() -> Iterator[StudyView]:
    """Of 22 arms, with room for 12 on a page and for one failed trial."""
    study = many(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_limit, "MAX_PAGE_ARMS", 12)
        patch.setattr("rankscope.report.study_page.MAX_FAILED", 1)
        yield StudyView(study, recommend(study))


def test_arms_that_the_answer_names_stay_and_then_the_best(view: StudyView) -> None:
    shown = limited(view)
    for whole, advice in zip(view.recommendation.advice, shown.recommendation.advice, strict=True):
        labels = [arm.label for arm in advice.arms]
        assert len(labels) == 6
        assert advice.arms_left_out == len(whole.arms) - 6
        in_order = [arm.label for arm in whole.arms if arm.label in labels]
        assert labels == in_order
        named = {row.arm.label for row in whole.rows} | {whole.subject_label}
        assert named <= {*labels, None}
        gains = {arm.label: arm.expected.net.value if arm.expected else -inf for arm in whole.arms}
        least = min((gains[label] for label in labels if label not in named), default=inf)
        assert all(gains[label] <= least for label in gains.keys() - set(labels))
        for pair in advice.comparisons:
            assert {pair.first_label, pair.second_label} <= set(labels)
    trials = {trial.spec.trial_id for trial in shown.study.trials}
    assert {key[0] for key in shown.study.evals} <= {"base", *trials}
    assert limited(shown).study is shown.study  # it fits


def test_a_page_says_what_it_leaves_out_and_counts_all(view: StudyView) -> None:
    page = render_study(view)
    assert "12 of 22 configurations are shown" in page
    assert f"{len(view.study.trials)} runs" in page
    failed = sum(trial.status in FAILED for trial in view.study.trials)
    assert failed == 4
    assert "4 of 22 runs ended without a result" in page
    assert "The first 1 are listed." in page
    whole = replace(view.study, trials=view.study.trials[:0])
    assert "configurations are shown" not in render_study(StudyView(whole, recommend(whole)))


def test_the_stored_answer_holds_the_arms_of_the_page(view: StudyView, tmp_path: Path) -> None:
    store(view.study, tmp_path)
    study, recommendation = write_outputs(tmp_path)
    assert sum(len(advice.arms) for advice in recommendation.advice) == 22
    stored = (tmp_path / "recommendation.json").read_text("utf-8")
    shown = limited(StudyView(study, recommendation)).recommendation
    assert Recommendation.model_validate_json(stored) == shown


def test_twice_the_arms_make_no_larger_page(view: StudyView) -> None:
    more = many(10)
    size, larger = (len(render_study(v)) for v in (view, StudyView(more, recommend(more))))
    assert larger < 1.1 * size
