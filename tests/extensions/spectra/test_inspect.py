"""``inspect`` on what users bring: plain PEFT's adapters, full and quantized models, faults."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from command_line import rankscope as command
from launcher import Launcher
from peft_adapters import KINDS, TARGETS, merged, saved_adapter, tiny_gpt2, weights
from safetensors.torch import load_file, save_file
from tiny_models import tiny_llama
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import rankscope
from rankscope.extensions.spectra.inspect import inspect
from rankscope.extensions.spectra.record import (
    MatrixSpectrum,
    NormGrowth,
    SpectraRecord,
    chance_levels,
    growth_of_given,
)
from rankscope.extensions.spectra.spectra import effective_rank, stable_rank
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.svd_cache import svd
from rankscope.records import StudyRecords

from .full_decompositions import intruder_dimensions, similarity

KINDS_AND_HEAD: dict[str, dict[str, Any]] = {
    **KINDS,
    "head": {"target_modules": [*TARGETS, "lm_head"]},
}


def spectra_of(study: StudyRecords) -> list[SpectraRecord]:
    found = [trial.analysis(SpectraRecord) for trial in study.trials]
    assert None not in found
    return [record for record in found if record is not None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of plain PEFT's."""
    return saved_adapter(tmp_path_factory.mktemp("adapters") / "plain", tiny_llama())


def check_against_svd(found: MatrixSpectrum, before: Tensor, after: Tensor) -> None:
    """Every measure of one matrix, by full decompositions in float64 of what PEFT merged."""
    delta = after - before
    sigma = torch.linalg.svdvals(delta)
    first, full = svd(before), svd(after)
    positions, _, energy = intruder_dimensions(first.U, full.U, full.S, min(10, *before.shape))
    assert found.shape == tuple(before.shape)
    assert found.frobenius == pytest.approx(float(delta.norm()), rel=1e-5)
    assert found.relative == pytest.approx(float(delta.norm() / before.norm()), rel=1e-5)
    count = min(4, len(sigma))
    assert found.singular_values[:count] == pytest.approx(sigma[:count].tolist(), rel=1e-4)
    assert found.effective_rank == pytest.approx(effective_rank(sigma), rel=1e-3)
    assert found.stable_rank == pytest.approx(stable_rank(sigma), rel=1e-4)
    for name, expected in similarity(first, full, found.top_k).items():
        assert getattr(found, name) == pytest.approx(expected, abs=2e-3)
    assert found.intruder_positions == positions
    assert found.intruder_energy == pytest.approx(energy, abs=1e-4)
    leading = full.S[: len(found.tuned_singular_values)].tolist()
    assert found.tuned_singular_values == pytest.approx(leading, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS_AND_HEAD)
def test_an_adapter_of_plain_peft_is_what_peft_merges(
    base: Path, kind: str, tmp_path: Path
) -> None:
    """Unmerged factors on disk against W - W0 of the merged model: DoRA and PiSSA too."""
    adapter = saved_adapter(tmp_path / kind, tiny_llama(), **KINDS_AND_HEAD[kind])
    before, after = weights(tiny_llama()), merged(tiny_llama(), adapter)
    study = inspect(base, adapter)
    (spectra,) = spectra_of(study)
    assert study.trials[0].spec.method == (kind if kind in ("rslora", "dora", "pissa") else "lora")
    changed = {n for n, w in before.items() if bool((after[n] - w).abs().max() > 1e-5)}
    names = {m.name for m in spectra.matrices}
    assert names == changed - {"model.embed_tokens"}
    for matrix in spectra.matrices:
        check_against_svd(matrix, before[matrix.name], after[matrix.name])


def test_a_full_checkpoint_beside_adapters(base: Path, plain: Path, tmp_path: Path) -> None:
    model = tiny_llama()
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "full", max_shard_size="100KB")
    assert len(list((tmp_path / "full").glob("*.safetensors"))) > 1
    before, after = weights(tiny_llama()), weights(model)
    alone = inspect(base, tmp_path / "full")
    (spectra,), spec = spectra_of(alone), alone.trials[0].spec
    assert (spec.method, spec.rank, len(spectra.matrices)) == ("full", None, 14)
    for matrix in spectra.matrices:
        check_against_svd(matrix, before[matrix.name], after[matrix.name])
    both = inspect(base, [plain, tmp_path / "full"])
    # On the same matrices: those that the adapter changes.
    adapter, full = spectra_of(both)
    assert [m.name for m in adapter.matrices] == [m.name for m in full.matrices]
    assert {m.module for m in full.matrices} == set(TARGETS)


def test_an_adapter_of_a_tied_output_head(base: Path, tmp_path: Path) -> None:
    """The head's W0 is the embedding, which is stored under another name."""
    tied = tiny_llama()
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    adapter = saved_adapter(tmp_path / "lora", tiny_llama(), target_modules=["lm_head"])
    ((matrix,),) = (s.matrices for s in spectra_of(inspect(tmp_path / "tied", adapter)))
    before = tied.get_input_embeddings().weight.detach().double()
    delta = merged(tiny_llama(), adapter)["lm_head"] - weights(tiny_llama())["lm_head"]
    assert matrix.shape == (300, 64)  # tall
    check_against_svd(matrix, before, before + delta)


def test_conv1d_weights_stand_the_other_way_round(tmp_path: Path) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    # As the hub has GPT-2: names of the inner model, without its prefix.
    file = tmp_path / "gpt2" / "model.safetensors"
    inner = {k.removeprefix("transformer."): t for k, t in load_file(file).items()}
    save_file(inner, file, metadata={"format": "pt"})
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    adapter = saved_adapter(tmp_path / "lora", tiny_gpt2(), **settings)
    before, after = weights(tiny_gpt2()), merged(tiny_gpt2(), adapter)
    (found,) = spectra_of(inspect(tmp_path / "gpt2", adapter))
    assert {(m.module, m.shape) for m in found.matrices} == {
        ("c_attn", (96, 32)),
        ("c_fc", (128, 32)),
    }
    for matrix in found.matrices:
        check_against_svd(matrix, before[matrix.name].mT, after[matrix.name].mT)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_its_numbers(
    base: Path, plain: Path, tmp_path: Path, bits: int
) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=settings, device_map={"": "cpu"}
    )
    model.save_pretrained(tmp_path / "small")
    stored = CheckpointReader(tmp_path / "small")
    assert stored.is_quantized
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj"):
        weight = stored.weight(name).float()
        original = weights(tiny_llama())[name].float()
        assert 0 < float((weight - original).abs().max()) < 0.02
        torch.testing.assert_close(
            model.get_submodule(name)(x), x @ weight.mT, atol=0.01, rtol=0.05
        )
    inspected = inspect(tmp_path / "small", plain)
    assert inspected.notes == ("the base is quantized by bitsandbytes: its numbers are compared",)
    matrix = spectra_of(inspected)[0].matrices[0]
    dense = stored.weight(matrix.name).double()
    delta = merged(tiny_llama(), plain)[matrix.name] - weights(tiny_llama())[matrix.name]
    check_against_svd(matrix, dense, dense + delta)


def test_the_python_api_and_the_command_agree(base: Path, plain: Path, tmp_path: Path) -> None:
    adapters = [
        saved_adapter(tmp_path / f"r{rank}", tiny_llama(), r=rank, lora_alpha=2 * rank)
        for rank in (2, 4, 8)
    ]
    found = inspect(base, adapters)
    out = tmp_path / "looked"
    said = command("inspect", base, *adapters, "--out", out, "--json")
    assert said.code == 0, said.err
    printed = json.loads(said.out)
    for shown, spectra in zip(printed["tuned"], spectra_of(found), strict=True):
        (matrix, *_), (read, *_) = shown["spectra"]["matrices"], spectra.matrices
        assert tuple(matrix["chance_index"]) == read.chance_index
        assert tuple(matrix["chance_max"]) == read.chance_max
        assert MatrixSpectrum.model_validate(matrix) == read
    # What was written is a study: everything that reads one reads it.
    stored = rankscope.load(out)
    assert [s.matrices for s in spectra_of(stored.records)] == [
        s.matrices for s in spectra_of(found)
    ]
    assert command("verify", out).code == 0
    assert command("status", out).code == 0
    again = command("inspect", base, adapters[0], "--out", out)
    assert again.code == 0, again.err
    assert [t.spec.arm_label for t in rankscope.load(out).records.trials] == ["r2"]
    assert command("inspect", base, *adapters, "--out", out).code == 0
    table = pq.read_table(out / "matrices.parquet").to_pylist()
    assert len(table) == 3 * 6
    assert {row["model"] for row in table} == {"r2", "r4", "r8"}
    assert table[0]["frobenius"] == spectra_of(found)[0].matrices[0].frobenius
    by_module = pq.read_table(out / "modules.parquet").to_pylist()
    assert sum(row["frobenius"] ** 2 for row in by_module if row["model"] == "r2") == pytest.approx(
        spectra_of(found)[0].frobenius ** 2
    )
    assert pq.read_table(out / "layers.parquet").num_rows == 3 * 2
    page = (out / "report.html").read_text("utf-8")
    figures = set(re.findall(r'<figure id="([^"]*)"', page))
    expected = {"norm", "effective-rank", "similarity", "concentration", "modules", "map-weights"}
    assert figures == expected
    assert "default-src 'none'" in page
    shown = command("inspect", base, *adapters)
    assert "ln r over ranks 2, 4, 8" in shown.told
    assert all(name in shown.out for name in ("r2", "r8", *TARGETS))


def test_the_fit_over_ranks_by_hand() -> None:
    ranks = [2, 4, 8, 16]
    exact = NormGrowth.fit(ranks, [1 + 3 * math.log(r) for r in ranks])
    assert (exact.start, exact.slope) == pytest.approx((1, 3))
    assert exact.rms == pytest.approx(0, abs=1e-9)
    power = NormGrowth.fit(ranks, [2 * r**0.5 for r in ranks])
    assert power.power == pytest.approx(0.5)
    assert power.power_rms == pytest.approx(0, abs=1e-9)
    assert power.rms > 0.01
    assert NormGrowth.fit([2, 4, 4], [1, 2, 2]) is None
    assert NormGrowth.fit([2, 4, 8], [1, 0, 2]) is None


def test_chance_levels_by_simulation() -> None:
    """Random vectors against random vectors: what the similarities of unrelated ones come to."""
    d, k = 60, 15
    generator = torch.Generator().manual_seed(0)
    index, largest = [], []
    for _ in range(40):
        pair = [torch.linalg.qr(torch.randn(d, d, generator=generator)).Q[:, :k] for _ in range(2)]
        cosines = (pair[0].mT @ pair[1]).abs()
        index.append(float(cosines.diagonal().mean()))
        largest.append(float(cosines.max(dim=0).values.mean()))
    found = chance_levels(k, (d, d))
    assert found["chance_index"][0] == pytest.approx(sum(index) / 40, rel=0.05)
    assert found["chance_max"][0] == pytest.approx(sum(largest) / 40, rel=0.05)


# --- bad input ----------------------------------------------------------------------------------


def refused(code: int, said: str, *words: object) -> None:
    outcome = command("inspect", *words)
    assert outcome.code == code, outcome
    assert said in outcome.told
    assert outcome.out == ""
    assert outcome.err.count("error: ") == 1


def test_a_copy_of_the_output_head_must_be_the_bases(base: Path, tmp_path: Path) -> None:
    """PEFT writes it by default where the head is a target, and loads it in place of the base's."""
    targets = {"target_modules": ["lm_head", "q_proj"]}
    adapter = saved_adapter(tmp_path / "x", tiny_llama(), **targets)
    plain = spectra_of(inspect(base, adapter))[0].matrices
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    copy = tiny_llama().lm_head.weight.detach().clone()
    key = "base_model.model.lm_head.base_layer.weight"
    for dtype in (torch.float32, torch.bfloat16):  # as the model was loaded
        save_file({**tensors, key: copy.to(dtype)}, path)
        assert spectra_of(inspect(base, adapter))[0].matrices == plain
    cut = ("shrink", adapter, "--rank", 2, "--out", tmp_path / "cut")
    blind = command(*cut)
    assert blind.code == 2
    assert "give --base" in blind.err
    shrunk = command(*cut, "--base", base)
    assert shrunk.code == 0, shrunk
    assert key in load_file(tmp_path / "cut" / "adapter_model.safetensors")
    copy[0, 0] += 1
    save_file({**tensors, key: copy}, path)
    refused(2, "found a copy of lm_head of another base, or one that was trained", base, adapter)
    assert command("inspect", base, adapter, "--force").code == 0
    pissa = saved_adapter(tmp_path / "p", tiny_llama(), init_lora_weights="pissa", **targets)
    save_file({**load_file(pissa / path.name), key: copy}, pissa / path.name)
    refused(2, "a copy of the output head", base, pissa)


def test_numbers_that_are_none(base: Path, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = float("inf")
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    refused(4, "1 of 4096 numbers that are NaN or infinite", tmp_path / "model", plain)
    refused(4, "1 of 4096 numbers that are NaN or infinite", base, tmp_path / "model")


def test_weights_that_are_not_there(base: Path, plain: Path, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    sorted((tmp_path / "shards").glob("*.safetensors"))[1].unlink()
    refused(4, "in its safetensors files", tmp_path / "shards", plain)
    refused(4, "copy the model again", base, tmp_path / "shards")
    shutil.copytree(base, tmp_path / "part")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    refused(4, "no weight 'model.layers.0.self_attn.q_proj.weight'", tmp_path / "part", plain)
    (tmp_path / "part" / "model.safetensors").write_bytes(b"\x10" + bytes(40))
    refused(4, "expected a readable safetensors file", tmp_path / "part", plain)
    refused(2, "no such folder", base, tmp_path / "nothing")
    refused(2, "nothing: found no such folder", tmp_path / "nothing", plain)


def test_another_quantization_is_named(base: Path, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "gptq")
    file = tmp_path / "gptq" / "config.json"
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")
    refused(2, "weights quantized by 'gptq', expected plain weights", tmp_path / "gptq", plain)


def test_settings_reach_the_measures(base: Path, plain: Path) -> None:
    settings = {"top_k": 7, "intruder_k": 20, "intruder_epsilon": 0.99}
    found = inspect(base, plain, {"analyze": {"spectra": settings}})
    matrices = spectra_of(found)[0].matrices
    assert {m.top_k for m in matrices} == {7}
    assert {len(m.largest_cosines) for m in matrices} == {20}
    (usual,) = spectra_of(inspect(base, plain))
    assert sum(m.intruders for m in matrices) > usual.intruders


def test_only_adapters_alike_but_for_the_rank_are_fitted(base: Path, tmp_path: Path) -> None:
    """Not adapters with several ranks, or with neither scaling nor alpha in common."""

    def growth(**more: dict[str, Any]) -> tuple[int, ...] | None:
        settings = {f"r{r}": {"r": r, "lora_alpha": 2 * r} for r in (2, 4)} | more
        folders = [tmp_path / name for name in settings]
        for folder, own in zip(folders, settings.values(), strict=True):
            if not folder.is_dir():
                saved_adapter(folder, tiny_llama(), **own)
        found = growth_of_given(inspect(base, folders).trials)
        return None if found is None else found.ranks

    assert growth(alike={"r": 8, "lora_alpha": 16}) == (2, 4, 8)
    assert growth(other={"r": 8, "lora_alpha": 8}) is None
    assert growth(mixed={"r": 8, "lora_alpha": 16, "rank_pattern": {"v_proj": 6}}) is None


MEGABYTE = 2**20


# In a process of its own, since a limit cannot be taken back. RLIMIT_DATA bounds what it allocates
# and the files that it has mapped. The first inspection loads every library; what the second takes
# on top is bounded.
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from rankscope.extensions.spectra.inspect import inspect
base, tuned, small, room = *sys.argv[1:4], int(sys.argv[4])
torch.set_num_threads(1)
inspect(small, small)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = inspect(base, tuned)
print(len(found.trials[0].analyses[0].matrices))
try:
    files = [load_file(file) for file in Path(tuned).glob("*.safetensors")]
    held = [tensor.clone() for file in files for tensor in file.values()]
except (MemoryError, RuntimeError):
    print("too large to hold")
"""


def saved(folder: Path, hidden: int, inner: int, seed: int, shard: str) -> int:
    """A Llama of eight layers in shards; its bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=8,
        num_attention_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_a_checkpoint_in_shards_is_never_held_whole(launcher: Launcher, tmp_path: Path) -> None:
    """100 MB a side in shards of two matrices; a matrix has 4 MB, its difference in float64 8."""
    size = saved(tmp_path / "base", 64, 16384, 0, "9MB")
    saved(tmp_path / "tuned", 64, 16384, 1, "9MB")
    saved(tmp_path / "small", 64, 1024, 0, "1MB")
    assert size > 95 * MEGABYTE
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 10
    folders = [tmp_path / name for name in ("base", "tuned", "small")]
    cache = {"RANKSCOPE_CACHE": str(tmp_path / "cache")}
    launcher.start(*folders, 80 * MEGABYTE, code=LIMITED, environment=cache)
    done = launcher.outcome()
    assert done.code == 0, done.err[-2000:]
    # Seven matrices in each of eight layers; and holding either side would break the limit.
    assert done.out.split("\n")[:2] == ["56", "too large to hold"]
