"""Shrunk adapters: what PEFT merges from the written files is what was promised."""

import json
from pathlib import Path

import pytest
import torch
from command_line import rankscope as command
from full_decompositions import intruder_dimensions
from peft_adapters import KINDS, merged, saved_adapter, weights
from tiny_models import tiny_llama
from torch import Tensor

from rankscope.errors import UserError
from rankscope.models.low_rank_update import LowRankUpdate
from rankscope.models.multi_lora import linear_layers
from rankscope.models.scaling import layer_index, scaled_adapter, variant_factors
from rankscope.models.svd_cache import svd
from rankscope.records import Variant
from rankscope.tools.shrink import SourceAdapter, layer_scale, mitigate, truncate

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
        layer_scale(source, tmp_path / f"{factor}", factor, factor)
        close(deltas(tmp_path / f"{factor}", before), {n: factor * d for n, d in whole.items()})


@pytest.mark.parametrize(("layers", "factors"), [([0], [0.2]), ([1], [0.6]), ([0, 1], [0.2, 0.6])])
def test_depth_is_counted_over_the_layers_of_the_model(
    layers: list[int], factors: list[float], tmp_path: Path
) -> None:
    """Of three layers from 0.2 to 1, whichever of them the adapter changes."""
    model = tiny_llama(num_layers=3)
    model.save_pretrained(tmp_path / "base")
    adapter = saved_adapter(tmp_path / "lora", model, layers_to_transform=layers)
    change = layer_scale(SourceAdapter.open(adapter, tmp_path / "base"), tmp_path / "out", 0.2, 1)
    expected = dict(zip(layers, factors, strict=True))
    for matrix in change.matrices:
        share = matrix.frobenius_after / matrix.frobenius_before
        assert share == pytest.approx(expected[layer_index(matrix.name) or 0])
    alone = SourceAdapter.open(adapter, None)
    with pytest.raises(UserError, match="layers left out, so the model's depth is unknown"):
        layer_scale(alone, tmp_path / "refused", 0.2, 1)
    layer_scale(alone, tmp_path / "half", 0.5, 0.5)


@pytest.mark.parametrize("variant", [Variant("scale", 0.4), Variant("layers", 0.25)])
def test_a_scaled_adapter_is_the_studys_variant_of_it(
    base: Path, adapter: Path, before: dict[str, Tensor], tmp_path: Path, variant: Variant
) -> None:
    source = SourceAdapter.open(adapter, base)
    if source.tuned.kind == "pissa":  # a study stores it as plain LoRA, as scaling by 1.5 does
        layer_scale(source, tmp_path / "plain", 1.5, 1.5)
        source = SourceAdapter.open(tmp_path / "plain", base)
    last = variant.strength if variant.kind == "scale" else 1.0
    layer_scale(source, tmp_path / "out", variant.strength, last)
    linears = linear_layers(tiny_llama())
    scaled = scaled_adapter(source.adapter, "x", variant_factors(variant, 2), linears)
    shrunk = SourceAdapter.open(tmp_path / "out", base)
    for name in scaled.a:
        expected = LowRankUpdate.from_adapter(scaled, name, linears[name].weight).dense()
        torch.testing.assert_close(shrunk.update(name).dense(), expected, rtol=1e-5, atol=1e-6)


def test_what_changes_nothing_changes_no_bit(base: Path, adapter: Path, tmp_path: Path) -> None:
    source = SourceAdapter.open(adapter, base)
    layer_scale(source, tmp_path / "layers", 1, 1)
    truncate(source, tmp_path / "rank", [64])
    mitigate(source, tmp_path / "mitigate", 1)
    for factor in (-1, 1.5, float("nan")):
        with pytest.raises(UserError, match="expected 0 \\(remove intruders\\) to 1"):
            mitigate(source, tmp_path / "other", factor)
    written = ["layers", "rank", "mitigate/mitigated", "mitigate/control"]
    for name in written:
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


@pytest.mark.parametrize("factor", [0.0, 0.4])
def test_mitigation_is_the_formula_and_its_control_has_the_same_norm(
    base: Path, adapter: Path, before: dict[str, Tensor], tmp_path: Path, factor: float
) -> None:
    """W' = W + (lambda - 1) sum u sigma v^T by full decompositions, matrix by matrix."""
    found, control = mitigate(SourceAdapter.open(adapter, base), tmp_path / "m", factor)
    whole = deltas(adapter, before)
    expected, count = {}, 0
    for name, delta in whole.items():
        expected[name] = delta
        if not float(delta.norm()):
            continue
        first, full = svd(before[name]), svd(before[name] + delta)
        chosen = list(intruder_dimensions(first.U, full.U, full.S, 10, 0.5)[0])
        part = (full.U[:, chosen] * full.S[chosen]) @ full.V[:, chosen].mT
        expected[name] = delta + (factor - 1) * part
        count += len(chosen)
    assert count > 0
    assert sum(m.intruders or 0 for m in found.matrices) == count
    mitigated = deltas(tmp_path / "m" / "mitigated", before)
    shrunk = deltas(tmp_path / "m" / "control", before)
    for name, delta in expected.items():
        torch.testing.assert_close(mitigated[name], delta, rtol=1e-4, atol=2e-5)
        norm = float(delta.norm())
        assert float(shrunk[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-6)
        if norm:
            share = norm / float(whole[name].norm())
            torch.testing.assert_close(shrunk[name], share * whole[name], rtol=1e-4, atol=1e-5)
    for matrix in found.matrices:
        assert matrix.rank_after == matrix.rank_before + (matrix.intruders or 0)
    assert [m.frobenius_after for m in control.matrices] == pytest.approx(
        [m.frobenius_after for m in found.matrices], rel=1e-6
    )


def test_from_the_command_line(base: Path, tmp_path: Path) -> None:
    adapter = saved_adapter(tmp_path / "lora", tiny_llama())
    cut = command("shrink", adapter, "--rank", 2, "--out", tmp_path / "cut")
    assert cut.code == 0, cut
    assert "truncated to rank 2" in cut.out
    assert "written to" in cut.out
    options = ("--mitigate", "intruders", "--lambda", 0.5, "--base", base)
    mitigated = command("shrink", adapter, *options, "--out", tmp_path / "m", "--json")
    assert mitigated.code == 0, mitigated
    assert [Path(change["out"]).name for change in json.loads(mitigated.out)] == [
        "mitigated",
        "control",
    ]
    assert {p.name for p in (tmp_path / "m" / "control").iterdir()} == {*FILES, "README.md"}


def test_a_mitigation_further_from_the_base_is_reported(base: Path, tmp_path: Path) -> None:
    """Of a small update an intruder is mostly W0's: removing it takes more than the update was."""
    for size, grown in ((0.02, True), (0.3, False)):
        adapter = saved_adapter(tmp_path / f"{size}", tiny_llama(), size=size)
        options = ("--mitigate", "intruders", "--lambda", 0, "--base", base)
        told = command("shrink", adapter, *options, "--out", tmp_path / f"m{size}").told
        assert ("6 of 6 matrices are further from the base than before" in told) is grown
        assert ("further from the base" in told) is grown


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
