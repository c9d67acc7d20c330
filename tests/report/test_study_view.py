"""Lookups over one study."""

import pytest
from report_studies import study_and_advice
from synthetic_study import Truth, synthetic_study, with_specs

from rankscope.advise.recommend import recommend
from rankscope.report.answer import answer_card
from rankscope.report.study_view import StudyView


@pytest.mark.parametrize(
    ("alphas", "lines"),
    [
        ({2: 4.0, 8: 16.0, 32: 64.0}, {"lr=0.001"}),
        ({2: 2.0, 8: 8.0, 32: 32.0}, {"lr=0.001 alpha=1r"}),
        ({2: 16.0, 8: 16.0, 32: 16.0}, {"lr=0.001 alpha=16"}),
    ],
)
def test_lines_over_rank_follow_what_alpha_does(alphas: dict[int, float], lines: set[str]) -> None:
    study = with_specs(
        synthetic_study(Truth(num_items=20, seeds=(0,))),
        lambda spec: {"alpha": alphas[spec.rank]} if spec.rank else {},
    )
    view = StudyView(study, recommend(study))
    found = view.lines("med")
    assert set(found) == lines
    assert [[arm.rank for arm in arms] for arms in found.values()] == [[2, 8, 32]]


def test_the_view_looks_at_the_arms_that_the_advice_speaks_of() -> None:
    """The highest score forgets most: by score alone another arm would be shown."""
    truth = Truth(
        ranks=(2, 32),
        full_lrs=(1e-4, 1e-3),
        accuracy=lambda rank, lr: 0.6 if rank == 2 or (rank is None and lr == 1e-4) else 0.9,
        forgetting=lambda rank, lr: 0.4 if rank == 2 or (rank is None and lr == 1e-4) else 0.75,
    )
    view = StudyView(*study_and_advice(truth))
    advice = view.advice("med")
    assert advice.chosen is None
    focus, full, lora = view.focus("med"), view.best_full("med"), view.best_lora("med")
    assert (lora.rank, full.lr) == (2, 1e-4)
    assert focus.label == advice.subject_label
    gain = next(r for r in advice.reasons if r.kind == "gain")
    assert gain.values["gain"] == focus.gain.value
    role, label, _ = answer_card(view, "med").rows[0]
    assert (label, role.split(",")[0]) == (focus.label, "Closest")
