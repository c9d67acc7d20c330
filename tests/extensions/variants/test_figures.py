"""What was done against forgetting, compared: no more is said than is shown."""

from dataclasses import replace

import pytest
from report_studies import CURVES, cells, ordinary_study, study_and_advice

from rankscope.extensions.variants.figures import comparisons_figure
from rankscope.extensions.variants.results import MitigationComparison
from rankscope.records import BASE, Estimate, StudyRecords, Variant
from rankscope.report.charts.figure import Figure
from rankscope.report.study_view import StudyView

from ...report.figures.test_every_figure import assert_lawful


def comparison(label: str, value: float, half: float | None) -> MitigationComparison:
    """``half``: half the width of the interval."""
    ends = (None, None) if half is None else (value - half, value + half)
    return MitigationComparison(
        label=label,
        plain="plain",
        gain=0.3,
        forgetting=0.1,
        baseline=0.1 - value,
        difference=Estimate(value=value, low=ends[0], high=ends[1], n=100, seeds=3),
        beyond=0,
    )


def compared(*comparisons: MitigationComparison) -> Figure:
    view = StudyView(*ordinary_study())
    return comparisons_figure(view, view.training_tasks[0], comparisons)


@pytest.mark.parametrize(
    ("comparisons", "said", "unsaid"),
    [
        # The largest difference is of one seed: it is not called the best, nor shown.
        (
            [comparison("lucky", -0.5, None), comparison("steady", -0.1, 0.01)],
            "1 retained more than scaling and 0 less. By chance, one in 20 would. The largest "
            "improvement: steady",
            "lucky",
        ),
        ([comparison("a", -0.3, 0.4), comparison("b", 0.1, 1.0)], "0 retained more", "largest"),
        ([comparison("a", 0.2, 0.01)], "0 retained more than scaling and 1 less", "largest"),
        ([comparison("a", -0.2, None)], "over fewer than three seeds", "better:"),
    ],
)
def test_nothing_is_called_better_that_is_not_shown(
    comparisons: list[MitigationComparison], said: str, unsaid: str
) -> None:
    finding = compared(*comparisons).finding
    assert said in finding
    assert unsaid not in finding


def test_the_table_has_every_comparison_with_its_interval() -> None:
    rows = cells(compared(comparison("a", -0.1, 0.03), comparison("b", 0.1, None)))
    assert [row[:1] + row[5:8] for row in rows] == [
        ("a", *map(pytest.approx, (10.0, 7.0, 13.0))),
        ("b", -10.0, None, None),
    ]


def with_variants(study: StudyRecords) -> StudyRecords:
    """The study with the first arm scored at half its update too, where its answers of every
    second item are the base's."""
    evals, items = dict(study.evals), dict(study.items)
    label = study.trials[0].spec.arm_label
    arm = [t.spec.trial_id for t in study.trials if t.spec.arm_label == label]
    for (model, task, split), record in study.evals.items():
        if model in arm:
            key = (Variant(model, "scale", 0.5), task, split)
            scores = items[model, task, split].scores.copy()
            scores[::2] = items[BASE, task, split].scores[::2]
            items[key] = replace(items[model, task, split], scores=scores)
            update = {"variant": key[0], "score": float(scores.mean())}
            evals[key] = record.model_copy(update=update)
    return replace(study, evals=evals, items=items)


def test_every_figure_keeps_the_laws() -> None:
    study, advice = study_and_advice(CURVES)
    assert_lawful(StudyView(with_variants(study), advice))
