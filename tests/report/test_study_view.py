"""Lookups over one study."""

import pytest
from advice import chat_study
from report_studies import study_and_advice
from synthetic_study import Truth, synthetic_study, with_specs

from rankscope.advise.recommend import recommend
from rankscope.cli.render.summary import summary_table
from rankscope.formatting import NATS
from rankscope.report.answer import answer_card
from rankscope.report.figures.plane import draw_plane
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
    assert (label, role.split(",")[0]) == (focus.label, "Best so far")


def test_retention_has_the_unit_in_which_it_is_weighed_everywhere() -> None:
    """The gain is in nats and the right answers lose .1 nats; their accuracy stays."""
    study = chat_study(gold_fall=0.1)
    view = StudyView(study, recommend(study))
    (arm,) = view.arms("med")
    change = view.retention_change(arm)
    assert change.value == pytest.approx(-0.1, abs=0.02)
    assert view.retention_unit("med") == NATS
    card = answer_card(view, "med")
    net, score, retained = card.rows[0][2][:3]
    assert card.columns[2] == "Retention change, nats per token"
    assert retained[0] == f"{change.value:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert "points" not in net[1] + score[1] + retained[1]
    assert draw_plane(view, "med").data["retention change, nats per token"][0] == change.value
    table = summary_table(study, view.recommendation)
    (shown,) = (c for c in table.columns if c.header == "retention")
    assert list(shown.cells)[1].startswith(retained[0])
