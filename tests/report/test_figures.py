"""What the figures draw is what the records say."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic_study import Truth

from rankscope.advise.recommend import recommend
from rankscope.formatting import POINTS, number
from rankscope.report.answer import answer
from rankscope.report.charts.figure import Figure
from rankscope.report.charts.labels import Label, place
from rankscope.report.figures import accuracy, plane, spectra, training, transfer
from rankscope.report.figures.plane import gain_and_fall, plane_front
from rankscope.report.figures.training import binned_losses
from rankscope.report.study_page import figure_data, sections
from rankscope.report.study_view import StudyView
from rankscope.report.style import FULL, MUTED, dark_colors

from .studies import ORDINARY, ordinary_study, study_and_advice


@pytest.fixture(scope="module")
def view() -> StudyView:
    return StudyView(*ordinary_study())


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


@pytest.fixture(scope="module")
def figures(view: StudyView) -> list[Figure]:
    return [figure for section in sections(view) for figure in section.figures]


def test_every_figure_has_a_plot_a_finding_and_numbers(figures: list[Figure]) -> None:
    assert len({figure.key for figure in figures}) == len(figures)
    for figure in figures:
        assert figure.plot is not None, figure.title
        assert figure.finding.endswith("."), figure.title
        assert figure.table.rows, figure.title
        widths = {len(row) for row in figure.table.rows}
        assert widths == {len(figure.table.columns)}, figure.title


def test_arms_that_no_line_over_rank_joins_stand_side_by_side() -> None:
    """One rank at two rates: each arm has a place and a name, and its interval as a bar."""
    side = StudyView(*study_and_advice(Truth(ranks=(8,), lrs=(1e-3, 3e-3))))
    drawn = accuracy.draw_in_domain(side, "med")
    assert drawn.title == "In-domain score by arm, med"
    assert "Bars are 95 % intervals." in drawn.how_to_read
    assert drawn.plot is not None
    ticks = drawn.plot.layout.xaxis
    assert list(ticks.ticktext) == ["r=8 lr=0.001", "r=8 lr=0.003"]
    points = [trace for trace in drawn.plot.data if trace.error_y.array is not None]
    assert [trace.x for trace in points] == [(0.0,), (1.0,)] == [(v,) for v in ticks.tickvals]
    for arm, trace in zip(side.arms("med"), points, strict=False):
        assert arm.score is not None
        low, high = trace.y[0] - trace.error_y.arrayminus[0], trace.y[0] + trace.error_y.array[0]
        assert (low, high) == pytest.approx(
            (100 * (arm.score.low or 0), 100 * (arm.score.high or 0))
        )
    # Names that are cut to the same text keep their places.
    (told,) = side.recommendation.advice
    arms = tuple(a.model_copy(update={"label": "x" * 80 + a.label}) for a in told.arms)
    renamed = side.recommendation.model_copy(
        update={"advice": (told.model_copy(update={"arms": arms}),)}
    )
    cut = accuracy.draw_in_domain(StudyView(side.study, renamed), "med").plot
    assert cut is not None
    assert len(set(cut.layout.xaxis.ticktext)) == 1
    assert cut.layout.xaxis.tickvals == (0.0, 1.0)
    # A second rank makes a line, and the axis is rank's again.
    line = StudyView(*study_and_advice(Truth(ranks=(8, 32), lrs=(1e-3,))))
    over_rank = accuracy.draw_in_domain(line, "med")
    assert over_rank.title == "In-domain score against rank, med"
    assert over_rank.plot is not None
    assert list(over_rank.plot.layout.xaxis.ticktext) == ["8", "32"]


def test_every_color_of_a_figure_has_a_dark_partner(view: StudyView, figures: list[Figure]) -> None:
    known = dark_colors(view.ranks).keys() | {"rgba(0,0,0,0)"}
    found = {
        text
        for figure in figures
        for text in strings(figure_data(figure))
        if re.fullmatch(r"#[0-9a-f]{6}|rgba?\([^)]*\)", text)
    }
    assert found <= known
    assert {FULL.light, MUTED.light} <= found


def test_in_domain_points_are_the_arms_scores(view: StudyView) -> None:
    figure = accuracy.draw_in_domain(view, "med")
    drawn = {
        (trace.hovertext[i].split("<b>")[1].split("</b>")[0]): trace.y[i]
        for trace in figure.plot.data
        if trace.mode == "lines+markers"
        for i in range(len(trace.x))
    }
    arms = {a.label: 100 * a.score.value for a in view.arms("med") if a.rank and a.score}
    assert drawn == pytest.approx(arms)
    full = view.best_full("med")
    lines = [t for t in figure.plot.data if t.text is not None and "full" in t.text]
    assert full is not None
    assert full.score is not None
    assert list(lines[0].y) == pytest.approx([100 * full.score.value] * 2)


def test_an_arm_has_one_color_in_every_figure(figures: list[Figure]) -> None:
    colors: dict[str, set[str]] = {}
    for figure in figures:
        for trace in figure.plot.data:
            shades = trace.marker.color if trace.type == "scatter" else None
            if isinstance(shades, tuple) and trace.hovertext:
                for text, shade in zip(trace.hovertext, shades, strict=True):
                    colors.setdefault(text.split("</b>")[0], set()).add(shade)
    assert len(colors) == len(ORDINARY.ranks) * len(ORDINARY.lrs)
    assert all(len(shades) == 1 for shades in colors.values())
    by_rank = {re.search(r"r=\d+", arm)[0]: shades for arm, shades in colors.items()}  # type: ignore[index]
    assert len(set(itertools.chain(*by_rank.values()))) == len(ORDINARY.ranks)


def test_map_cells_are_gains_on_the_diagonal_and_transfer_beside_it(view: StudyView) -> None:
    figure = transfer.draw(view, POINTS)
    assert figure.choices[0].label == "best arm of each task"
    grid = figure.plot.data[0]
    cells = {(y, x): grid.z[j][i] for j, y in enumerate(grid.y) for i, x in enumerate(grid.x)}
    for task in ("med", "law"):
        arm = view.focus(task)
        assert arm is not None
        assert arm.gain is not None
        other = {"med": "law", "law": "med"}[task]
        assert cells[task, task] == pytest.approx(100 * arm.gain.value)
        assert cells[task, other] == pytest.approx(100 * arm.transfer[other].value)
        assert cells[task, "general"] == pytest.approx(100 * arm.retention["general"].value)
    assert grid.zmin == -grid.zmax
    assert grid.zmax >= max(abs(value) for value in cells.values())


def test_plane_front_equals_the_definition(view: StudyView) -> None:
    arms = [a for a in view.arms("med") if a.gain and a.forgetting]
    front = {a.label for a in plane_front(arms)}
    for arm in arms:
        gain, fall = gain_and_fall(arm)
        beaten = any(
            g >= gain and f <= fall and (g, f) != (gain, fall) for g, f in map(gain_and_fall, arms)
        )
        assert (arm.label in front) != beaten
    gains = [gain_and_fall(a)[0] for a in plane_front(arms)]
    assert gains == sorted(gains)


def test_the_good_corner_of_the_plane_is_top_right(view: StudyView) -> None:
    figure = plane.draw(view, "med")
    assert figure.plot.layout.yaxis.autorange == "reversed"
    ring = [t for t in figure.plot.data if t.marker.symbol == "circle-open"]
    advice = view.advice("med")
    assert advice is not None
    assert advice.chosen is not None
    assert advice.chosen.forgetting is not None
    assert ring[0].y[0] == pytest.approx(100 * advice.chosen.forgetting.value)


def test_the_norms_sentence_is_the_fit_in_doublings(view: StudyView) -> None:
    figure = spectra.draw_norm(view, "med")
    series = view.focus_series("med")
    assert series is not None
    norms = [
        np.mean([t.spectra.frobenius for t in view.trials(arm) if t.spectra]) for arm in series.arms
    ]
    slope, start = np.polyfit(np.log2([arm.rank for arm in series.arms]), norms, 1)
    assert f"= {number(start)} + {number(slope)} log2 r leaves" in figure.finding


def test_binned_losses_keep_short_curves_and_thin_long_ones(view: StudyView) -> None:
    arm = next(a for a in view.arms("med") if a.seeds == 3)
    trials = view.trials(arm)
    records = [t.train for t in trials if t.train]
    curve = binned_losses(trials, points=10_000)
    by_step = [np.mean([r.losses[i].loss for r in records]) for i in range(records[0].steps)]
    assert [step for step, _ in curve] == [p.step for p in records[0].losses]
    assert [loss for _, loss in curve] == pytest.approx(by_step)
    thin = binned_losses(trials, points=8)
    assert len(thin) == 8
    # Forty steps fall into eight bins of five, so the mean of bins is the mean of steps.
    assert np.mean([loss for _, loss in thin]) == pytest.approx(np.mean(by_step))


def test_intruders_of_a_layer_are_summed_over_its_matrices(view: StudyView) -> None:
    figure = spectra.draw_intruders(view, "med")
    grid = figure.plot.data[0]
    for row, arm in enumerate(view.focus_arms("med")):
        records = [t.spectra for t in view.trials(arm) if t.spectra]
        for column, layer in enumerate(grid.x):
            counts = [
                sum(m.intruders for m in s.matrices if m.layer == int(layer)) for s in records
            ]
            assert grid.z[row][column] == pytest.approx(np.mean(counts))


def test_every_similarity_has_its_chance_level(view: StudyView) -> None:
    figure = spectra.draw_similarity(view, "med")
    assert figure.plot is not None
    record = next(t.spectra for t in view.study.trials if t.spectra)
    (matrix, *_) = record.matrices  # all are of one shape
    drawn = [trace.y[0] for trace in figure.plot.data if "unrelated" in (trace.text or ())]
    chances = (matrix.chance_subspace, matrix.chance_max, matrix.chance_index)
    assert drawn == pytest.approx([sum(pair) / 2 for pair in chances])


def test_cost_names_the_share_of_full_fine_tuning(view: StudyView) -> None:
    arm, full = view.focus("med"), view.best_full("med")
    assert arm is not None
    assert full is not None
    share = 100 * arm.trainable_parameters / full.trainable_parameters
    assert f"{share:.3g} % of full" in training.draw_cost(view, "med").finding


def test_labels_never_overlap_and_the_first_is_kept() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.uniform(0, 1, (40, 2))]
    labels = [Label(x, y, f"r={i}") for i, (x, y) in enumerate(points)]
    placed = place(labels, points, (0.0, 1.0), (1.0, 0.0))
    assert 10 < len(placed) < 40
    assert place(labels[:1], points[:1], (0.0, 1.0), (1.0, 0.0)) == [(labels[0], "top center")]
    # Two names of one point cannot both stand above it.
    twins = [Label(0.5, 0.5, "r=8"), Label(0.5, 0.5, "full")]
    sides = [side for _, side in place(twins, points[:0], (0.0, 1.0), (0.0, 1.0))]
    assert len(set(sides)) == 2


@pytest.mark.parametrize(
    ("alphas", "lines"),
    [
        ({2: 4.0, 8: 16.0, 32: 64.0}, {"lr=0.001"}),
        ({2: 2.0, 8: 8.0, 32: 32.0}, {"lr=0.001 alpha=1r"}),
        ({2: 16.0, 8: 16.0, 32: 16.0}, {"lr=0.001 alpha=16"}),
    ],
)
def test_lines_over_rank_follow_what_alpha_does(alphas: dict[int, float], lines: set[str]) -> None:
    study, _ = study_and_advice(Truth(num_items=20, seeds=(0,)))
    study = replace(
        study,
        trials=tuple(
            replace(t, spec=t.spec.model_copy(update={"alpha": alphas[t.spec.rank]}))
            if t.spec.rank
            else t
            for t in study.trials
        ),
    )
    view = StudyView(study, recommend(study))
    series = view.series("med")
    assert {s.label for s in series} == lines
    assert [[a.rank for a in s.arms] for s in series] == [[2, 8, 32]]


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
    assert advice is not None
    assert advice.chosen is None
    focus, full, lora = view.focus("med"), view.best_full("med"), view.best_lora("med")
    assert focus is not None
    assert full is not None
    assert lora is not None
    assert (lora.rank, full.lr) == (2, 1e-4)
    assert focus.label == advice.subject_label
    gain = next(r for r in advice.reasons if r.kind == "gain")
    assert focus.gain is not None
    assert gain.values["gain"] == focus.gain.value
    assert answer(view, "med").subject.endswith(f"speaks of, {focus.label}")
    # A recommendation written before the labels were: by validation score, as it was then.
    unnamed = advice.model_copy(
        update={"subject_label": None, "best_full_label": None, "best_lora_label": None}
    )
    older = StudyView(view.study, view.recommendation.model_copy(update={"advice": (unnamed,)}))
    assert (older.best_full("med") or pytest.fail("no arm")).lr == 1e-3


def test_names_of_lines_that_lie_close_stand_on_two_sides() -> None:
    """Where full fine-tuning forgets next to nothing its line lies on the base's."""

    def forgetting(rank: int | None, lr: float) -> float:
        return 0.0 if rank is None else 0.2

    for forgot, sides in (
        (forgetting, {"top left", "bottom left"}),
        (lambda rank, lr: 0.3 if rank is None else 0.1, {"top left"}),
    ):
        view = StudyView(*study_and_advice(Truth(forgetting=forgot)))
        plot = accuracy.draw_retention(view, "med").plot
        assert plot is not None
        found = {t.text[1]: t.textposition for t in plot.data if t.text is not None}
        assert set(found) == {"full", "base"}
        assert set(found.values()) == sides
