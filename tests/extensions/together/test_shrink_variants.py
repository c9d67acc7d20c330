"""Variants of trained models, against what ``shrink`` of the analysis of spectra writes."""

from pathlib import Path

import torch
from finished_studies import Finished
from tiny_models import tiny_llama

from rankscope.extensions.spectra.shrink import SourceAdapter, scale, truncate
from rankscope.extensions.variants.scaling import scaled_adapter
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.model_folder import pocket_folder
from rankscope.models.multi_lora import linear_layers
from rankscope.store import weights_path

from ..spectra.test_shrink import adapter
from ..variants.test_variants_study import assert_scores_as_cut, full_of, varied

__all__ = ["adapter", "varied"]


def test_a_full_model_cut_to_a_rank_scores_as_the_adapter_that_shrink_writes(
    varied: Finished, tmp_path: Path
) -> None:
    place = varied.out / weights_path(full_of(varied))
    source = SourceAdapter.open(place, pocket_folder(), accepts_full=True)
    truncate(source, tmp_path / "cut", [2])
    assert_scores_as_cut(varied, tmp_path / "cut")


def test_a_scaled_adapter_is_the_studys_variant_of_it(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    source = SourceAdapter.open(adapter, base)
    if source.tuned.kind == "pissa":  # a study stores it as plain LoRA, as scaling by 1.5 does
        scale(source, tmp_path / "plain", 1.5)
        source = SourceAdapter.open(tmp_path / "plain", base)
    scale(source, tmp_path / "out", 0.4)
    linears = linear_layers(tiny_llama())
    scaled = scaled_adapter(source.adapter, "x", 0.4, linears)
    shrunk = SourceAdapter.open(tmp_path / "out", base)
    for name in scaled.a:
        expected = LowRankUpdate.from_adapter(scaled, name, linears[name].weight).dense()
        torch.testing.assert_close(shrunk.update(name).dense(), expected, rtol=1e-5, atol=1e-6)
