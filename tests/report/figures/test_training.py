"""Training loss."""

import re

import numpy as np
import pytest
from report_studies import study_and_advice
from synthetic_study import Truth

from rankscope.report.figures.loss import draw_loss
from rankscope.report.learning_curves import binned_losses
from rankscope.report.study_view import StudyView


def test_the_ends_are_of_the_arms_drawn(view: StudyView) -> None:
    figure = draw_loss(view, "med")
    drawn = {arm.label for arm in view.focus_arms("med")}
    assert drawn == set(figure.data["arm"]) < {arm.label for arm in view.arms("med")}
    assert figure.finding.startswith("Loss at the end of the arms drawn: ")
    one = draw_loss(StudyView(*study_and_advice(Truth(ranks=(8,), full_lrs=()))), "med")
    assert re.fullmatch(r"Loss at the end of the arms drawn: \S+ \(r=8 lr=0.001\)\.", one.finding)
    full = draw_loss(StudyView(*study_and_advice(Truth(ranks=(), num_items=20))), "med")
    drawn = [f.caption.partition(". ")[0] for f in (figure, one, full)]
    ranks, best = "the ranks at one learning rate", "the best full fine-tuning"
    assert drawn == [f"Drawn: {ranks} and {best}", f"Drawn: {ranks}", f"Drawn: {best}"]


def test_binned_losses_keep_short_curves_and_thin_long_ones(view: StudyView) -> None:
    arm = next(a for a in view.arms("med") if a.seeds == 3)
    trials = view.trials(arm)
    records = [t.train for t in trials if t.train]
    curve = binned_losses(trials, points=10_000)
    by_step = [np.mean([r.losses[i].loss for r in records]) for i in range(records[0].steps)]
    assert [step for step, _ in curve] == [p.step for p in records[0].losses]
    assert [value for _, value in curve] == pytest.approx(by_step)
    thin = binned_losses(trials, points=8)
    assert len(thin) == 8
    # Forty steps fall into eight bins of five, so the mean of bins is the mean of steps.
    assert np.mean([value for _, value in thin]) == pytest.approx(np.mean(by_step))
