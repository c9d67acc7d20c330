"""Learning and retention by step: what the records say, and nothing if they say nothing."""

import json
from dataclasses import replace

import pytest
from report_studies import CURVES, ordinary_study, study_and_advice
from synthetic_study import Truth, with_tasks, with_trials

from rankscope.records import BASE, TrialRecords
from rankscope.report.figures import learning_curve
from rankscope.report.figures.learning_curve import _curve_of as curve_of
from rankscope.report.page import figure_data
from rankscope.report.study_view import StudyView


@pytest.fixture(scope="module")
def view() -> StudyView:
    return StudyView(*study_and_advice(CURVES))


def test_a_study_without_curves_has_no_such_figure() -> None:
    assert learning_curve.draw_learning_curve(StudyView(*ordinary_study()), "med") is None


def test_a_curve_is_gain_and_retention_against_the_base_on_the_same_items(view: StudyView) -> None:
    """The simulated curve goes straight from the base to the truth: a quarter of it at step 10."""
    arm = next(a for a in view.arms("med") if a.rank == 8)
    gain = CURVES.accuracy(8, arm.lr) - CURVES.base_accuracy
    fall = CURVES.forgetting(8, arm.lr)
    found = curve_of(view, arm)
    assert [(p.step, p.seeds, p.items) for p in found] == [(s, 3, 20) for s in (5, 10, 20, 40)]
    assert [p.gain for p in found] == pytest.approx([gain * p.step / 40 for p in found])
    assert [p.retention for p in found] == pytest.approx([-fall * p.step / 40 for p in found])


def test_without_retention_a_curve_is_drawn_against_steps_which_json_can_hold() -> None:
    view = StudyView(*study_and_advice(replace(CURVES, retention=())))
    data = json.dumps(figure_data(learning_curve.draw_learning_curve(view, "med")))
    assert '"optimizer step"' in data


def test_every_arm_is_a_line_from_the_base_on_in_its_own_color(view: StudyView) -> None:
    figure = learning_curve.draw_learning_curve(view, "med")
    lines = {
        trace.hovertext[1].split("<b>")[1].split("</b>")[0]: trace
        for trace in figure.plot.data
        if trace.mode == "lines+markers"
    }
    assert set(lines) == {arm.label for arm in view.arms("med")}
    for arm in view.arms("med"):
        spots = curve_of(view, arm)
        assert list(lines[arm.label].x) == pytest.approx([0, *(100 * p.gain for p in spots)])
        kept = [0, *(100 * (p.retention or 0) for p in spots)]
        assert list(lines[arm.label].y) == pytest.approx(kept)
        assert lines[arm.label].line.color == view.color(arm).light
        told = lines[arm.label].hovertext[1:]
        assert all(f"step {p.step}<br>" in text for p, text in zip(spots, told, strict=True))
    assert len(figure.data) == sum(len(curve_of(view, a)) for a in view.arms("med"))


def test_choices_show_whole_lines_with_the_base_and_their_names(view: StudyView) -> None:
    figure = learning_curve.draw_learning_curve(view, "med")
    names = [i for i, trace in enumerate(figure.plot.data) if trace.mode == "markers+text"]
    arms = view.focus_arms("med"), view.arms("med")
    for choice, drawn, texts in zip(figure.choices, arms, names, strict=True):
        assert [i for i in choice.traces if i in names] == [texts]
        assert len(choice.traces) == len(drawn) + 2


def test_a_failed_trial_counts_as_far_as_it_came(view: StudyView) -> None:
    """ORDINARY's r=32 lr=0.003 lost one of three seeds at step 7."""
    arm = next(a for a in view.arms("med") if a.rank == 32 and a.lr == 3e-3)
    assert {p.step: p.seeds for p in curve_of(view, arm)} == {5: 3, 10: 2, 20: 2, 40: 2}


def test_trials_without_a_curve_are_counted() -> None:
    study, advice = study_and_advice(CURVES)
    study = with_trials(study, lambda t: replace(t, curve=()) if t.spec.seed == 2 else t)
    figure = learning_curve.draw_learning_curve(StudyView(study, advice), "med")
    assert figure.finding.endswith(" 7 runs of 21 have no curve.")


def test_without_a_retention_task_the_gain_is_drawn_against_the_step() -> None:
    truth = Truth(retention=(), curve_steps=(20, 40), num_items=40)
    view = StudyView(*study_and_advice(truth))
    figure = learning_curve.draw_learning_curve(view, "med")
    lines = [trace for trace in figure.plot.data if trace.mode == "lines+markers"]
    assert [list(line.x) for line in lines] == [[0, 20, 40]] * len(view.arms("med"))
    assert "retention" not in figure.finding


def test_points_on_more_items_than_the_base_has_are_left_out() -> None:
    truth = Truth(num_items=10, curve_steps=(40,), curve_items=20)
    assert learning_curve.draw_learning_curve(StudyView(*study_and_advice(truth)), "med") is None


def test_retention_is_the_mean_over_tasks_of_either_unit() -> None:
    """As in the advice: one point counts as much as 0.01 nats."""
    truth = Truth(retention=("general", "text"), curve_steps=(40,), num_items=40)
    study, advice = study_and_advice(truth)
    study = with_tasks(study, text={"score_unit": "log_probability"})

    base = study.items[BASE, "text", "validation"].scores

    def fallen(trial: TrialRecords) -> TrialRecords:
        on_text = [
            {"score": base[: p.n].mean() - 0.05} if p.task == "text" else {} for p in trial.curve
        ]
        curve = (p.model_copy(update=u) for p, u in zip(trial.curve, on_text, strict=True))
        return replace(trial, curve=tuple(curve))

    view = StudyView(with_trials(study, fallen), advice)
    arm = next(a for a in view.arms("med") if a.rank == 8)
    (spot,) = curve_of(view, arm)
    assert spot.retention == pytest.approx(-(truth.forgetting(8, arm.lr) + 0.05) / 2)


def test_a_trial_that_stopped_early_ends_at_the_weights_it_kept() -> None:
    """Seed 0 kept step 10 and trained to 20: 40 averages its step 10 with the others' step 40."""
    study, advice = study_and_advice(CURVES)
    before = StudyView(study, advice)
    arm = next(a for a in before.arms("med") if a.rank == 8)
    first = min(t.spec.seed for t in before.trials(arm))

    def stopped(trial: TrialRecords) -> TrialRecords:
        if trial.train is None or trial.spec.seed != first:
            return trial
        kept = trial.train.model_copy(update={"best_step": 10})
        return replace(trial, train=kept, curve=tuple(p for p in trial.curve if p.step <= 20))

    view = StudyView(with_trials(study, stopped), advice)
    whole, found = curve_of(before, arm), curve_of(view, arm)
    assert [(p.step, p.seeds) for p in found] == [(5, 3), (10, 3), (20, 3), (40, 3)]
    # All seeds of the simulated curve gain alike.
    gain = [p.gain for p in whole]
    expected = [gain[0], gain[1], (gain[1] + 2 * gain[2]) / 3, (gain[1] + 2 * gain[3]) / 3]
    assert [p.gain for p in found] == pytest.approx(expected)
