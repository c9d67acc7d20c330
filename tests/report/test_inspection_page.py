"""The page of an inspection: complete, inert, offline, in the report's colours."""

import json
import re

import pytest

from rankscope.records import (
    Inspection,
    MatrixSpectrum,
    NormGrowth,
    Provenance,
    SpectraRecord,
    TunedModel,
)
from rankscope.report.inspection import render, sections
from rankscope.report.page import figure_data
from rankscope.report.style import dark_colors

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
