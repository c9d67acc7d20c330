"""Figures and tables of attention heads, of a study and of given models."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from inspections import HOSTILE, inspection, page_of
from playwright.sync_api import Browser
from report_studies import cells, ordinary_study

from rankscope.advise.recommend import recommend
from rankscope.extensions.heads.figures import draw_head_concentration, draw_heads_compared
from rankscope.extensions.heads.record import HeadAblation, HeadsRecord
from rankscope.report.analysis_tables import analysis_tables
from rankscope.report.analyzed_models import arms_analyzed, given_analyzed
from rankscope.report.charts.figure import Figure
from rankscope.report.figures import draw_section
from rankscope.report.page import figure_data
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import write_tables

from ...report.figures.test_every_figure import assert_lawful
from ...report.test_browser import assert_whole
from .records import HEADS, LAYERS, ablation, inspect_heads, with_heads


@pytest.fixture(scope="module")
def view() -> StudyView:
    study, advice = ordinary_study()
    return StudyView(with_heads(study), advice)


def test_without_records_there_is_no_figure() -> None:
    assert draw_heads_compared(arms_analyzed(StudyView(*ordinary_study()), "med")) is None


def test_maps_are_means_over_seeds_of_lora_and_full(view: StudyView) -> None:
    figure = draw_heads_compared(arms_analyzed(view, "med"))
    arms = [view.best_lora("med"), view.best_full("med")]
    assert figure.choices[0].label.startswith("query heads moved")
    for arm, trace in zip(arms, figure.choices[0].traces, strict=True):
        grid = np.array(figure.plot.data[trace].z, dtype=float)
        found = [h for t in view.trials(arm) if (h := t.analysis(HeadsRecord))]
        expected = np.mean(
            [[c.relative for c in r.changes if c.module == "q_proj"] for r in found], 0
        )
        assert grid == pytest.approx(expected)
    shown = {place for choice in figure.choices for place in choice.traces}
    assert shown == set(range(len(figure.plot.data)))
    assert [bool(trace.visible) for trace in figure.plot.data][:3] == [True, True, False]


def test_the_sentence_names_the_head_that_moved_most(view: StudyView) -> None:
    figure = draw_heads_compared(arms_analyzed(view, "med"))
    assert f"layer 2 head {HEADS - 1} in " in figure.finding
    assert "ran in bfloat16, whose rounding" in figure.caption
    values = [row for row in cells(figure) if row[1].startswith("query heads moved")]
    assert len(values) == 2 * 3 * HEADS
    # Entropy that is unknown is no zero.
    entropy = [row for row in cells(figure) if row[1] == "attention entropy, change"]
    assert len(entropy) == 2 * (3 * HEADS - 1)


def head_figures_of(*ablations: HeadAblation) -> dict[str, Figure]:
    models = given_analyzed(inspect_heads(inspection("r4"), *ablations))
    return {figure.key: figure for figure in draw_section("heads", "models", models)}


def test_heads_are_maps_of_layers_and_heads() -> None:
    figures = head_figures_of()
    assert list(figures) == ["heads"]
    (figure,) = figures.values()
    data = json.loads(json.dumps(figure_data(figure)["data"]))
    shown = {c.label.split(":")[0]: data[c.traces[0]] for c in figure.choices}
    # No k_proj or o_proj was changed: they are not offered.
    assert "key heads moved" not in shown
    assert shown["query heads moved"]["z"] == [[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]]
    assert shown["value heads moved"]["z"] == [[0.1, 0.2], [0.2, 0.3]]
    before, after = (shown[f"importance {when} training"] for when in ("before", "after"))
    assert (before["z"][1][3], after["z"][1][3]) == (0.4, 0.8)
    change = shown["importance, change"]
    assert change["z"][1][3] == pytest.approx(0.4)
    assert change["zmin"] == -change["zmax"]
    assert shown["importance of key/value heads"]["z"] == [[0.2, 0.4], [0.2, 0.4]]
    assert shown["attention entropy before training"]["z"][0][3] is None  # unknown is no zero
    assert "layer 1 head 3 in r4, 0.5" in figure.finding


def test_an_update_in_few_heads_counts_few(view: StudyView) -> None:
    # |dW_h| is 2 (1 + layer + head) in the first model of the inspection.
    (record,) = [
        h for t in inspect_heads(inspection("r4")).trials if (h := t.analysis(HeadsRecord))
    ]
    assert record.energies(("q_proj", "o_proj")) == [4, 16, 36, 64, 16, 36, 64, 100]
    assert record.energies(("k_proj", "v_proj")) == [4, 16, 16, 36]  # k_proj did not change
    figure = draw_head_concentration(arms_analyzed(view, "med"))
    arm = view.best_lora("med")
    of_seeds = []
    for trial in view.trials(arm):
        parts = trial.analysis(HeadsRecord).energies(("q_proj",))
        shares = [part / sum(parts) for part in parts]
        of_seeds.append(math.prod(share**-share for share in shares))
    shown = figure.data.set_index("arm").loc[arm.label, "effective number of query heads"]
    assert shown == pytest.approx(sum(of_seeds) / len(of_seeds))
    assert f"of {3 * HEADS}: " in figure.finding
    # One adapter has no line over rank.
    assert draw_head_concentration(given_analyzed(inspect_heads(inspection("r4")))) is None


def test_ablation_sets_the_trained_task_against_others() -> None:
    figures = head_figures_of(ablation("trained", 3.0), ablation("other", 0.5))
    ablated = figures["heads-ablated"]
    assert [c.label for c in ablated.choices] == ["r4: trained", "r4: other"]
    before, after, difference = json.loads(json.dumps(figure_data(ablated)["data"]))[:3]
    assert before["z"][1] == [0.01, 0.02, 0.03, 0.04]
    assert after["z"][1] == [0.03, 0.06, 0.09, 0.12]
    assert difference["z"][1] == [0.02, 0.04, 0.06, 0.08]
    # Each task has colors of its own: the second one's costs are a third.
    ends = [trace["zmax"] for trace in json.loads(json.dumps(figure_data(ablated)["data"]))]
    assert ends == [0.12, 0.12, 0.08, 0.04, 0.04, 0.02]
    assert cells(ablated)[7] == ("r4", 1, 3, "trained", 0.04, 0.12, 0.01, 0.04, 0.08)
    # On the trained task heads differ by 2 (l + h) / 100 from before, errors are .01: five of the
    # six with an error are further than two errors apart.
    assert "r4: trained 5 of 6 and r4: other 0 of 6." in ablated.finding
    # Student's t with 19 degrees of freedom, from a table: beyond 2.0 lie 6.0 %.
    assert "Noise alone would give 6.0 %" in ablated.finding


def test_one_item_tests_nothing() -> None:
    alone = ablation("trained", 3.0).model_copy(
        update={"items": 1, "gold_difference_error": LAYERS * (HEADS * (None,),)}
    )
    finding = head_figures_of(alone)["heads-ablated"].finding
    assert "0 of 0" in finding
    assert "nothing was tested" in finding
    assert "%" not in finding


def test_tables_have_a_row_for_every_head(tmp_path: Path) -> None:
    found = inspect_heads(inspection("r4"), ablation("trained", 3.0))
    rows = [({"model": t.spec.arm_label}, record) for t in found.trials for record in t.analyses]
    write_tables(analysis_tables(rows), tmp_path, ["parquet"])
    heads = pq.read_table(tmp_path / "heads.parquet").to_pylist()
    assert [(row["layer"], row["head"]) for row in heads] == [
        (at, h) for at in range(LAYERS) for h in range(HEADS)
    ]
    last = heads[-1]
    assert (last["model"], last["q_proj_relative"], last["o_proj_relative"]) == ("r4", 0.5, None)
    assert (last["importance_before"], last["importance_after"]) == (0.4, 0.8)
    assert heads[3]["entropy_after"] is None
    assert heads[0]["lost"] == 0.3
    groups = pq.read_table(tmp_path / "kv_heads.parquet").to_pylist()
    assert [row["v_proj_frobenius"] for row in groups] == [2, 4, 4, 6]
    ablated = pq.read_table(tmp_path / "head_ablations.parquet").to_pylist()
    by_head, whole = ablated[: LAYERS * HEADS], ablated[LAYERS * HEADS :]
    assert by_head[-1]["gold_change_after"] == pytest.approx(-0.12)
    # Whole layers follow, and no head is named.
    assert [(row["layer"], row["head"]) for row in whole] == [(0, None), (1, None)]
    assert [row["gold_change_before"] for row in whole] == [-0.5, -0.25]
    assert [row["gold_change_after"] for row in whole] == [-1.5, -0.75]
    assert whole[0]["score_change_after"] is None


def test_a_page_of_given_models_is_whole(browser: Browser, tmp_path: Path) -> None:
    assert_whole(
        browser,
        page_of(inspect_heads(inspection(HOSTILE), ablation(HOSTILE, 2.0))),
        tmp_path,
        at_least=2,
    )


def test_every_figure_keeps_the_laws(view: StudyView) -> None:
    found = inspect_heads(inspection("r4"), ablation("trained", 3.0))
    for lawful in (view, StudyView(found, recommend(found))):
        assert_lawful(lawful)
