"""The maps of learning rate x rank, of train x test, and of retention by subject."""

from dataclasses import replace

import pandas as pd
import pytest
from report_studies import cells, ordinary_study, study_and_advice
from synthetic_study import Truth, synthetic_study, with_own_trials, with_specs, with_trials

from rankscope.advise.recommend import recommend
from rankscope.formatting import MAX_NAME, POINTS
from rankscope.records import Status
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.heat_map import Grid, heat_map
from rankscope.report.figures import rate_map, subjects, transfer
from rankscope.report.study_view import StudyView


def test_map_cells_are_gains_on_the_diagonal_and_transfer_beside_it(view: StudyView) -> None:
    figure = transfer.draw_transfer(view, POINTS)
    assert figure.choices[0].label == "best arm of each task"
    grid = figure.plot.data[0]
    cells = {(y, x): grid.z[j][i] for j, y in enumerate(grid.y) for i, x in enumerate(grid.x)}
    for task in ("med", "law"):
        arm = view.focus(task)
        other = {"med": "law", "law": "med"}[task]
        assert cells[task, task] == pytest.approx(100 * arm.gain.value)
        assert cells[task, other] == pytest.approx(100 * arm.transfer[other].value)
        assert cells[task, "general"] == pytest.approx(100 * arm.retention["general"].value)
    assert grid.zmin == -grid.zmax
    assert grid.zmax >= max(abs(value) for value in cells.values())


def test_every_arm_has_its_cell_and_the_frame_is_around_the_recommended_one(
    view: StudyView,
) -> None:
    figure = rate_map.draw_rate_map(view, "med")
    arms = {arm.label: arm for arm in view.arms("med")}
    assert {row[0] for row in cells(figure)} == set(arms)
    gain, frame, validation, _, retained, _ = figure.plot.data
    assert [c.label for c in figure.choices] == [
        "gain over base", "gain on the validation split", "retention change",
    ]  # fmt: skip
    assert tuple(gain.x) == ("0.0005", "0.001", "0.003")
    assert tuple(gain.y) == ("r=2", "r=8", "r=32", "full")
    place = (tuple(gain.y).index("r=8"), tuple(gain.x).index("0.003"))
    arm = arms["r=8 lr=0.003"]
    assert gain.z[place[0]][place[1]] == 100 * arm.gain.value
    assert validation.z[place[0]][place[1]] == 100 * (arm.validation_gain or 0)
    assert retained.z[place[0]][place[1]] == -100 * arm.forgetting.value  # blue is good
    assert gain.z[0][0] is None  # no LoRA arm at full fine-tuning's rate
    advice = view.advice("med")
    at = gain.y[round(sum(frame.y[:4]) / 4)], gain.x[round(sum(frame.x[:4]) / 4)]
    assert at == (f"r={advice.chosen.rank}", f"{advice.chosen.lr:g}")
    assert [c.traces for c in figure.choices] == [(0, 1), (2, 3), (4, 5)]


def test_the_frame_is_drawn_in_the_recommended_arms_variant_alone() -> None:
    study, _ = ordinary_study()
    of_its_own = with_own_trials(study, "-dora")
    dora = with_specs(of_its_own, lambda spec: {"method": "dora"}).trials
    both = replace(
        study,
        trials=(*study.trials, *(t for t in dora if t.spec.rank is not None)),
        evals=study.evals | of_its_own.evals,
        items=study.items | of_its_own.items,
    )
    view = StudyView(both, recommend(both))
    advice = view.advice("med")
    figure = rate_map.draw_rate_map(view, "med")
    assert len(figure.choices) == 6
    assert len(figure.plot.data) == 9
    chosen = "dora" if advice.chosen.method == "dora" else ""
    of_chosen = [c.label.startswith("dora") == bool(chosen) for c in figure.choices]
    assert [len(c.traces) == 2 for c in figure.choices] == of_chosen
    assert sum(of_chosen) == 3


def test_a_cell_without_a_result_says_how_its_arm_ended() -> None:
    failed = {(8, 4e-3, seed): "diverged" for seed in range(3)}
    study, advice = study_and_advice(Truth(num_items=20, lrs=(2e-3, 4e-3), failed=failed))
    grid = rate_map.draw_rate_map(StudyView(study, advice), "med").plot.data[0]
    row, column = tuple(grid.y).index("r=8"), tuple(grid.x).index("0.004")
    assert grid.z[row][column] is None
    assert grid.text[row][column] == grid.hovertext[row][column] == "diverged"


def texts_at(figure: Figure, rate: str) -> dict[str, dict[str, str]]:
    """What the cells of one learning rate say, by choice and row."""
    maps = (trace for trace in figure.plot.data if trace.type == "heatmap")
    return {
        choice.label: {
            row: text[list(trace.x).index(rate)]
            for row, text in zip(trace.y, trace.text, strict=True)
        }
        for choice, trace in zip(figure.choices, maps, strict=True)
    }


def test_arms_that_an_adaptive_study_left_out_are_named_in_words() -> None:
    """r=2 at 0.004 was stopped, r=8 at 0.004 has validation items alone, r=32 never began."""
    study = synthetic_study(Truth(num_items=20, lrs=(2e-3, 4e-3)))
    ids = [t.spec.trial_id for t in study.trials if t.spec.rank and t.spec.lr == 4e-3]
    stopped, validated = ids[0], ids[3]
    statuses: dict[str, Status] = dict.fromkeys(ids, "skipped") | {stopped: "stopped"}
    del statuses[validated]
    study = with_trials(
        study,
        lambda t: (
            replace(t, status=statuses[t.spec.trial_id], train=None)
            if t.spec.trial_id in statuses
            else t
        ),
    )
    gone = {
        (trial_id, task, split)
        for trial_id, task, split in study.items
        if trial_id in statuses or (trial_id == validated and split == "test")
    }
    study = replace(
        study,
        items={key: value for key, value in study.items.items() if key not in gone},
        evals={key: value for key, value in study.evals.items() if key not in gone},
    )
    figure = rate_map.draw_rate_map(StudyView(study, recommend(study)), "med")
    shown = texts_at(figure, "0.004")
    words = {"r=2": "stopped early", "r=8": "validation only", "r=32": "not begun", "full": ""}
    assert shown["gain over base"] == shown["retention change"] == words
    on_validation = shown["gain on the validation split"]
    assert on_validation.pop("r=8").strip("()")[0] == "+"
    assert on_validation == {row: text for row, text in words.items() if row != "r=8"}


def test_a_map_has_room_for_the_names_of_its_rows_and_the_texts_of_its_cells() -> None:
    """At most 7 pixels a letter: on a phone, a map that needs more than the screen scrolls."""

    def width(row: str, text: str, column: str = "") -> int:
        columns = [f"{column}0", f"{column}1"]
        values = pd.DataFrame([[1.0] * 2], index=[row], columns=columns)
        texts = pd.DataFrame([[text] * 2], index=[row], columns=columns)
        return heat_map({"": Grid(values, texts=texts)})["min_width"]

    assert width("r" * 40, "") == width("r" * 30, "") + 10 * 7
    # A long name is cut, and the number of letters that it lost is written behind it.
    assert width("r" * 500, "") <= width("r" * MAX_NAME, "") + 20 * 7
    assert width("r", "validation only") == width("r", "") + 2 * (15 * 7 + 8 - 60)
    assert width("r", "+1.0") == width("r", "")
    # Slanted names of columns take about half of their length.
    assert width("r", "", "c" * 13) == width("r", "") + 7 * 7


APART = {(2, 1e-3): 0.1, (8, 2e-3): 0.1}
EQUAL = {(2, 1e-3): 0.1, (2, 2e-3): 0.2, (8, 1e-3): 0.3001, (8, 2e-3): 0.3002}
EDGE = {(2, 1e-3): 0.0, (2, 2e-3): 0.1, (2, 4e-3): 0.5}
MIDDLE = {(8, 1e-3): 0.0, (8, 2e-3): 0.5, (8, 4e-3): 0.1}
NO_RATE = "No rank was trained and scored at two rates, so no rate can be called the best."


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        (APART, NO_RATE),
        (dict.fromkeys(APART), NO_RATE),
        (
            EDGE | MIDDLE,
            "On the validation split the gain is largest with the rate 0.002 at r=8; 0.004 at r=2. "
            "That is the edge of the grid for r=2.",
        ),
        (  # at r=8 the gains are shown as the same number, at r=2 they are not
            EQUAL,
            "On the validation split the gain is largest with the rate 0.002 at r=2. That is the "
            "edge of the grid for r=2. Several rates share the largest validation gain at r=8.",
        ),
        (
            dict.fromkeys(EQUAL, 0.0),
            "Several rates share the largest validation gain at r=2 and r=8.",
        ),
    ],
)
def test_the_best_rate_of_every_rank_is_named(
    gains: dict[tuple[int, float], float | None], said: str
) -> None:
    truth = Truth(num_items=20, ranks=(2, 8), lrs=(1e-3, 2e-3, 4e-3), full_lrs=(), seeds=(0,))
    arms = [
        arm.model_copy(update={"validation_gain": gains[arm.rank, arm.lr]})
        for arm in StudyView(*study_and_advice(truth)).arms("med")
        if (arm.rank, arm.lr) in gains
    ]
    assert rate_map.finding({"": arms}, POINTS) == said


def test_an_arm_with_a_gain_and_no_retention_is_not_called_validation_only() -> None:
    truth = Truth(num_items=20, lrs=(2e-3, 4e-3), seeds=(0,))
    labels = [t.spec.label for t in synthetic_study(truth).trials]
    missing = frozenset((label, "general") for label in labels if "r=8 lr=0.004" in label)
    assert missing
    figure = rate_map.draw_rate_map(
        StudyView(*study_and_advice(replace(truth, missing=missing))), "med"
    )
    shown = texts_at(figure, "0.004")
    assert shown["gain over base"]["r=8"].strip("()")[0] == "+"
    assert shown["retention change"]["r=8"] == "not scored"


def test_a_study_of_one_rate_is_told_so() -> None:
    figure = rate_map.draw_rate_map(StudyView(*study_and_advice(Truth(num_items=20))), "med")
    assert figure.plot is None
    assert "at one learning rate, 0.001" in figure.finding


def test_subjects_that_fell_most_stand_on_top(view: StudyView) -> None:
    figure = subjects.draw_subjects(view, "law")
    (drawn,) = figure.plot.data
    assert figure.choices[0].label == "general"
    means = [sum(row) / len(row) for row in drawn.z]
    assert means == pytest.approx(sorted(means))
    # Five subjects; three ranks at the rate chosen for each, and full fine-tuning.
    assert (len(drawn.y), len(drawn.x)) == (5, 4)
    assert len(figure.data) == 20
    found = view.recommendation.subjects[-1]
    row = cells(figure)[-1]
    assert row[:3] == (found.label, "general", found.subject)
    assert row[3] == 100 * found.change.value


def test_the_named_subject_has_some_items_and_its_task_is_drawn_first() -> None:
    """Of 60 items in four subjects each has 15; the subject of the largest fall gets 4 instead."""
    view = StudyView(*study_and_advice(Truth(subjects=4, retention=("general", "text"))))
    focus = view.focus("med")
    falls = {("general", "subject 0"): -0.9, ("text", "subject 1"): -0.8}

    def drawn(few: int, many: int) -> Figure:
        changes = []
        for change in view.recommendation.subjects:
            fall = falls.get((change.tested_on, change.subject), 0.0)
            items = few if change.subject == "subject 0" else many
            estimate = change.change.model_copy(update={"value": fall, "n": items})
            changes.append(change.model_copy(update={"change": estimate}))
        advice = view.recommendation.model_copy(update={"subjects": tuple(changes)})
        return subjects.draw_subjects(StudyView(view.study, advice), "med")

    figure = drawn(4, 15)
    assert [choice.label for choice in figure.choices] == ["text", "general"]
    assert figure.finding.startswith(
        f"{focus.label}: the lowest change is \N{MINUS SIGN}80.0 points on subject 1 (text, "
        "15 items)"
    )
    assert "90.0 points on subject 0 (general, 1 item)" in drawn(1, 1).finding


def test_without_subjects_there_is_no_map() -> None:
    view = StudyView(*study_and_advice(Truth(num_items=20, retention=())))
    assert subjects.draw_subjects(view, "med") is None
