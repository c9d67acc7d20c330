"""The maps of learning rate x rank, of train x test, and of retention by subject."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from report_studies import ordinary_study, study_and_advice
from synthetic_study import Truth, with_own_trials, with_specs

from rankscope.advise.recommend import recommend
from rankscope.formatting import MAX_NAME, POINTS
from rankscope.records import Status
from rankscope.report.charts.heat_map import Grid, heat_map
from rankscope.report.figures import rate_map, transfer
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


def test_a_cell_is_an_expected_net_gain_and_the_frame_is_around_the_recommended_arm(
    view: StudyView,
) -> None:
    figure = rate_map.draw_rate_map(view, "med")
    grid, frame = figure.plot.data
    assert (tuple(grid.x), tuple(grid.y)) == (
        ("0.0005", "0.001", "0.003"),
        ("r=2", "r=8", "r=32", "full"),
    )
    at = {(y, x): grid.z[j][i] for j, y in enumerate(grid.y) for i, x in enumerate(grid.x)}
    expected = {
        ("full" if arm.is_full else f"r={arm.rank}", f"{arm.lr:g}"): 100 * arm.expected.net
        for arm in view.arms("med")
    }
    assert {place: value for place, value in at.items() if value is not None} == expected
    chosen = view.advice("med").chosen
    framed = grid.y[round(sum(frame.y[:4]) / 4)], grid.x[round(sum(frame.x[:4]) / 4)]
    assert at[framed] == 100 * chosen.expected.net
    for rank in view.ranks:
        _, rate = max((at[f"r={rank}", rate], rate) for rate in grid.x[1:])
        assert re.search(rf"{rate} at [^;.]*r={rank}\b", figure.finding)
    assert figure.finding.endswith(" That is the edge of the grid for r=2, r=8 and r=32.")


def test_each_variant_has_a_map_and_the_recommended_arms_has_the_frame() -> None:
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
    choices = rate_map.draw_rate_map(view, "med").choices
    framed = [c.label for c in choices if len(c.traces) == 2]
    own = [advice.chosen.method] if advice.chosen.rank else ["lora", "dora"]
    assert ([c.label for c in choices], framed) == (["lora", "dora"], own)


@pytest.mark.parametrize(
    ("status", "words"),
    [("diverged", "diverged"), ("stopped", "stopped early"), ("skipped", "not begun")],
)
def test_a_cell_without_a_result_says_how_its_arm_ended(status: Status, words: str) -> None:
    truth = Truth(num_items=20, lrs=(2e-3, 4e-3), failed={(8, 4e-3, s): status for s in range(3)})
    grid = rate_map.draw_rate_map(StudyView(*study_and_advice(truth)), "med").plot.data[0]
    row, column = tuple(grid.y).index("r=8"), tuple(grid.x).index("0.004")
    assert grid.z[row][column] is None
    assert grid.text[row][column] == grid.hovertext[row][column] == words


@pytest.mark.parametrize("ranks", [(2, 8), ()])
def test_without_two_rates_no_rate_is_called_the_best(ranks: tuple[int, ...]) -> None:
    view = StudyView(*study_and_advice(Truth(num_items=20, ranks=ranks)))
    figure = rate_map.draw_rate_map(view, "med")
    assert (figure.plot, figure.finding) == (None, rate_map.UNKNOWN_RATES)


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
