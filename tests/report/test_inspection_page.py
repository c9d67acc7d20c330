"""The page of an inspection: complete, inert, offline, in the colors of the report."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from inspections import HEADS, LAYERS, ablation, inspect_heads, inspection, page_of

from rankscope.tools.inspect import write_tables


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
    page = page_of(inspection("r4"))
    assert "connect-src" not in page  # default-src 'none' covers it
    assert "default-src 'none'" in page
    for text in (
        "intruder dimensions 3",
        "largest 0.2 in layers.1.q_proj",
        "largest 1.2 in layers.1.q_proj",
    ):
        assert text in re.sub(r"\s+", " ", page.replace("&amp;", "&"))
