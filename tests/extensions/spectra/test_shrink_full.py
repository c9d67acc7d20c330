"""Full checkpoints cut to adapters, and ranks by module: what PEFT loads is the SVD by hand."""

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from command_line import rankscope as command
from peft import PeftModel
from peft_adapters import KINDS, merged, saved_adapter, tiny_gpt2, tuned_from, weights
from safetensors.torch import load_file
from tiny_models import IDS, tiny_llama
from torch import Tensor

from rankscope.extensions.spectra.shrink import SourceAdapter, allot, allotted_ranks, truncate
from rankscope.extensions.spectra.stored_models import check_full
from rankscope.train.pass_memory import AllocationCounter

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT corrects it for GPT-2
MODELS: dict[str, Any] = {"llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The maker of a base; its folder and that of its training, in shards."""
    make, folder = MODELS[request.param], tmp_path_factory.mktemp("pair")
    make().save_pretrained(folder / "base")
    tuned_from(make()).save_pretrained(folder / "tuned", max_shard_size="100KB")
    assert len([*(folder / "tuned").glob("*.safetensors")]) > 1
    return make, folder / "base", folder / "tuned"


def truncated_by_hand(base: Any, tuned: Any, rank: int, adapted: set[str]) -> Any:
    """W0 + U_k S_k V_k' in every adapted matrix of ``base``, in plain PyTorch."""
    modules = dict(base.named_modules())
    for name, other in tuned.named_modules():
        if name in adapted:
            before = modules[name].weight.data
            u, s, vh = torch.linalg.svd(other.weight.data.double() - before.double())
            before += ((u[:, :rank] * s[:rank]) @ vh[:rank]).float()
    return base


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(torch.tensor([IDS])).logits
    return found


def test_a_truncated_checkpoint_is_its_svd_by_hand(pair: Any, tmp_path: Path) -> None:
    make, base, tuned = pair
    source = SourceAdapter.open(tuned, base, accepts_full=True)
    changes = truncate(source, tmp_path, [2, 8, 32])
    tail = []
    for change, rank in zip(changes, (2, 8, 32), strict=True):
        adapter: Any = PeftModel.from_pretrained(make(), str(tmp_path / f"r{rank}"))
        by_hand = truncated_by_hand(make(), tuned_from(make()), rank, set(source.names))
        torch.testing.assert_close(logits(adapter), logits(by_hand), rtol=1e-4, atol=1e-5)
        stored = load_file(tmp_path / f"r{rank}" / "adapter_model.safetensors")
        assert change.parameters == sum(tensor.numel() for tensor in stored.values())
        for matrix in change.matrices:
            delta = source.update(matrix.name).dense()
            lost = torch.linalg.svdvals(delta)[rank:].norm()
            assert matrix.error == pytest.approx(float(lost), rel=1e-6, abs=1e-9)
        tail.append(change.kept)
    assert tail == sorted(tail)
    assert tail[0] < 0.5


def test_at_full_rank_only_what_is_no_linear_layer_is_lost(pair: Any, tmp_path: Path) -> None:
    make, base, tuned = pair
    source = SourceAdapter.open(tuned, base, accepts_full=True)
    largest = max(min(source.base.shape(name)) for name in source.names)
    (change,) = truncate(source, tmp_path / "all", [largest])
    assert change.kept == pytest.approx(1)
    found, expected, before = (weights(m) for m in (
        PeftModel.from_pretrained(make(), str(tmp_path / "all")).merge_and_unload(),
        tuned_from(make()), make()))  # fmt: skip
    for name, weight in expected.items():
        wanted = weight if name in source.names else before[name]
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)
    others = dict(tuned_from(make()).named_parameters())
    firsts = dict(make().named_parameters())
    squares = {n: float((p - firsts[n]).detach().norm() ** 2) for n, p in others.items()}
    for name, square in squares.items():
        is_held = name.removesuffix(".weight") in source.names
        share = None if is_held else pytest.approx(square / sum(squares.values()), rel=1e-4)
        assert change.left_out.get(name) == share


def test_a_training_in_bfloat16_began_at_rounded_weights(tmp_path: Path) -> None:
    """Rounding a base in float32 moves every weight; that is no part of the update."""
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    tuned, change = tiny_llama().bfloat16().float(), 2e-3 * torch.randn(64, 2) @ torch.randn(2, 64)
    tuned.model.layers[0].self_attn.q_proj.weight.data += change
    tuned.save_pretrained(tmp_path / "tuned")
    source = SourceAdapter.open(tmp_path / "tuned", tmp_path / "base", accepts_full=True)
    (cut,) = truncate(source, tmp_path / "out", [2])
    assert cut.kept == pytest.approx(1)
    assert cut.frobenius == pytest.approx(float(change.norm()), rel=1e-4)
    assert cut.action == "truncated to rank 2, against the base rounded to bfloat16"
    assert not source.left_out


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_tied_output_head_counts_once(is_tied: bool, tmp_path: Path) -> None:
    """The base's head is its embedding; training keeps that, or gives the head its own weight."""
    for name in ("base", "tuned"):
        model = tiny_llama()
        model.config.tie_word_embeddings = True
        model.tie_weights()
        if name == "tuned":
            if not is_tied:
                model.config.tie_word_embeddings = False
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
            tuned_from(model)
        model.save_pretrained(tmp_path / name)
    left_out = SourceAdapter.open(tmp_path / "tuned", tmp_path / "base", accepts_full=True).left_out
    matrices = [name for name in left_out if "norm" not in name]
    assert matrices == ["model.embed_tokens.weight", *([] if is_tied else ["lm_head.weight"])]


def test_memory_holds_one_matrix_and_what_is_written(tmp_path: Path) -> None:
    peaks = []
    for layers in (1, 4):
        folder = tmp_path / f"{layers}"
        tiny_llama(num_layers=layers).save_pretrained(folder / "base")
        tuned_from(tiny_llama(num_layers=layers)).save_pretrained(folder / "tuned")
        source = SourceAdapter.open(folder / "tuned", folder / "base", accepts_full=True)
        with AllocationCounter() as counter:
            check_full(source.tuned.model, source.base)
            (change,) = truncate(source, folder / "out", [4])
        # The factors, and once more when they are serialized.
        peaks.append(counter.peak_bytes - 2 * 4 * change.parameters)
    largest = 300 * 64 * 4  # The embedding in float32
    assert peaks[1] - peaks[0] < largest / 4
    assert peaks[1] < 16 * largest


@pytest.mark.parametrize("equal", [True, False])
def test_the_allotment_keeps_the_most_energy_that_its_parameters_can(equal: bool) -> None:
    """Against every combination of ranks, at each budget that the allotment uses up."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        costs = {name: 10 if equal else c for name, c in (("q", 4), ("k", 7), ("v", 11))}
        values = {
            name: sorted(torch.rand(3, generator=generator).tolist(), reverse=True)
            for name in costs
        }

        def energy(ranks: dict[str, int], values: Any = values) -> float:
            return sum(s**2 for name, sigma in values.items() for s in sigma[: ranks[name]])

        every = [
            dict(zip(costs, ranks, strict=True)) for ranks in itertools.product((1, 2, 3), repeat=3)
        ]
        for budget in range(sum(costs.values()), 3 * sum(costs.values()) + 1):
            ranks = allotted_ranks(values, costs, budget)
            used = sum(costs[name] * rank for name, rank in ranks.items())
            fitting = [r for r in every if sum(costs[n] * k for n, k in r.items()) <= budget]
            best = max(map(energy, fitting))
            assert used <= budget
            assert energy(ranks) <= best + 1e-12
            if equal or (used == budget and _takes_no_detour(values, costs, budget)):
                assert energy(ranks) == pytest.approx(best)


def _takes_no_detour(values: Any, costs: dict[str, int], budget: int) -> bool:
    """Whether the best steps fit one after the other, without one being left out."""
    steps = sorted((-(s**2) / costs[n], costs[n]) for n in costs for s in values[n][1:])
    used = itertools.accumulate((cost for _, cost in steps), initial=sum(costs.values()))
    return budget in used


@pytest.mark.parametrize("kind", ["full", "lora", "rslora", "patterns"])
def test_ranks_by_module_keep_more_than_one_rank(base: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "full":
        tuned_from(tiny_llama()).save_pretrained(folder)
    else:
        saved_adapter(folder, tiny_llama(), **KINDS[kind])
    source = SourceAdapter.open(folder, base, accepts_full=True)
    each = sum(sum(source.base.shape(name)) for name in source.names)
    (change,) = allot(source, tmp_path / "out", 2 * each + 50)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    ranks = {matrix.name: matrix.rank_after for matrix in change.matrices}
    assert len(set(ranks.values())) > 1
    assert settings["rank_pattern"] == {n: r for n, r in ranks.items() if r != settings["r"]}
    assert change.uniform[:2] == (2, 2 * each)
    assert change.uniform[2] <= change.kept
    after, before = merged(tiny_llama(), tmp_path / "out"), weights(tiny_llama())
    squares = lost = 0.0
    for name, rank in ranks.items():
        sigma = torch.linalg.svdvals(source.update(name).dense())
        found = torch.linalg.svdvals(after[name] - before[name])
        torch.testing.assert_close(
            found[:rank], sigma[:rank].float().double(), rtol=1e-4, atol=1e-5
        )
        squares, lost = squares + float(sigma.norm() ** 2), lost + float(sigma[rank:].norm() ** 2)
    assert change.kept == pytest.approx(1 - lost / squares)


def test_of_an_adapter_without_a_change_every_rank_keeps_all(base: Path, tmp_path: Path) -> None:
    source = SourceAdapter.open(saved_adapter(tmp_path / "zero", tiny_llama(), size=0), base)
    (change,) = allot(source, tmp_path / "out", 10_000)
    assert {matrix.rank_after for matrix in change.matrices} == {1}
    assert change.kept == change.uniform[2] == 1


def test_from_the_command_line(base: Path, tmp_path: Path) -> None:
    tuned_from(tiny_llama()).save_pretrained(tmp_path / "tuned")
    cut = command(
        "shrink", tmp_path / "tuned", "--base", base, "--rank", "2,8", "--out", tmp_path / "a"
    )
    assert cut.code == 0, cut
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"r2", "r8"}
    assert "not in the adapter: 7 tensors with" in cut.told
    assert "model.embed_tokens.weight (" in cut.told
    of_model = ("shrink", tmp_path / "tuned", "--base", base, "--out", tmp_path / "b")
    allotted = command(*of_model, "--parameters", 12_000)
    assert allotted.code == 0, allotted
    assert "by module" in allotted.out
    assert "6 in each" in allotted.out
    picture = ElementTree.parse(tmp_path / "b" / "ranks.svg")
    numbers = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"self_attn.q_proj", "mlp.down_proj", "1"} <= set(numbers)
    assert len([*picture.iter("{http://www.w3.org/2000/svg}rect")]) == 14
    tiny_llama(seed=5).save_pretrained(tmp_path / "other")
    SourceAdapter.open(tmp_path / "other", base, any_base=True, accepts_full=True)
