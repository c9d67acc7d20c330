"""Shrunk adapters: what PEFT merges from the written files is what was promised."""

import json
from pathlib import Path

import pytest
import torch
from command_line import rankscope as command
from peft_adapters import KINDS, merged, saved_adapter, weights
from tiny_models import tiny_llama
from torch import Tensor

from rankscope.extensions.spectra.shrink import SourceAdapter, scale, truncate

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module", params=KINDS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / request.param
    return saved_adapter(folder, tiny_llama(), **KINDS[request.param])


@pytest.fixture(scope="module")
def before() -> dict[str, Tensor]:
    return weights(tiny_llama())


def deltas(adapter: Path, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """W - W0 of every matrix, as PEFT loads and merges the folder."""
    after = merged(tiny_llama(), adapter)
    return {name: after[name] - weight for name, weight in before.items()}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, rtol=2e-5, atol=2e-6)


def test_scaled_updates_are_what_peft_merges(
    base: Path, adapter: Path, before: dict[str, Tensor], tmp_path: Path
) -> None:
    """By 8, rows of the DoRA adapter change their sign."""
    source = SourceAdapter.open(adapter, base)
    whole = deltas(adapter, before)
    assert any(bool(delta.abs().max() > 0) for delta in whole.values())
    for factor in (0.5, 8):
        scale(source, tmp_path / f"{factor}", factor)
        close(deltas(tmp_path / f"{factor}", before), {n: factor * d for n, d in whole.items()})


def test_what_changes_nothing_changes_no_bit(base: Path, adapter: Path, tmp_path: Path) -> None:
    source = SourceAdapter.open(adapter, base)
    scale(source, tmp_path / "scale", 1)
    truncate(source, tmp_path / "rank", [64])
    for name in ("scale", "rank"):
        for file in FILES:
            assert (tmp_path / name / file).read_bytes() == (adapter / file).read_bytes()


@pytest.mark.parametrize("kind", ["lora", "rslora", "patterns"])
def test_a_cut_adapter_is_the_nearest_of_its_rank(
    kind: str, before: dict[str, Tensor], tmp_path: Path
) -> None:
    adapter = saved_adapter(tmp_path / kind, tiny_llama(), **KINDS[kind])
    (found,) = truncate(SourceAdapter.open(adapter, None), tmp_path / "cut", [2])
    whole, cut = deltas(adapter, before), deltas(tmp_path / "cut", before)
    config = json.loads((tmp_path / "cut" / FILES[0]).read_text("utf-8"))
    assert (config["r"], config["rank_pattern"]) == (2, {})
    for matrix in found.matrices:
        sigma = torch.linalg.svdvals(whole[matrix.name])
        lost = float(torch.linalg.vector_norm(sigma[2:]))
        assert matrix.rank_after == 2
        assert matrix.error == pytest.approx(lost, rel=1e-4)
        left = whole[matrix.name] - cut[matrix.name]
        assert float(left.norm()) == pytest.approx(lost, rel=1e-3)
    total = sum(m.error**2 for m in found.matrices) ** 0.5
    assert found.error == pytest.approx(total)
    assert found.frobenius == pytest.approx(
        sum(float(d.norm()) ** 2 for d in whole.values()) ** 0.5
    )


def test_from_the_command_line(tmp_path: Path) -> None:
    adapter = saved_adapter(tmp_path / "lora", tiny_llama())
    cut = command("shrink", adapter, "--rank", 2, "--out", tmp_path / "cut")
    assert cut.code == 0, cut
    assert "truncated to rank 2" in cut.out
    assert "written to" in cut.out
    half = command("shrink", adapter, "--scale", 0.5, "--out", tmp_path / "half", "--json")
    assert half.code == 0, half
    assert [Path(change["out"]).name for change in json.loads(half.out)] == ["half"]
    assert {p.name for p in (tmp_path / "half").iterdir()} == {*FILES, "README.md"}


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = saved_adapter(tmp_path / "lora", tiny_llama())
    (tmp_path / "file").write_text("mine", "utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out, said in (
        (".", "the folder this command runs in"),
        ("nope/..", "the folder this command runs in"),
        ("/proc/x", "--out /proc/x: found a fault ("),
        ("../file/x", "--out ../file/x: found a fault ("),
        ("../file", "found a file, expected a folder"),
    ):
        refused = command("shrink", adapter, "--scale", 0.5, "--out", out)
        assert (refused.code, said in refused.told) == (2, True), refused
    assert {path.name for path in tmp_path.iterdir()} == {"lora", "file", "here"}
    assert not any((tmp_path / "here").iterdir())
    assert command("shrink", adapter, "--scale", 0.5, "--out", "x/../y").code == 0
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"y"}
