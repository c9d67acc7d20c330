"""The answer: the same numbers wherever it is shown, and never more certain than it is."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
from advice import chat_study
from html_elements import Elements
from report_studies import card_of, study_and_advice
from rich.console import Console
from synthetic_study import Truth, synthetic_study, with_prompt, with_specs, with_tasks

from rankscope.advise.recommend import recommend
from rankscope.cli.summary import CHOSEN, summary_table
from rankscope.formatting import (
    CONFIDENCES,
    amount,
    compact,
    number,
    percent,
    score_text,
    signed,
)
from rankscope.records import BASE, MAY_DO, CheckName, Recommendation, StudyRecords, TrustCheck
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
    of = arm.expected
    changes = [
        ("gain", of.changes["med"], view.unit("med")),
        ("retention change", -of.forgetting, view.retention_unit("med")),
        ("net gain", of.net, view.net_unit("med")),
    ]
    p, net = percent(of.p_within_margin), signed(of.net.value, view.net_unit("med"))
    stored = Recommendation.model_validate_json(view.recommendation.model_dump_json())
    assert stored == view.recommendation
    card = card_of(view, next(t for t in view.trials(arm) if t.status == "done"))
    for text in (
        Elements(render_study(view)).text,
        Elements(answer_html(view)).text,
        " ".join(answer_lines(advice, with_reasons=False)),
        repr(_AnswerText(view)),
        " ".join(card.replace("\\", "").split()),
    ):
        assert advice.verdict in text
        assert advice.summary in text
        assert net in text
    assert f"{p} likely among the best" in card
    _, label, cells = answer_card(view, "med").rows[0]
    lost, better = amount(max(0, of.regret), view.net_unit("med")), percent(advice.p_better)
    over = of.p_over_limit or 0.0
    last = f"{percent(over)} likely over the limit on forgetting"
    last = last if over > 0.5 else f"on average {lost} below the best"
    notes = f"{better} likely better than the base", last
    assert (label, cells["Likely among the best"]) == (arm.label, (p, *notes))
    row = next(line for line in terminal(view) if arm.label in line)
    assert p in row
    arms = study_tables(view)["arms"].set_index("arm").loc[arm.label]
    assert arms["p_within_margin"] == of.p_within_margin
    for name, change, unit in changes:
        value, low, high = (signed(x, unit) for x in (change.value, change.low, change.high))
        assert f"expected {name} {value} {unit.difference} " in card
        assert cells[f"Expected {name}, {unit.difference}"][:2] == (value, f"{low} to {high}")
        half = (change.high - change.low) / 2 * unit.scale
        assert f"{value} ±{half:.{unit.digits}f}" in row
        column = f"expected_{name.replace(' ', '_')}"
        found = arms[[column, f"{column}_low", f"{column}_high"]]
        assert tuple(found) == (change.value, change.low, change.high)


def test_the_chart_has_every_rank_at_its_best_rate_with_its_probability(shown: StudyView) -> None:
    figure, unit = draw_expected_gain(shown, "med"), shown.net_unit("med")
    card, advice = answer_card(shown, "med"), shown.advice("med")
    if not shown.candidates("med"):  # all are over the limit
        assert figure is card.chart is None
        return
    best = {arm.label: arm.expected for arm in shown.candidates("med")}
    gain = f"expected net gain, {unit.difference}"
    rows = figure.data.set_index("arm")
    assert list(rows.index) == list(best)
    for label, of in best.items():
        ends = rows.loc[label, [gain, f"{gain}, low", f"{gain}, high"]]
        assert list(ends) == [x * unit.scale for x in (of.net.value, of.net.low, of.net.high)]
        assert rows.loc[label, "likely among the best"] == of.p_within_margin
    full, points = shown.best_full("med"), card.chart["points"]
    drawn = {point["told"].partition(":")[0]: point for point in points}
    drawn |= {full.label: card.chart["full"]} if full else {}
    assert drawn.keys() == best.keys()
    heights = {place["value"]: best[label].net.value for label, place in drawn.items()}
    heights[card.chart["base"]] = 0.0
    assert sorted(heights, key=heights.__getitem__) == sorted(heights, reverse=True)
    may_do = {label for label, of in best.items() if of.p_within_margin >= MAY_DO}
    assert {label for label, place in drawn.items() if place["likely"]} == may_do
    chosen = {label for label, place in drawn.items() if place["is_chosen"]}
    assert chosen == ({advice.chosen.label} if advice.chosen else set())
    assert card.chart["base_is_chosen"] == (advice.decision == "do_not_fine_tune")
    ends = {label for check in advice.open_checks for label in check.labels}
    assert (
        {label for label, place in drawn.items() if place["open"]} == ends & drawn.keys() != set()
    )
    told = " ".join(answer_lines(advice, with_reasons=False))
    listed = {label for _, label, _ in card.rows}
    for rank in advice.ranks_that_may_do:
        text = f"r={rank.rank} ({percent(rank.p)})"
        assert text in figure.finding
        assert text in told or rank.label in listed


def test_measured_numbers_stay_in_the_table_and_the_card_has_what_an_arm_costs(
    shown: StudyView,
) -> None:
    arm, (_, _, cells) = shown.focus("med"), answer_card(shown, "med").rows[0]
    row = arms_table(shown).set_index("arm").loc[arm.label]
    assert row["score"] == arm.score.value
    assert row["retention_change"] == -arm.forgetting.value  # below zero was forgotten
    share = 100 * arm.trainable_parameters / shown.study.model.num_parameters
    assert cells["Size"][1:] == (
        f"{number(share)} % of the model's parameters",
        f"{compact(arm.trainable_parameters)} parameters",
    )
    assert cells["Training time"][1] == "per run"


@pytest.mark.parametrize("counted", [True, False])
def test_a_prompt_is_shown_whole_and_with_what_both_models_read(counted: bool) -> None:
    """Of validation items, as a search scores test items of some models only."""
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
    assert cells["Size"] == ("15 tokens", "read for an item", *["10 by the base"] * counted)
    assert arms_table(view).set_index("arm")["lr"].isna()[label]
    assert f"P{label[1:]}: " in draw_expected_gain(view, "med").finding
    page = render_study(view)
    assert system in page
    assert "show the task&#39;s own 3 solved examples, too." in page


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_the_badge_is_the_confidence_of_the_answer(confidence: str) -> None:
    study, whole = study_and_advice(Truth(num_items=20, seeds=(0,)))
    advice = tuple(a.model_copy(update={"confidence": confidence}) for a in whole.advice)
    html = Elements(answer_html(StudyView(study, whole.model_copy(update={"advice": advice}))))
    assert ("section", {"class": f"answer {confidence}"}) in html.tags
    assert f"{advice[0].summary} {CONFIDENCES[confidence]} " in html.text


def test_every_check_has_a_name_on_the_card() -> None:
    study, whole = study_and_advice(Truth(num_items=20, seeds=(0,)))
    checks = [TrustCheck(name=n, status="weak", value=n, text="?") for n in get_args(CheckName)]
    advice = tuple(a.model_copy(update={"checks": checks}) for a in whole.advice)
    text = Elements(answer_html(StudyView(study, whole.model_copy(update={"advice": advice})))).text
    assert "Learning rate: learning_rate. ?" in text
    assert "Runs: trials. ?" in text
    assert f"{len(checks)} points are open." in text


def test_the_recommended_row_wins_in_the_column_by_which_arms_are_compared() -> None:
    """Full fine-tuning scores more and forgets more."""
    truth = Truth(
        ranks=(2,),
        accuracy=lambda rank, lr: 0.7 if rank else 0.9,
        forgetting=lambda rank, lr: 0.0 if rank else 0.4,
        objective={"retention": 0.75},
    )
    card = answer_card(StudyView(*study_and_advice(truth)), "med")
    net, gain = (
        [float(cells[f"Expected {name}, points"][0]) for *_, cells in card.rows]
        for name in ("net gain", "gain")
    )
    assert net[0] > net[1]
    assert gain[0] < gain[1]
    assert card.note.startswith("Net gain: gain - 0.75 x forgetting. ")


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
    for task in view.training_tasks:
        assert score_text(view.base(task).score, view.unit(task)) in " ".join(lines)


def test_an_arm_without_a_score_is_explained() -> None:
    study, advice = study_and_advice(Truth(num_items=20, seeds=(0,), failed={(2, 1e-3, 0): "oom"}))
    explained = "–: the configuration has no score on some task that counts."  # noqa: RUF001
    assert explained in " ".join(terminal(StudyView(study, advice)))
    whole = StudyView(*study_and_advice(Truth(num_items=20, seeds=(0,))))
    assert explained not in " ".join(terminal(whole))


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
    assert (label, role.split(",")[0]) == (focus.label, "Best tried")
