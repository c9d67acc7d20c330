"""Variants of trained models, against what ``shrink`` of the analysis of spectra writes."""

from pathlib import Path

from finished_studies import Finished

from rankscope.extensions.spectra.shrink import SourceAdapter, truncate
from rankscope.models.model_folder import pocket_folder
from rankscope.store import weights_path

from ..variants.test_variants_study import assert_scores_as_cut, full_of, varied

__all__ = ["varied"]


def test_a_full_model_cut_to_a_rank_scores_as_the_adapter_that_shrink_writes(
    varied: Finished, tmp_path: Path
) -> None:
    place = varied.out / weights_path(full_of(varied))
    source = SourceAdapter.open(place, pocket_folder(), accepts_full=True)
    truncate(source, tmp_path / "cut", [2])
    assert_scores_as_cut(varied, tmp_path / "cut")
