"""Shards share the matrices whose spectra are asked for, and find what one process finds."""

from pathlib import Path

import pytest
import torch
from tiny_models import base_of

from rankscope.extensions.spectra import SpectraConfig
from rankscope.extensions.spectra.spectra import full_spectra
from rankscope.models.base import Base
from rankscope.models.load import load_model
from rankscope.models.methods import get_method

from ..shards.test_shards import (
    FULL,
    SAME,
    SHORT,
    TRAIN,
    folder,
    on_shards,
    sharded,
    shards,
    train_together,
    two,
)

__all__ = ["folder", "sharded", "shards", "two"]


def test_shards_find_what_one_process_finds(sharded: Base, folder: Path, tmp_path: Path) -> None:
    tuned = train_together(sharded, FULL, tmp_path / "state", TRAIN.model_copy(update=SHORT)).tuned
    stored = tmp_path / "stored"
    stored.mkdir()
    get_method("full").save(tuned, sharded.record, stored)
    for dtype in (torch.float32, torch.bfloat16):  # the base's, which is stored in float32
        base, before = on_shards(sharded.shards, folder, dtype), base_of(load_model(folder, dtype))
        given = stored, [*before.linears()][:9], SpectraConfig()
        base.shards.announce("call", full_spectra, *given)
        of_shards, of_one = full_spectra(base, *given), full_spectra(before, *given)
        assert [matrix.name for matrix in of_shards] == given[1]
        for there, here in zip(of_shards, of_one, strict=True):
            assert 0 < there.frobenius == pytest.approx(here.frobenius, rel=SAME)
            assert there.similarity_subspace == pytest.approx(here.similarity_subspace, rel=SAME)
