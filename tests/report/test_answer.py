"""The answer: the same numbers wherever it is shown, and never more certain than it is."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from advice import chat_study
from html_elements import Elements
from report_studies import card_of, study_and_advice
from rich.console import Console
from synthetic_study import Truth, synthetic_study, with_prompt, with_specs, with_tasks

from rankscope.advise.recommend import recommend
from rankscope.cli.render.summary import CHOSEN, summary_table
from rankscope.formatting import CONFIDENCES, compact, percent, signed
from rankscope.records import BASE, LEFT_OUT, Recommendation, Status, StudyRecords
from rankscope.report.answer import answer_card, answer_html, answer_lines
from rankscope.report.figures.expected_gain import draw_expected_gain
from rankscope.report.study_page import render_study
from rankscope.report.study_view import StudyView
from rankscope.report.tables import arms_table, study_tables
from rankscope.tools.frames import _AnswerText

SMALL: dict[str, Any] = {"num_items": 60, "lrs": (1e-3, 3e-3)}
STUDIES: Mapping[str, Callable[[], StudyRecords]] = {
    "lora or full": lambda: synthetic_study(Truth(**SMALL)),
    "worse than the base": lambda: synthetic_study(
        Truth(**SMALL, accuracy=lambda rank, lr: 0.2, forgetting=lambda rank, lr: 0.3)
    ),
    "over the limit": lambda: synthetic_study(
        Truth(**SMALL, forgetting=lambda rank, lr: 0.4, objective={"max_forgetting": 0.05})
    ),
    "in nats": lambda: chat_study(accuracy_fall=0.1),
    "no full fine-tuning, weighed": lambda: synthetic_study(
        Truth(**SMALL, full_lrs=(), objective={"retention": 0.5})
    ),
}


@pytest.fixture(scope="module", params=STUDIES)
def shown(request: pytest.FixtureRequest) -> StudyView:
    study = STUDIES[request.param]()
    return StudyView(study, recommend(study))


def terminal(view: StudyView, width: int = 300) -> list[str]:
    output = io.StringIO()
    table = summary_table(view.study, view.recommendation)
    Console(file=output, width=width, color_system=None).print(table)
    return output.getvalue().splitlines()


def test_the_same_probability_is_shown_everywhere(shown: StudyView) -> None:
    """On page, card, terminal, notebook, in the tables, the stored answer and the model card."""
    view, advice, arm = shown, shown.advice("med"), shown.focus("med")
    assert arm.expected.p_better == advice.p_better
    p, unit = percent(arm.expected.p_within_margin), view.net_unit("med")
    net, limits = signed(arm.expected.net, unit), (arm.expected.low, arm.expected.high)
    stored = Recommendation.model_validate_json(view.recommendation.model_dump_json())
    assert stored == view.recommendation
    assert percent(advice.p_within_margin) in advice.verdict
    card = card_of(view, next(t for t in view.trials(arm) if t.status == "done"))
    for text in (
        Elements(render_study(view)).text,
        Elements(answer_html(view)).text,
        " ".join(answer_lines(advice, with_reasons=False)),
        repr(_AnswerText(view)),
        " ".join(card.replace("\\", "").split()),
    ):
        assert advice.verdict in text
        assert net in text
    assert f"expected net gain {net} {unit.difference}" in card
    assert f"{p} within {view.margin('med')} of the best" in card
    shown_card = answer_card(view, "med")
    _, label, cells = shown_card.rows[0]
    assert (label, cells[0]) == (arm.label, (net, " to ".join(signed(x, unit) for x in limits)))
    lost, better = f"{max(0, arm.expected.regret * unit.scale):.1f}", percent(advice.p_better)
    assert cells[1] == (p, f"loses {lost} expected; {better} better than the base")
    assert shown_card.columns[0] == f"Expected net gain, {unit.difference}"
    row = next(line for line in terminal(view) if arm.label in line)
    assert p in row
    assert f"{net} ±{(limits[1] - limits[0]) / 2 * unit.scale:.{unit.digits}f}" in row
    arms = study_tables(view)["arms"].set_index("arm").loc[arm.label]
    assert arms["p_within_margin"] == arm.expected.p_within_margin
    names = ("expected_net_gain", "expected_net_gain_low", "expected_net_gain_high")
    assert tuple(arms[list(names)]) == (arm.expected.net, *limits)


def test_every_configuration_is_drawn_at_its_best_rate_with_its_probability(
    shown: StudyView,
) -> None:
    figure, unit = draw_expected_gain(shown, "med"), shown.net_unit("med")
    if not shown.candidates("med"):  # all are over the limit
        assert figure is None
        return
    best = {arm.label: arm.expected for arm in shown.candidates("med")}
    gain = f"expected net gain, {unit.difference}"
    rows = figure.data.set_index("arm")
    assert list(rows.index) == list(best)
    for label, of in best.items():
        ends = rows.loc[label, [gain, f"{gain}, low", f"{gain}, high"]]
        assert list(ends) == [x * unit.scale for x in (of.net, of.low, of.high)]
        assert rows.loc[label, "P(within margin)"] == of.p_within_margin
    texts = dict(zip(figure.plot.data[-1].y, figure.plot.data[-1].text, strict=True))
    by_height = {of.net * unit.scale: percent(of.p_within_margin) for of in best.values()}
    assert texts
    assert all(by_height[height] == text for height, text in texts.items())
    lines = {t.text[1]: t.y[0] for t in figure.plot.data if t.mode == "lines+text"}
    full = shown.best_full("med")
    assert lines == {"base": 0.0} | (
        {"full": best[full.label].net * unit.scale} if full and full.label in best else {}
    )
    told = " ".join(answer_lines(shown.advice("med"), with_reasons=False))
    for rank in shown.advice("med").ranks_that_may_do:
        text = f"r={rank.rank} ({percent(rank.p)})"
        assert text in figure.finding
        assert text in told or rank.label == shown.focus("med").label


def test_measured_numbers_are_those_of_the_test_split_in_their_own_unit(shown: StudyView) -> None:
    arm, card = shown.focus("med"), answer_card(shown, "med")
    *_, score, retention, size, seconds = card.rows[0][2]
    unit, kept = shown.unit("med"), shown.retention_unit("med")
    assert score[0] == f"{arm.score.value * unit.scale:.{unit.digits}f}".replace("-", "\u2212")
    assert retention[0] == signed(-arm.forgetting.value, kept)  # below zero was forgotten
    assert card.columns[3] == f"Retention change, {kept.difference}"
    assert f"{compact(arm.trainable_parameters)} parameters" in size[1]
    assert seconds[1] == "per trial"


@pytest.mark.parametrize("counted", [True, False])
def test_a_prompt_is_shown_whole_and_with_what_both_models_read(counted: bool) -> None:
    """Of validation items, as an adaptive study scores test items of some models only."""
    system = ("Answer with one letter. " * 2000).strip()
    alike = Truth(num_items=60, ranks=(2, 8), full_lrs=(), accuracy=lambda rank, lr: 0.8)
    study = with_prompt(synthetic_study(alike), 2, system=system, num_fewshot=None)
    read = {"validation": 10 * counted, "test": 30 * counted}
    evals = {
        key: e.model_copy(update={"num_read": e.n * (read[key[2]] if key[0] == BASE else 15)})
        for key, e in study.evals.items()
    }
    study = with_tasks(replace(study, evals=evals), med={"num_fewshot": 3})
    view = StudyView(study, recommend(study))
    (role, label, cells), *_ = answer_card(view, "med").rows
    assert label == view.advice("med").chosen.label
    assert role.endswith('system "Answer with one letter. Answer with o..."')
    assert cells[4] == ("15 tokens", "read for an item" + "; 10 by the base" * counted)
    assert arms_table(view).set_index("arm")["lr"].isna()[label]
    assert f"P{label[1:]}: " in draw_expected_gain(view, "med").finding
    page = render_study(view)
    assert system in page
    assert "show the task&#39;s own 3 solved examples, too." in page


@pytest.mark.parametrize(
    ("p", "confidence"), [(0.97, "sure"), (0.85, "probable"), (0.5, "leaning"), (None, "none")]
)
def test_the_badge_follows_the_probability(p: float | None, confidence: str) -> None:
    study, whole = study_and_advice(Truth(num_items=20, seeds=(0,)))
    update = {"p_within_margin": p, "decision": "use"}
    advice = tuple(advice.model_copy(update=update) for advice in whole.advice)
    html = Elements(answer_html(StudyView(study, whole.model_copy(update={"advice": advice}))))
    assert ("section", {"class": f"answer {confidence}"}) in html.tags
    assert f"how much rank is enough? {CONFIDENCES[confidence]} " in html.text


def test_the_recommended_row_wins_in_the_column_by_which_arms_are_compared() -> None:
    """Full fine-tuning scores more and forgets more."""
    truth = Truth(
        ranks=(2,),
        accuracy=lambda rank, lr: 0.7 if rank else 0.9,
        forgetting=lambda rank, lr: 0.0 if rank else 0.4,
        objective={"retention": 0.75},
    )
    card = answer_card(StudyView(*study_and_advice(truth)), "med")
    numbers = [[float(cells[place][0]) for *_, cells in card.rows] for place in (0, 2)]
    assert numbers[0][0] > numbers[0][1]
    assert numbers[1][0] < numbers[1][1]
    assert card.note.startswith(
        "Net gain: gain - 0.75 x forgetting. It is expected from all items (400 "
    )


def test_the_terminal_has_the_base_every_arm_and_one_mark_per_task(view: StudyView) -> None:
    lines = terminal(view, width=80)
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if "lr=" in line]
    arms = [arm for task in view.recommendation.advice for arm in task.arms]
    assert [row.split("lr=")[0].strip(f" {CHOSEN}") for row in rows] == [
        arm.label.split("lr=")[0].strip() for arm in arms
    ]
    chosen = [row for row in rows if CHOSEN in row]
    assert [
        a.chosen.label in row for a, row in zip(view.recommendation.advice, chosen, strict=True)
    ] == [True, True]
    assert ["2/3" in row for row in rows] == [arm.failed == 1 for arm in arms]
    assert sum(line.split()[:1] == ["base"] for line in lines) == 2


@pytest.mark.parametrize("status", ["stopped", "oom"])
def test_an_arm_without_a_test_score_is_explained(status: Status) -> None:
    """In an adaptive study only finalists have one; memory that ran out is another reason."""
    study, _ = study_and_advice(Truth(num_items=20, seeds=(0,), failed={(2, 1e-3, 0): status}))
    for strategy in ("adaptive", "grid"):
        config = study.config.model_copy(update={"strategy": strategy})
        of = replace(study, config=config)
        text = " ".join(" ".join(terminal(StudyView(of, recommend(of)))).split())
        is_choice = strategy == "adaptive" and status in LEFT_OUT
        assert ("not scored on test items, as only finalists are" in text) == is_choice
        assert "not scored on test items" in text


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
    role, label, _ = answer_card(view, "med").rows[0]
    assert (label, role.split(",")[0]) == (focus.label, "Closest")
