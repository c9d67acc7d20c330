"""Adapters on disk: what we write PEFT reads, what PEFT writes we read, and faults are refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import alone
from command_line import folder_contents
from launcher import Launcher
from peft import PeftModel
from peft_adapters import peft_adapter
from safetensors.torch import load_file, save_file
from tiny_models import IDS, base_of, logits_of, tiny_llama
from torch import Tensor
from toy_training import toy_rows, trial as toy_trial

from rankscope.errors import IntegrityError, UserError
from rankscope.models.adapters.folder import load_adapter, save_adapter
from rankscope.models.adapters.settings import CONFIG, WEIGHTS
from rankscope.models.base import Base
from rankscope.models.init_context import InitContext, new_adapter
from rankscope.models.lora import Adapter
from rankscope.records import TrialSpec

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
DOTTED = ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj")
TARGETS = pytest.mark.parametrize(
    "targets", [ATTENTION, LINEAR, DOTTED], ids=["attention", "all-linear", "dotted"]
)
METHODS = pytest.mark.parametrize("method", ["lora", "rslora", "lora+", "dora", "pissa", "eva"])
ROWS = toy_rows(80)


def trial(targets: tuple[str, ...] = ATTENTION, **changes: Any) -> TrialSpec:
    return toy_trial(targets=targets, **{"alpha": 6.0, "dropout": 0.1} | changes)


def trained(base: Base, spec: TrialSpec) -> Adapter:
    """An adapter that is somewhere else than where its method starts."""
    adapter = new_adapter(base.model, spec, InitContext(base, {spec: ROWS}, [spec]))
    generator = torch.Generator().manual_seed(0)
    for b in adapter.b.values():
        b.data.add_(0.2 * torch.randn(b.shape, generator=generator))
    for m in adapter.magnitude.values():
        m.data.mul_(1 + 0.2 * torch.rand(m.shape, generator=generator))
    return adapter


def adapted_logits(adapter: Adapter) -> Tensor:
    base = base_of(tiny_llama())
    base.multi_lora.attach(adapter)
    return logits_of(base, adapter.name)


def written(folder: Path, spec: TrialSpec | None = None) -> Path:
    """A folder that we wrote."""
    base = base_of(tiny_llama())
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(trained(base, spec or trial()), base.record, folder)
    return folder


def assert_same_and_changed(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm())
    bare = alone(tiny_llama(), IDS)
    assert float((expected - bare).norm()) > 0.05 * float(bare.norm())


# --- there and back ---


@METHODS
@TARGETS
def test_what_we_save_plain_peft_loads_with_the_same_logits(
    tmp_path: Path, method: str, targets: tuple[str, ...]
) -> None:
    spec = trial(targets, method=method, alpha=2.5)
    written(tmp_path, spec)
    base = base_of(tiny_llama())
    expected = adapted_logits(trained(base, spec))
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert_same_and_changed(alone(model, IDS), expected)
    assert_same_and_changed(adapted_logits(load_adapter(tmp_path, "a")), expected)


def test_a_module_without_a_rank_is_no_target(tmp_path: Path) -> None:
    """EVA at rank 1 shares eight ranks out over eight modules, and not every module gets one."""
    spec = trial(method="eva", rank=1, alpha=1.0)
    base = base_of(tiny_llama())
    adapter = trained(base, spec)
    assert len(adapter.a) < 8 == sum(len(a) for a in adapter.a.values())
    save_adapter(adapter, base.record, tmp_path)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    changed = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert changed == {f"base_model.model.{name}" for name in adapter.a}
    base.multi_lora.clear()
    assert_same_and_changed(alone(model, IDS), adapted_logits(adapter))


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_ranks_alphas_and_magnitudes_that_peft_wrote_are_read(
    tmp_path: Path, use_dora: bool, use_rslora: bool
) -> None:
    """A scaling of its own, as ``alpha_pattern`` may give a module, goes into its B."""
    model = peft_adapter(
        tmp_path,
        use_dora=use_dora,
        use_rslora=use_rslora,
        rank_pattern={"layers.1.self_attn.q_proj": 2, "o_proj": 6},
        alpha_pattern={"q_proj": 9, "layers.0.self_attn.k_proj": 3},
    )
    adapter = load_adapter(tmp_path, "x")
    assert len(adapter.a["model.layers.1.self_attn.q_proj"]) == 2
    assert bool(adapter.magnitude) == use_dora
    assert_same_and_changed(adapted_logits(adapter), alone(model, IDS))


def test_layers_chosen_by_peft_are_loaded_and_saved_again_by_their_exact_names(
    tmp_path: Path,
) -> None:
    """``layers_to_transform`` has no place in a trial; full module names say the same."""
    model = peft_adapter(tmp_path, layers_to_transform=[1])
    adapter = load_adapter(tmp_path, "x")
    assert set(adapter.a) == {f"model.layers.1.self_attn.{leaf}" for leaf in ATTENTION}
    again = tmp_path / "again"
    again.mkdir()
    save_adapter(adapter, base_of(tiny_llama()).record, again)
    settings = json.loads((again / CONFIG).read_text())
    assert settings["target_modules"] == sorted(adapter.a)
    expected = alone(model, IDS)
    plain = PeftModel.from_pretrained(tiny_llama(), again).eval()
    assert_same_and_changed(alone(plain, IDS), expected)
    assert_same_and_changed(adapted_logits(load_adapter(again, "x")), expected)


@pytest.mark.parametrize("method", ["lora", "rslora", "lora+", "dora", "eva"])
def test_our_own_round_trip_keeps_every_bit(tmp_path: Path, method: str) -> None:
    before = trained(base_of(tiny_llama()), trial(LINEAR, method=method))
    after = load_adapter(written(tmp_path, trial(LINEAR, method=method)), "a")
    assert (after.rank, after.alpha, after.scaling) == (4, 6.0, before.scaling)
    assert after.a.keys() == before.a.keys()
    assert after.magnitude.keys() == before.magnitude.keys()
    assert not any(p.requires_grad for p in after.parameters())
    for name in before.a:
        for found, expected in zip(
            after.module_parameters(name), before.module_parameters(name), strict=True
        ):
            assert torch.equal(found, expected)


def test_the_folders_bytes_do_not_depend_on_the_hash_seed(
    launcher: Launcher, tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}; "
        "from pathlib import Path; import test_folder as t; "
        "t.written(Path(sys.argv[1]), t.trial(t.LINEAR)); print(hash('k_proj'))"
    )
    launcher.start(tmp_path / "there", code=code)
    assert launcher.ended() == 0, launcher.said()
    assert int(launcher.said()) != hash("k_proj")
    # safetensors shuffles metadata: eight equal files by chance once in 128 runs without care.
    there = folder_contents(tmp_path / "there")
    for i in range(7):
        assert folder_contents(written(tmp_path / str(i), trial(LINEAR))) == there


# --- faults ---


@pytest.mark.parametrize("fault", ["none", "short", "of no use"])
def test_faulty_magnitudes_are_integrity_errors(tmp_path: Path, fault: str) -> None:
    folder = written(tmp_path, trial(method="dora"))
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in sorted(tensors) if "magnitude_vector" in name)
    tensors[name] = tensors[name][:-1].clone()
    if fault == "none":
        del tensors[name]
    if fault == "of no use":
        settings = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**settings, "use_dora": False}))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(IntegrityError, match="magnitude"):
        load_adapter(folder, "a")


REMOVED = object()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", REMOVED), ("r", "x"), ("r", 0), ("lora_alpha", REMOVED), ("lora_alpha", -1),
        ("lora_alpha", float("nan")), ("peft_type", "IA3"), ("peft_type", REMOVED),
        ("init_lora_weights", ["gaussian"]), ("bias", "all"), ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": -8}), ("a_setting_of_tomorrow", True), ("r", 10**400),
        ("lora_alpha", 10**400), ("rank_pattern", {"(": 2}), ("alpha_pattern", {"[": 3}),
        ("init_lora_weights", "pissa_niter_4"), ("modules_to_save", ["lm_head"]),
    ],
)  # fmt: skip
def test_settings_that_change_what_a_and_b_mean_are_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    folder = written(tmp_path)
    settings = json.loads((folder / CONFIG).read_text())
    settings[key] = value
    if value is REMOVED:
        del settings[key]
    (folder / CONFIG).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"(?s){folder.name}.*({key}|not a regular expression)"):
        load_adapter(folder, "a")


def test_an_adapter_not_in_plain_pairs_is_refused(tmp_path: Path) -> None:
    """An embedding's adapter has other tensors than a linear layer's."""
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        peft_adapter(tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(UserError, match="adapts an embedding"):
        load_adapter(tmp_path, "a")


def test_a_copy_of_the_output_head_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """PEFT writes it by default where the head is a target."""
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        model = peft_adapter(tmp_path, target_modules=["lm_head"])
    found = r"found a copy of the output head, .*lm_head\.base_layer\.weight.*=False"
    with pytest.raises(UserError, match=found):
        load_adapter(tmp_path, "a")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert set(load_adapter(tmp_path, "a").a) == {"lm_head"}


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a PEFT adapter folder"):
        load_adapter(tmp_path / "absent", "a")
    folder = written(tmp_path / "there")
    (folder / CONFIG).rename(folder / "config")
    with pytest.raises(UserError, match=CONFIG):
        load_adapter(folder, "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=", a pickle"):
        load_adapter(folder, "a")
