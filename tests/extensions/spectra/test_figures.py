"""Figures and tables of weights, of a study and of given models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import opened
from inspections import HOSTILE, given, page_of
from playwright.sync_api import Browser
from report_studies import ordinary_study

from rankscope.advise.recommend import recommend
from rankscope.extensions.spectra import figures
from rankscope.extensions.spectra.inspect import write_analyses
from rankscope.extensions.spectra.record import SpectraRecord
from rankscope.formatting import number
from rankscope.report.analyzed_models import arms_analyzed, given_analyzed
from rankscope.report.charts.figure import Figure
from rankscope.report.page import figure_data
from rankscope.report.study_page import render_study
from rankscope.report.study_view import StudyView

from ...report.figures.test_every_figure import assert_lawful
from ...report.test_browser import assert_whole, written
from .records import inspected, with_matrices, with_spectra


@pytest.fixture(scope="module")
def view() -> StudyView:
    study, advice = ordinary_study()
    return StudyView(with_spectra(study), advice)


def test_intruder_dimensions_are_summed_over_the_matrices_of_a_model(view: StudyView) -> None:
    figure = figures.draw_weight_maps(arms_analyzed(view, "med"))
    for arm in view.focus_arms("med"):
        records = [s for t in view.trials(arm) if (s := t.analysis(SpectraRecord))]
        total = np.mean([sum(m.intruders for m in s.matrices) for s in records])
        (part,) = (p for p in figure.finding.rstrip(".").split("; ") if f"{arm.label}: " in p)
        assert part.endswith(f", the number of intruder dimensions {number(total)}")


def test_every_similarity_has_its_chance_level(view: StudyView) -> None:
    figure = figures.draw_similarity(arms_analyzed(view, "med"))
    record = next(s for t in view.study.trials if (s := t.analysis(SpectraRecord)))
    (matrix, *_) = record.matrices  # all are of one shape
    drawn = [trace.y[0] for trace in figure.plot.data if "unrelated" in (trace.text or ())]
    chances = (matrix.chance_subspace, matrix.chance_max, matrix.chance_index)
    assert drawn == pytest.approx([sum(chances[0]) / 2])
    for title, pair in zip(figures.DEFINITIONS, chances, strict=True):
        told = figure.data[f"unrelated vectors, {title}"].tolist()
        assert told == pytest.approx([sum(pair) / 2] * len(told))


def test_heat_maps_have_every_matrix_in_its_place() -> None:
    models = given_analyzed(inspected("r4"))
    relative = figures.draw_weight_maps(models)
    side = figures.draw_modules(models)
    data = json.loads(json.dumps(figure_data(relative)))
    first, second, *_ = data["data"]
    assert first["x"] == ["other", "0", "1"]
    assert first["y"] == ["q_proj", "lm_head"]
    assert first["z"] == [[None, 0.1, 0.2], [0.05, None, None]]
    assert second["z"][0] == [None, 0.1, 1.2]
    assert first["zmax"] == second["zmax"] == 1.2
    assert len(relative.choices) == 2 * len(figures.MAPPED)
    assert relative.choices[1].label == "size of the update, full"
    assert len(relative.data) == 6
    assert side.data["chance, subspace"][0] == pytest.approx((0.125 + 0.25) / 2)


def test_a_map_shows_its_values_or_the_scale_of_its_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    models = given_analyzed(inspected("r4"))  # layers 0 and 1, and a matrix outside of them
    for most, scale in ((3, False), (2, True)):
        monkeypatch.setattr(figures, "MAX_LAYERS_WITH_VALUES", most)
        figure = figures.draw_weight_maps(models)
        for trace in figure.plot.data:
            assert (trace.showscale, bool(trace.texttemplate)) == (scale, not scale)


def test_adapters_of_one_kind_form_a_line_with_the_fit_of_their_norms() -> None:
    found = inspected("r4")
    first, full = found.trials
    by_rank = {2: 1.0, 4: 2.1, 8: 3.0}
    trials = [full]
    for rank, norm in by_rank.items():
        (one, *_) = first.analysis(SpectraRecord).matrices
        sized = one.model_copy(update={"frobenius": norm})
        trials.append(with_matrices(given(f"r{rank}", rank), sized))
    models = given_analyzed(replace(found, trials=tuple(trials)))
    figure = figures.draw_update_norm(models)
    assert figure.title == "Size of the update against rank"
    assert (
        "The fit 0.0333 + 1 log2 r misses these by 0.0471 (root mean square), a power law r^0.792 "
        "by 0.19: the logarithm is closer." in figure.finding
    )
    assert "Full fine-tuning moves the weights by 1.2" in figure.finding
    # One adapter has no line over rank.
    assert figures.draw_update_norm(given_analyzed(found)) is None


def test_inspected_models_have_tables(tmp_path: Path) -> None:
    write_analyses(inspected("r4"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "matrices.parquet",
        "layers.parquet",
        "modules.parquet",
    }


def test_a_page_of_given_models_is_whole(browser: Browser, tmp_path: Path) -> None:
    assert_whole(browser, page_of(inspected(HOSTILE)), tmp_path, at_least=2)


def test_without_records_the_page_says_so() -> None:
    study, advice = ordinary_study()
    assert "No run has a spectra record" in render_study(StudyView(study, advice))


def test_every_figure_keeps_the_laws(view: StudyView) -> None:
    found = inspected("r4")
    for lawful in (view, StudyView(found, recommend(found))):
        assert_lawful(lawful)


@pytest.fixture(scope="module")
def whole(view: StudyView, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Figure]]:
    return written(render_study(view), tmp_path_factory.mktemp("whole")), []


def test_a_fold_draws_its_figures_when_it_opens(
    browser: Browser, whole: tuple[Path, list[Figure]]
) -> None:
    with opened(browser, whole[0], viewport={"width": 1400, "height": 900}) as found:
        folded = found.page.query_selector_all(".fold [data-figure]")
        assert len(folded) > 1
        assert found.page.query_selector_all(".fold .main-svg") == []
        link = found.page.query_selector("nav.contents a[href='#weights']")
        assert link.is_visible()
        link.click()
        found.unfold()
        assert len(found.page.query_selector_all(".fold .plot:has(.main-svg)")) == len(folded)
