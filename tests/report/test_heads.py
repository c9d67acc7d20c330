"""The maps of attention heads draw what the records say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankscope.records import (
    HeadChange,
    HeadRole,
    HeadsRecord,
    LayerHeads,
    TrialRecords,
)
from rankscope.report.figures.heads import draw, rank_correlation, stacked
from rankscope.report.study_page import render, sections
from rankscope.report.study_view import StudyView
from rankscope.report.style import dark_colors

from .browser import CHROMIUM, NONE_FOUND, chromium, opened
from .studies import ordinary_study

LAYERS, HEADS, GROUPS = 3, 4, 2


def layer_heads(layer: int, size: float) -> LayerHeads:
    return LayerHeads(
        layer=layer,
        importance=tuple(size * (1 + h) for h in range(HEADS)),
        group_importance=tuple(size * (1 + g) for g in range(GROUPS)),
        entropy=(None, *(size / (2 + h) for h in range(HEADS - 1))),
    )


def inspect_heads(trial: TrialRecords) -> TrialRecords:
    """Heads that move more the higher the rank, the layer and the head."""
    if trial.train is None:
        return trial
    size = 0.01 * (trial.spec.rank or 64) + 0.001 * trial.spec.seed
    record = HeadsRecord(
        trial_id=trial.spec.trial_id,
        task=trial.spec.task,
        items=20,
        items_asked=20,
        dtype="bfloat16",
        changes=tuple(
            HeadChange(layer=at, module=module, frobenius=values, relative=values)
            for at in range(LAYERS)
            for module, n in (("q_proj", HEADS), ("v_proj", GROUPS))
            for values in [tuple(size * (1 + at + h) for h in range(n))]
        ),
        base=tuple(layer_heads(at, 0.1) for at in range(LAYERS)),
        tuned=tuple(layer_heads(at, 0.1 + size / 10) for at in range(LAYERS)),
        roles=tuple(
            HeadRole(layer=at, head=h, skill=size - 0.1 * h, lost=None)
            for at in range(LAYERS)
            for h in range(HEADS)
        ),
        seconds=1.0,
    )
    return replace(trial, heads=record)


@pytest.fixture(scope="module")
def view() -> StudyView:
    study, advice = ordinary_study()
    return StudyView(replace(study, trials=tuple(map(inspect_heads, study.trials))), advice)


def test_without_records_there_is_no_figure() -> None:
    assert draw(StudyView(*ordinary_study()), "med") is None


def test_maps_are_means_over_seeds_of_lora_and_full(view: StudyView) -> None:
    figure = draw(view, "med")
    assert figure is not None
    assert figure.plot is not None
    arms = [view.best_lora("med"), view.best_full("med")]
    labels = [choice.label for choice in figure.choices]
    # No k_proj or o_proj was changed, and nothing was lost: those maps are not offered.
    assert [label.split(":")[0] for label in labels] == [
        "query heads moved",
        "value heads moved",
        "importance after training",
        "importance, change",
        "attention entropy, change",
        "carries the trained skill, nats",
    ]
    for arm, trace in zip(arms, figure.choices[0].traces, strict=True):
        assert arm is not None
        grid = np.array(figure.plot.data[trace].z, dtype=float)
        found = [t.heads for t in view.trials(arm) if t.heads]
        expected = np.mean(
            [[c.relative for c in r.changes if c.module == "q_proj"] for r in found], 0
        )
        assert grid == pytest.approx(expected)
    shown = {place for choice in figure.choices for place in choice.traces}
    assert shown == set(range(len(figure.plot.data)))
    assert [bool(trace.visible) for trace in figure.plot.data][:3] == [True, True, False]


def test_the_sentence_names_the_head_that_moved_most(view: StudyView) -> None:
    figure = draw(view, "med")
    assert figure is not None
    assert f"layer {LAYERS - 1} head {HEADS - 1} in " in figure.finding
    assert "rank correlation is 1" in figure.finding
    assert "ran in bfloat16, whose rounding" in figure.how_to_read
    values = [row for row in figure.table.rows if row[1].startswith("query heads moved")]
    assert len(values) == 2 * LAYERS * HEADS
    # Entropy that is unknown is no zero.
    entropy = [row for row in figure.table.rows if row[1].startswith("attention entropy")]
    assert len(entropy) == 2 * LAYERS * (HEADS - 1)


def test_rows_of_unequal_length_and_ranks() -> None:
    found = stacked({0: [1.0, None], 2: [3.0]})
    assert found is not None
    assert np.isnan(found[[0, 1, 1, 2], [1, 0, 1, 1]]).all()
    assert (found[0, 0], found[2, 0]) == (1.0, 3.0)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None


def test_its_colors_have_dark_partners(view: StudyView) -> None:
    figure = draw(view, "med")
    assert figure is not None
    assert figure.plot is not None
    known = dark_colors(view.ranks)
    for trace in figure.plot.data:
        assert {color for _, color in trace.colorscale} <= set(known)


@pytest.mark.skipif(CHROMIUM is None, reason=NONE_FOUND)
def test_the_page_draws_it(view: StudyView, tmp_path: Path) -> None:
    drawn = [f for section in sections(view) for f in section.figures if f.plot is not None]
    page = tmp_path / "report.html"
    page.write_text(render(view), encoding="utf-8")
    with chromium() as browser, opened(browser, page) as found:
        found.assert_clean(len(drawn))
