"""The page of an inspection: complete, inert, offline, in the report's colours."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rankscope.records import (
    HeadAblation,
    HeadChange,
    HeadRole,
    HeadsRecord,
    Inspection,
    LayerHeads,
    MatrixSpectrum,
    NormGrowth,
    Provenance,
    SpectraRecord,
    TunedModel,
)
from rankscope.records.inspection_tables import write_tables
from rankscope.report.charts.figure import Figure
from rankscope.report.inspection_page import render, sections
from rankscope.report.page import figure_data
from rankscope.report.style import dark_colors

from .browser import CHROMIUM, NONE_FOUND, chromium, opened

HOSTILE = "<img src=x onerror=alert(1)></script>\u202e"


def matrix(layer: int | None, module: str, relative: float, intruders: int) -> MatrixSpectrum:
    place = "" if layer is None else f"layers.{layer}."
    return MatrixSpectrum(
        name=f"{place}{module}",
        layer=layer,
        module=module,
        shape=(64, 32),
        frobenius=relative,
        relative=relative,
        singular_values=(relative,),
        effective_rank=1,
        stable_rank=1,
        top_k=8,
        similarity_index=(0.9, 0.8),
        similarity_max=(0.95, 0.9),
        similarity_subspace=(0.99, 0.97),
        chance_subspace=(0.125, 0.25),
        intruders=intruders,
        intruder_energy=intruders / 10,
    )


def inspection(name: str, growth: bool = True) -> Inspection:
    """Two models on three matrices, one outside of the layers."""
    models = []
    for place, label in enumerate((name, "full")):
        found = (
            matrix(0, "q_proj", 0.1, 1),
            matrix(1, "q_proj", 0.2 + place, 2),
            matrix(None, "lm_head", 0.05, 0),
        )
        record = SpectraRecord(
            trial_id=label, intruder_k=10, intruder_epsilon=0.5, matrices=found, seconds=1
        )
        rank, scaling = (4, 2.0) if not place else (None, None)
        models.append(
            TunedModel(
                name=label,
                path=f"/x/{name}",
                kind="full" if place else "lora",
                rank=rank,
                scaling=scaling,
                spectra=record,
            )
        )
    fit = NormGrowth(
        ranks=(2, 4, 8), norms=(1, 2, 3), start=0, slope=1.4, rms=0.1, power=0.5, power_rms=0.2
    )
    return Inspection(
        base=name,
        base_path=f"/y/{name}",
        architecture="LlamaForCausalLM",
        quantized=None,
        tuned=tuple(models),
        growth=fit if growth else None,
        cache_bytes=0,
        provenance=Provenance(
            created="2026-11-25T00:00:00+00:00",
            rankscope="1",
            python="3",
            platform="x",
            processor="y",
            num_threads=1,
            libraries={},
        ),
        seconds=2,
    )


LAYERS, HEADS, GROUPS = 2, 4, 2


def layer_heads(layer: int, size: float) -> LayerHeads:
    """Importance and entropy that grow with the head; the first layer's last entropy is unknown."""
    last = None if layer == 0 else size
    return LayerHeads(
        layer=layer,
        importance=tuple(size * (1 + h) for h in range(HEADS)),
        group_importance=tuple(size * (1 + g) for g in range(GROUPS)),
        entropy=(*(size / (1 + h) for h in range(HEADS - 1)), last),
    )


def ablation(task: str, factor: float) -> HeadAblation:
    """Head h of layer l costs (l + h) / 100 nats before and ``factor`` as much after."""
    before = tuple(tuple(-(at + h) / 100 for h in range(HEADS)) for at in range(LAYERS))
    return HeadAblation(
        task=task,
        items=20,
        metric="acc",
        base_score=0.5,
        tuned_score=0.75,
        base_change=before,
        tuned_change=tuple(tuple(2 * v for v in row) for row in before),
        base_gold_change=before,
        tuned_gold_change=tuple(tuple(factor * v for v in row) for row in before),
        gold_difference_error=tuple((None, *(HEADS - 1) * (0.01,)) for _ in range(LAYERS)),
        base_layer_gold_change=(-0.5, -0.25),
        tuned_layer_gold_change=(-1.5, -0.75),
    )


def inspect_heads(found: Inspection, *ablations: HeadAblation) -> Inspection:
    """Heads for the first model alone."""
    record = HeadsRecord(
        trial_id=found.tuned[0].name,
        task="trained",
        items=20,
        items_asked=20,
        changes=tuple(
            HeadChange(
                layer=at,
                module=module,
                frobenius=tuple(2.0 * (1 + at + h) for h in range(n)),
                relative=tuple(0.1 * (1 + at + h) for h in range(n)),
            )
            for at in range(LAYERS)
            for module, n in (("q_proj", HEADS), ("v_proj", GROUPS))
        ),
        base=tuple(layer_heads(at, 0.1) for at in range(LAYERS)),
        tuned=tuple(layer_heads(at, 0.2) for at in range(LAYERS)),
        ablations=ablations,
        roles=tuple(
            HeadRole(layer=at, head=h, skill=0.1 * h, lost=None if h else 0.3)
            for at in range(LAYERS)
            for h in range(HEADS)
        )
        if ablations
        else (),
        seconds=1,
    )
    first, *rest = found.tuned
    return found.model_copy(update={"tuned": (first.model_copy(update={"heads": record}), *rest)})


def head_figures_of(*ablations: HeadAblation) -> dict[str, Figure]:
    *_, part = sections(inspect_heads(inspection("r4"), *ablations))
    assert part.key == "heads"
    return {figure.key: figure for figure in part.figures}


def test_heads_are_maps_of_layers_and_heads() -> None:
    figures = head_figures_of()
    assert list(figures) == ["heads-moved", "heads-importance", "heads-entropy"]
    moved = figure_data(figures["heads-moved"])
    # No k_proj or o_proj was changed: there is no panel for them.
    q, v = json.loads(json.dumps(moved["data"]))
    assert q["z"] == [[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]]
    assert v["z"] == [[0.1, 0.2], [0.2, 0.3]]
    assert q["zmax"] == v["zmax"] == 0.5  # one scale
    assert "r4 most in layer 1 head 3 (query heads, q_proj), 0.5" in figures["heads-moved"].finding
    importance = json.loads(json.dumps(figure_data(figures["heads-importance"])["data"]))
    before, after, difference, groups = importance
    assert (before["z"][1][3], after["z"][1][3]) == (0.4, 0.8)
    assert difference["z"][1][3] == pytest.approx(0.4)
    assert before["zmax"] == after["zmax"] == 0.8
    assert difference["zmin"] == -difference["zmax"]
    assert groups["z"] == [[0.2, 0.4], [0.2, 0.4]]
    entropy = figures["heads-entropy"]
    assert entropy.table.rows[3] == ("r4", 0, 3, None, None)  # unknown is no zero
    assert json.loads(json.dumps(figure_data(entropy)["data"]))[0]["z"][0][3] is None
    assert [choice.label for choice in entropy.choices] == ["r4"]


def test_ablation_sets_the_trained_task_against_others() -> None:
    figures = head_figures_of(ablation("trained", 3.0), ablation("other", 0.5))
    ablated, matrix = figures["heads-ablated"], figures["heads-matrix"]
    assert [c.label for c in ablated.choices] == ["r4: trained", "r4: other"]
    before, after, difference = json.loads(json.dumps(figure_data(ablated)["data"]))[:3]
    assert before["z"][1] == [0.01, 0.02, 0.03, 0.04]
    assert after["z"][1] == [0.03, 0.06, 0.09, 0.12]
    assert difference["z"][1] == [0.02, 0.04, 0.06, 0.08]
    # Each task has colours of its own: the second one's costs are a third.
    ends = [trace["zmax"] for trace in json.loads(json.dumps(figure_data(ablated)["data"]))]
    assert ends == [0.12, 0.12, 0.08, 0.04, 0.04, 0.02]
    assert ablated.table.rows[7] == ("r4", 1, 3, "trained", 0.04, 0.12, 0.01, 0.04, 0.08)
    (shown,) = json.loads(json.dumps(figure_data(matrix)["data"]))
    assert shown["x"] == ["trained (trained)", "other"]
    assert shown["y"][-1] == "layer 1, head 3"
    assert shown["z"][-1] == [0.08, -0.02]
    # On the trained task heads differ by 2 (l + h) / 100 from before, errors are .01: five of the
    # six with an error are further than two errors apart.
    assert "r4 on trained 5 of 6 and r4 on other 0 of 6." in matrix.finding
    # Student's t with 19 degrees of freedom, from a table: beyond 2.0 lie 6.0 %.
    assert "Noise alone would give 6.0 %" in matrix.finding
    assert matrix.table.rows[3] == ("r4", 0, 3, pytest.approx(0.3), None)


def test_one_item_tests_nothing() -> None:
    alone = ablation("trained", 3.0).model_copy(
        update={"items": 1, "gold_difference_error": LAYERS * (HEADS * (None,),)}
    )
    finding = head_figures_of(alone)["heads-matrix"].finding
    assert "0 of 0" in finding
    assert "nothing was tested" in finding
    assert "%" not in finding


def test_what_moved_opens_on_a_model_whose_heads_moved() -> None:
    """The first model's adapter is on no attention matrix."""
    found = inspect_heads(inspection("r4"))
    first, second = found.tuned
    assert first.heads is not None
    still = first.model_copy(update={"heads": first.heads.model_copy(update={"changes": ()})})
    second = second.model_copy(update={"heads": first.heads})
    *_, part = sections(found.model_copy(update={"tuned": (still, second)}))
    (moved,) = (figure for figure in part.figures if figure.key == "heads-moved")
    assert [(choice.label, choice.traces) for choice in moved.choices] == [("full", (0, 1))]
    assert moved.plot is not None
    assert [trace.visible for trace in moved.plot.data] == [True, True]


def test_a_page_with_heads_is_inert_and_has_dark_partners() -> None:
    found = inspect_heads(inspection(HOSTILE), ablation(HOSTILE, 2.0))
    page = render(found)
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert "Which heads carry the tuned skill" in page
    known = dark_colors([])
    for part in sections(found):
        for figure in part.figures:
            text = json.dumps(figure_data(figure))
            assert set(re.findall(r"#[0-9a-fA-F]{6}", text)) <= set(known)


@pytest.mark.skipif(CHROMIUM is None, reason=NONE_FOUND)
def test_a_browser_draws_the_heads(tmp_path: Path) -> None:
    found = inspect_heads(inspection("r4"), ablation("trained", 3.0), ablation("other", 0.5))
    drawn = [f for section in sections(found) for f in section.figures]
    page = tmp_path / "inspection.html"
    page.write_text(render(found), encoding="utf-8")
    with chromium() as browser, opened(browser, page) as shown:
        shown.assert_clean(len(drawn))


def test_tables_have_a_row_for_every_head(tmp_path: Path) -> None:
    write_tables(inspect_heads(inspection("r4"), ablation("trained", 3.0)), tmp_path)
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
    (tmp_path / "none").mkdir()
    write_tables(inspection("r4"), tmp_path / "none")
    assert {path.name for path in (tmp_path / "none").iterdir()} == {
        "matrices.parquet",
        "layers.parquet",
        "modules.parquet",
    }


def test_the_page_says_what_was_found() -> None:
    page = render(inspection("r4"))
    assert "connect-src" not in page  # default-src 'none' covers it
    assert "default-src 'none'" in page
    for text in (
        "r4 3 in 3 matrices and full 3 in 3 matrices",
        "most 0.2 in layers.1.q_proj",
        "most 1.2 in layers.1.q_proj",
        "leaves a residual of 0.1 (root mean square)",
        "On 3 adapters the logarithm is closer",
    ):
        assert text in re.sub(r"\s+", " ", page.replace("&amp;", "&"))
    assert "Size of the update against rank" not in render(inspection("r4", growth=False))


def test_heat_maps_have_every_matrix_in_its_place() -> None:
    figures = {f.key: f for part in sections(inspection("r4")) for f in part.figures}
    relative = figures["map-relative"]
    data = json.loads(json.dumps(figure_data(relative)))
    first, second = data["data"]
    assert first["x"] == ["other", "0", "1"]
    assert first["y"] == ["q_proj", "lm_head"]
    assert first["z"] == [[None, 0.1, 0.2], [0.05, None, None]]
    assert second["z"][0] == [None, 0.1, 1.2]
    assert first["zmax"] == second["zmax"] == 1.2
    assert [choice.label for choice in relative.choices] == ["r4", "full"]
    assert len(relative.table.rows) == 6
    side = figures["modules"].table
    chance = next(i for i, c in enumerate(side.columns) if c.title == "chance subspace")
    assert side.rows[0][chance] == pytest.approx((0.125 + 0.25) / 2)


def test_hostile_names_stay_text() -> None:
    page = render(inspection(HOSTILE))
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert page.count("</script>") == render(inspection("r4")).count("</script>")


def test_every_colour_has_a_dark_partner() -> None:
    known = dark_colors([])
    for part in sections(inspection("r4")):
        for figure in part.figures:
            text = json.dumps(figure_data(figure))
            assert set(re.findall(r"#[0-9a-fA-F]{6}", text)) <= set(known)
