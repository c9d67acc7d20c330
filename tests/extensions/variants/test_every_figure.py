"""The laws of all figures, on those of variants."""

from dataclasses import replace

import pytest
from report_studies import CURVES, study_and_advice

from rankscope.records import BASE, StudyRecords, Variant
from rankscope.report.study_view import StudyView

from ...report.figures.test_every_figure import (
    figures,
    test_every_color_of_a_figure_has_a_dark_partner,
    test_every_figure_has_a_plot_a_finding_and_numbers,
)

__all__ = [
    "figures",
    "test_every_color_of_a_figure_has_a_dark_partner",
    "test_every_figure_has_a_plot_a_finding_and_numbers",
]


def with_variants(study: StudyRecords) -> StudyRecords:
    """The study with the first arm scored at half its update too, where its answers of every
    second item are the base's."""
    evals, items = dict(study.evals), dict(study.items)
    label = study.trials[0].spec.arm_label
    arm = [t.spec.trial_id for t in study.trials if t.spec.arm_label == label]
    for (model, task, split), record in study.evals.items():
        if model in arm:
            key = (Variant("scale", 0.5).of(model), task, split)
            scores = items[model, task, split].scores.copy()
            scores[::2] = items[BASE, task, split].scores[::2]
            items[key] = replace(items[model, task, split], scores=scores)
            update = {"trial_id": key[0], "score": float(scores.mean())}
            evals[key] = record.model_copy(update=update)
    return replace(study, evals=evals, items=items)


@pytest.fixture(scope="module")
def view() -> StudyView:
    study, advice = study_and_advice(CURVES)
    return StudyView(with_variants(study), advice)
