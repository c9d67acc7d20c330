"""The plane, scores against rank, the training loss, and the maps of a study."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_studies import ordinary_study, study_and_advice, with_arms
from synthetic_study import Truth, with_own_trials, with_specs

from rankscope.advise.recommend import recommend
from rankscope.formatting import MAX_NAME, POINTS, score_text
from rankscope.records import BASE, GivenModel, Status
from rankscope.report.charts.heat_map import Grid, heat_map
from rankscope.report.charts.training_curves import _binned as binned
from rankscope.report.figures import plane, rate_map, transfer
from rankscope.report.figures.against_rank import draw_against_rank
from rankscope.report.figures.like_full import ALIKE, draw_like_full
from rankscope.report.figures.loss import draw_loss
from rankscope.report.figures.loss_gap import GAP, draw_loss_gap
from rankscope.report.study_view import StudyView


def test_plane_front_equals_the_definition(view: StudyView) -> None:
    points = {
        a.label: (a.gain.value, a.forgetting.value)
        for a in view.arms("med")
        if a.gain and a.forgetting
    }
    front = view.front("med")
    for label, (gain, fall) in points.items():
        beaten = any(g >= gain and f <= fall and (g, f) != (gain, fall) for g, f in points.values())
        assert (label in front) != beaten
    gains = [points[label][0] for label in front]
    assert gains == sorted(gains)


def test_the_good_corner_of_the_plane_is_top_right(view: StudyView) -> None:
    figure = plane.draw_plane(view, "med")
    assert figure.plot.layout.yaxis.autorange != "reversed"
    assert figure.plot.layout.yaxis.title.text == "retention change, points"
    ring = [t for t in figure.plot.data if t.marker.symbol == "circle-open"]
    advice = view.advice("med")
    assert ring[0].y[0] == pytest.approx(-100 * advice.chosen.forgetting.value)


def test_a_loss_is_not_called_a_gain(view: StudyView) -> None:
    assert plane.draw_plane(view, "med").finding.startswith("The largest gain is +")
    worse = Truth(accuracy=lambda rank, lr: 0.1, num_items=60)
    figure = plane.draw_plane(StudyView(*study_and_advice(worse)), "med")
    assert figure.finding.startswith("Nothing gained; the highest change is \N{MINUS SIGN}")


def test_every_point_is_named_and_two_full_arms_by_their_rates() -> None:
    view = StudyView(*study_and_advice(Truth(full_lrs=(2e-4, 5e-4), num_items=60)))
    figure = plane.draw_plane(view, "med")
    texts = [text for trace in figure.plot.data for text in trace.text or ()]
    assert set(texts) == {"base", "r=2", "r=8", "r=32", "full 0.0002", "full 0.0005"}


def test_points_of_the_first_panel_are_the_arms_scores(view: StudyView) -> None:
    figure = draw_against_rank(view, "med")
    drawn = {
        (trace.hovertext[i].split("<b>")[1].split("</b>")[0]): trace.y[i]
        for trace in figure.plot.data
        if trace.mode == "lines+markers" and trace.yaxis == "y"
        for i in range(len(trace.x))
    }
    arms = {a.label: 100 * a.score.value for a in view.arms("med") if a.rank and a.score}
    assert drawn == pytest.approx(arms)
    full = view.best_full("med")
    lines = [t for t in figure.plot.data if t.text is not None and "full" in t.text]
    assert list(lines[0].y) == pytest.approx([100 * full.score.value] * 2)
    base, best = view.base("med").score, view.best_lora("med")
    for text in (
        f"{score_text(full.score.value, POINTS)} with {full.label}",
        f"{score_text(best.score.value, POINTS)} with {best.label}",
        f"{score_text(base, POINTS)} with the base",
    ):
        assert text in figure.finding


def test_arms_that_no_line_over_rank_joins_stand_side_by_side() -> None:
    """One rank at two rates: each arm has a place and a name, and its interval as a bar."""
    side = StudyView(*study_and_advice(Truth(ranks=(8,), lrs=(1e-3, 3e-3), retention=())))
    drawn = draw_against_rank(side, "med")
    assert drawn.title == "Measured score and retention by configuration, med"
    ticks = drawn.plot.layout.xaxis
    assert list(ticks.ticktext) == ["r=8 lr=0.001", "r=8 lr=0.003"]
    points = [trace for trace in drawn.plot.data if trace.error_y.array is not None]
    assert [trace.x for trace in points] == [(0.0,), (1.0,)] == [(v,) for v in ticks.tickvals]
    for arm, trace in zip(side.arms("med"), points, strict=False):
        ends = trace.y[0] - trace.error_y.arrayminus[0], trace.y[0] + trace.error_y.array[0]
        assert ends == pytest.approx((100 * arm.score.low, 100 * arm.score.high))
    # Names that are cut to the same text keep their places.
    names = {arm.lr: "x" * 80 + arm.label for arm in side.arms("med")}
    given = {lr: GivenModel(name=name, folder="", sha256="") for lr, name in names.items()}
    study = with_specs(side.study, lambda spec: {"given": given[spec.lr]})
    renamed = StudyView(study, side.recommendation)
    renamed = with_arms(renamed, lambda _, arm: {"label": names[arm.lr]})
    cut = draw_against_rank(renamed, "med").plot.layout.xaxis
    assert (len(set(cut.ticktext)), cut.tickvals) == (1, (0.0, 1.0))
    # A second rank makes a line, and the axis is rank's again.
    line = StudyView(*study_and_advice(Truth(ranks=(8, 32), lrs=(1e-3,), retention=())))
    assert list(draw_against_rank(line, "med").plot.layout.xaxis.ticktext) == ["8", "32"]


def test_names_of_lines_that_lie_close_stand_on_two_sides() -> None:
    """Where full fine-tuning forgets next to nothing its line lies on the base's."""

    def forgetting(rank: int | None, lr: float) -> float:
        return 0.0 if rank is None else 0.2

    for forgot, sides in (
        (forgetting, {"top left", "bottom left"}),
        (lambda rank, lr: 0.3 if rank is None else 0.1, {"top left"}),
    ):
        view = StudyView(*study_and_advice(Truth(forgetting=forgot)))
        plot = draw_against_rank(view, "med").plot
        lines = [t for t in plot.data if t.text is not None and t.yaxis == "y2"]
        found = {t.text[1]: t.textposition for t in lines}
        assert set(found) == {"full", "base"}
        assert set(found.values()) == sides


def test_changes_are_correlated_seed_by_seed_with_those_of_full(view: StudyView) -> None:
    drawn, full, arm = draw_like_full(view, "med"), view.best_full("med"), view.best_lora("med")
    base = view.study.items[BASE, "med", "test"].gold_logprobs

    def changed(of: object) -> list[np.ndarray]:
        ids = [trial.spec.trial_id for trial in view.trials(of)]
        return [view.study.items[i, "med", "test"].gold_logprobs - base for i in ids]

    one, two, three = changed(full)
    ceiling = np.mean(
        [np.corrcoef(*pair)[0, 1] for pair in ((one, two), (one, three), (two, three))]
    )
    alike = np.mean([np.corrcoef(a, b)[0, 1] for a in changed(arm) for b in (one, two, three)])
    shown = drawn.data.set_index("arm")[ALIKE]
    assert shown[full.label] == pytest.approx(ceiling)
    assert shown[arm.label] == pytest.approx(alike)
    single = StudyView(*study_and_advice(Truth(seeds=(0,), num_items=60)))
    assert draw_like_full(single, "med") is None


def test_the_gap_of_the_loss_is_of_the_last_epoch_and_needs_two() -> None:
    view = StudyView(*study_and_advice(Truth(metric="log_probability", num_items=60, seeds=(0,))))
    for rows in (80, 160):  # Of 40 steps of 8 rows: the last 10 steps, or the last 20
        trials = tuple(
            replace(t, train=t.train.model_copy(update={"rows": rows})) for t in view.study.trials
        )
        changed = replace(view, study=replace(view.study, trials=trials))
        figure = draw_loss_gap(changed, "med")
        (trial,) = changed.trials(view.best_lora("med"))
        steps = rows // 8
        loss = np.mean([p.loss for p in trial.train.losses[-steps:]])
        score = view.study.evals[trial.spec.trial_id, "med", "test"].score
        shown = figure.data.set_index("arm")[GAP]
        assert shown[trial.spec.arm_label] == pytest.approx(loss + score)
    once = tuple(
        replace(t, train=t.train.model_copy(update={"rows": 161})) for t in view.study.trials
    )
    assert draw_loss_gap(replace(view, study=replace(view.study, trials=once)), "med") is None


def test_the_ends_are_of_the_arms_drawn(view: StudyView) -> None:
    figure = draw_loss(view, "med")
    drawn = {arm.label for arm in view.focus_arms("med")}
    assert drawn == set(figure.data["arm"]) < {arm.label for arm in view.arms("med")}
    assert figure.finding.startswith("Loss at the end of training: ")
    one = draw_loss(StudyView(*study_and_advice(Truth(ranks=(8,), full_lrs=()))), "med")
    assert re.fullmatch(r"Loss at the end of training: \S+ \(r=8 lr=0.001\)\.", one.finding)


def test_bins_keep_short_curves_and_thin_long_ones(view: StudyView) -> None:
    arm = next(a for a in view.arms("med") if a.seeds == 3)
    records = [t.train for t in view.trials(arm) if t.train]
    points = [(p.step, p.loss) for record in records for p in record.losses]
    curve = binned(points, 10_000)
    by_step = [np.mean([r.losses[i].loss for r in records]) for i in range(records[0].steps)]
    assert [step for step, _ in curve] == [p.step for p in records[0].losses]
    assert [value for _, value in curve] == pytest.approx(by_step)
    thin = binned(points, 8)
    assert len(thin) == 8
    # Forty steps fall into eight bins of five, so the mean of bins is the mean of steps.
    assert np.mean([value for _, value in thin]) == pytest.approx(np.mean(by_step))


def test_map_cells_are_gains_on_the_diagonal_and_transfer_beside_it(view: StudyView) -> None:
    figure = transfer.draw_transfer(view, POINTS)
    assert figure.choices[0].label == "answer of each task"
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
        ("full" if arm.is_full else f"r={arm.rank}", f"{arm.lr:g}"): 100 * arm.expected.net.value
        for arm in view.arms("med")
    }
    assert {place: value for place, value in at.items() if value is not None} == expected
    chosen = view.advice("med").chosen
    framed = grid.y[round(sum(frame.y[:4]) / 4)], grid.x[round(sum(frame.x[:4]) / 4)]
    assert at[framed] == 100 * chosen.expected.net.value
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
    assert sorted(c.label for c in choices) == ["dora", "lora"]  # the better one first
    assert sorted(framed) == sorted(own)


@pytest.mark.parametrize(
    ("status", "words"),
    [("diverged", "diverged"), ("skipped", "not begun")],
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
