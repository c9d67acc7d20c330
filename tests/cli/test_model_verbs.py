"""``rankscope params``: counts by hand and as published."""

import json
from pathlib import Path

import pytest
from command_line import rankscope as command
from large_shapes import LLAMA_8B, QWEN_7B


# Per unit of rank by hand: see tests/models/test_parameters.py.
@pytest.mark.parametrize(
    ("config", "per_rank_attention", "per_rank_all"),
    [(LLAMA_8B, 851_968, 2_621_440), (QWEN_7B, 630_784, 2_523_136)],
    ids=["Llama-3.1-8B", "Qwen2.5-7B"],
)
def test_parameter_counts(
    tmp_path: Path, config: object, per_rank_attention: int, per_rank_all: int
) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    ranks = (8, 32, 64, 128)
    asked = [word for rank in ranks for word in ("--rank", rank)]
    counts = json.loads(command("params", tmp_path, *asked, "--json").out)["trainable"]
    assert counts == {str(rank): rank * per_rank_attention for rank in ranks}
    shown = command("params", tmp_path, *asked, "--targets", "all-linear")
    assert shown.code == 0
    assert all(f"{rank * per_rank_all:,}" in shown.out for rank in ranks)
    spaced = command(
        "params", tmp_path, *asked, "--json", "--targets", "q_proj, k_proj ,v_proj,o_proj"
    )
    assert json.loads(spaced.out)["trainable"] == counts


def test_the_published_counts_of_llama(tmp_path: Path) -> None:
    """The figures that arXiv 2512.15634's setting implies, as a reader would look them up."""
    LLAMA_8B.save_pretrained(tmp_path)
    shown = command("params", tmp_path).out
    for count in ("6,815,744", "27,262,976", "54,525,952", "109,051,904", "8,030,261,248"):
        assert count in shown
