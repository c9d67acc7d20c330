"""PEFT methods: what is rejected, what is counted, and that the base comes back as it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import stock
from peft import PeftModel
from safetensors.torch import load, save
from tiny_models import assert_close, base_of, tiny_llama
from torch import Tensor
from toy_training import ATTENTION, peft_trial, trial

from rankscope.errors import IntegrityError, UserError
from rankscope.models.adapters.folder import BASE_HASH
from rankscope.models.adapters.settings import CONFIG, WEIGHTS
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.init_context import new_adapter
from rankscope.models.peft_backend.settings import (
    _count_parameters as count_parameters,
    peft_config,
)
from rankscope.models.peft_backend.tuner import PeftTuner, load_tuner, new_tuner

ROWS = [Row([5, 6, 7, 4, 9], [1, 3]), Row([8, 4, 5], [1])]
METHODS: list[dict[str, Any]] = [
    {"peft_type": "VERA", "r": 16},
    {"peft_type": "OFT", "oft_block_size": 8},
    {"peft_type": "IA3", "feedforward_modules": []},
    {"peft_type": "ADALORA", "init_r": 6, "target_r": 3},
    {"peft_type": "LOHA", "r": 4},
    {"peft_type": "LOKR", "r": 4},
    {"peft_type": "FOURIERFT", "n_frequency": 50},
    {"peft_type": "LN_TUNING"},
    {"peft_type": "LORA", "init_lora_weights": "pissa", "r": 4},
    {"peft_type": "LORA", "init_lora_weights": "olora", "r": 4},
    {"peft_type": "LORA", "modules_to_save": ["lm_head"], "r": 4},
]
IDS = [json.dumps(settings) for settings in METHODS]
# PEFT says of transformers' norms what it says of any layer that is none of torch's own.
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")


def logits(base: Base) -> Tensor:
    with torch.no_grad():
        return base.logits(RowBatch.of(ROWS, base.device))


def trained(base: Base, settings: dict[str, Any], steps: int = 8) -> PeftTuner:
    """A few large steps toward token 3."""
    tuner = new_tuner(base, peft_trial("p", **settings), steps)
    optimizer = torch.optim.AdamW(tuner.parameters(), lr=3e-2)
    for step in range(steps):
        tuner.begin_step(step)
        batch = RowBatch.of(ROWS, base.device)
        tuner.tuned.logits(batch).log_softmax(-1)[:, 3].sum().neg().backward()
        tuner.penalize()
        optimizer.step()
        tuner.after_update(step)
        optimizer.zero_grad()
    return tuner


@pytest.mark.parametrize("settings", METHODS, ids=IDS)
def test_the_base_is_bit_for_bit_what_it_was_and_what_was_stored_gives_the_same_logits(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    base = base_of(tiny_llama())
    before, names = logits(base), [name for name, _ in base.model.named_modules()]
    tuner = trained(base, settings)
    after = logits(tuner.tuned)
    assert not torch.equal(after, before)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        tuner.save(base.record, folder)
    for file in (CONFIG, WEIGHTS):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    assert torch.equal(logits(base), before)
    assert [name for name, _ in base.model.named_modules()] == names
    expected = dict(tiny_llama().named_parameters())
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert not parameter.requires_grad
    if settings.get("init_lora_weights") != "olora":  # the very weights, not a copy of them
        shared = {p.data_ptr() for p in tuner.tuned.model.parameters()}
        assert base.model.get_input_embeddings().weight.data_ptr() in shared
    # What comes after finds a base like any other.
    base.multi_lora.attach(new_adapter(base.model, trial("next")))
    assert torch.equal(logits(base), before)
    # AdaLoRA stores the ranks it kept alone, so its products have another shape.
    assert torch.allclose(logits(load_tuner(base, folders[0])), after, atol=1e-6, rtol=0)
    if settings["peft_type"] == "VERA":
        model = PeftModel.from_pretrained(tiny_llama(), str(folders[0])).eval()
        with torch.no_grad():
            bare = model(input_ids=torch.tensor([ROWS[0].ids])).logits[0, list(ROWS[0].keep)]
        assert torch.allclose(bare, after[:2], atol=1e-5, rtol=0)


def test_experts_train_by_their_tensors(tmp_path: Path) -> None:
    base = base_of(stock("Mixtral"))
    before = logits(base)
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    tuner = trained(base, {"peft_type": "LORA", "r": 4, "target_parameters": names})
    # Of the experts' adapters alone: with A at zero, attention is the base's.
    for name, parameter in tuner.tuned.model.named_parameters():
        if "self_attn" in name and "lora_A" in name:
            parameter.data.zero_()
    after = logits(tuner.tuned)
    assert not torch.allclose(after, before, atol=0.1)
    assert torch.equal(logits(base), before)
    tuner.save(base.record, tmp_path)
    assert_close(logits(load_tuner(base, tmp_path)), after)
    bare = PeftModel.from_pretrained(stock("Mixtral"), str(tmp_path)).eval()
    with torch.no_grad():
        found = [bare(input_ids=torch.tensor([row.ids])).logits[0, list(row.keep)] for row in ROWS]
    assert_close(torch.cat(found), after)


def test_a_method_that_writes_into_the_bases_weights_is_found_out(tmp_path: Path) -> None:
    base = base_of(tiny_llama())
    tuner = new_tuner(base, peft_trial("p", peft_type="VERA"), 4)
    with torch.no_grad():
        tuner.tuned.model.model.norm.weight[3] += 1e-7
    with pytest.raises(IntegrityError, match="changed weights of the base"):
        tuner.save(base.record, tmp_path)


@pytest.mark.parametrize("settings", METHODS[:7], ids=IDS[:7])
def test_merged_weights_give_the_logits_of_the_method(settings: dict[str, Any]) -> None:
    base = base_of(tiny_llama())
    tuner = trained(base, settings)
    after = logits(tuner.tuned)
    names = tuner.mergeable()
    assert len(names) == 8  # two layers with q, k, v and o
    merged = {name: tuner.merged_weight(name) for name in names}
    modules = dict(base.model.named_modules())
    for name, weight in merged.items():
        modules[name].weight.data = weight
    assert torch.allclose(logits(base), after, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "LORA", "init_lora_weights": False, "lora_dropout": 0.3},
        {"peft_type": "PVERA", "init_weights": False},
    ],
    ids=["lora", "pvera"],
)
def test_what_a_method_draws_in_training_is_not_taken_for_rows_that_mix(
    settings: dict[str, Any],
) -> None:
    base = base_of(tiny_llama())
    tuner = new_tuner(base, peft_trial("p", **settings), 4)
    assert torch.equal(logits(tuner.tuned), logits(tuner.tuned))
    tuner.begin_step(0)
    assert not torch.equal(logits(tuner.tuned), logits(tuner.tuned))


@pytest.mark.parametrize("settings", METHODS[:8], ids=IDS[:8])
def test_the_count_without_weights_is_the_models(settings: dict[str, Any]) -> None:
    base = base_of(tiny_llama())
    config = peft_config(settings, ATTENTION, 8)
    counted = count_parameters(base.model.config, config)
    tuner = new_tuner(base, peft_trial("p", **settings), 8)
    assert counted == sum(p.numel() for p in tuner.parameters())
    # By hand for IA3: two layers; q 64, k 32, v 32 and o 64 outputs.
    assert settings["peft_type"] != "IA3" or counted == 2 * (64 + 32 + 32 + 64)


def test_a_start_from_the_weights_is_not_counted() -> None:
    config = peft_config({"peft_type": "LORA", "init_lora_weights": "pissa"}, ATTENTION)
    assert count_parameters(tiny_llama().config, config) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "VEAR"}, "did you mean 'VERA'"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}, "virtual tokens before every"),
        ({"peft_type": "P_TUNING"}, "virtual tokens before every"),
        ({"peft_type": "PREFIX_TUNING"}, "virtual tokens before every"),
        ({"peft_type": "XLORA"}, "mixes adapters"),
        ({"peft_type": "VERA", "vera_droput": 0.1}, "did you mean 'vera_dropout'"),
        ({"peft_type": "VERA", "zzz": 0.1}, "unknown field 'zzz', expected some of"),
        ({"peft_type": "VERA", "target_modules": ["q_proj"]}, "the arm's 'targets'"),
        ({"peft_type": "ADALORA", "total_step": 7}, "number of optimizer steps"),
        ({"peft_type": "ADALORA", "init_r": 4, "target_r": 4}, "init_r 4 not above target_r 4"),
        ({"peft_type": "ADALORA", "tinit": 5, "tfinal": 5}, "a budgeting phase"),
        ({"peft_type": "LORA", "alora_invocation_tokens": [3]}, "the whole sequence"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "needs a pass over data"),
        ({"peft_type": "LORA", "r": 0}, r"found a fault \(`r` should be"),
        ({"peft_type": "C3A", "block_size": 48}, r"found a fault \(The block size"),
        (
            {"peft_type": "FOURIERFT", "layers_pattern": "h"},
            "FOURIERFT: found a fault .*, expected settings that PEFT can use",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        count_parameters(tiny_llama().config, peft_config(settings, ATTENTION, 10))


def test_a_stored_method_of_another_base_or_with_a_hole_is_refused(tmp_path: Path) -> None:
    base = base_of(tiny_llama())
    tuner = trained(base, METHODS[0])
    tuner.save(base.record, tmp_path)
    other = replace(base, record=base.record.model_copy(update={"sha256": "1" * 64}))
    with pytest.raises(UserError, match="made for another base"):
        load_tuner(other, tmp_path)
    tensors = load((tmp_path / WEIGHTS).read_bytes())
    hole = {name: t for name, t in tensors.items() if "layers.1.self_attn.q_proj" not in name}
    (tmp_path / WEIGHTS).write_bytes(save(hole, metadata={BASE_HASH: base.record.sha256}))
    with pytest.raises(IntegrityError, match="missing adapter keys"):
        load_tuner(base, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"junk" * 9)
    with pytest.raises(IntegrityError, match=str(tmp_path)):
        load_tuner(base, tmp_path)
    name = next(iter(tensors))
    for broken in (torch.full_like(tensors[name], torch.nan), torch.zeros(3, 1)):
        spoiled = {**tensors, name: broken}
        (tmp_path / WEIGHTS).write_bytes(save(spoiled, metadata={BASE_HASH: base.record.sha256}))
        with pytest.raises((IntegrityError, UserError), match="adapter"):
            load_tuner(base, tmp_path)
