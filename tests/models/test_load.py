"""A base that is whole loads and stays frozen; one that is not is refused by the right error."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import alone
from chat_tokenizers import CHATML, byte_tokenizer
from evaluation_worlds import tokenizer
from safetensors.torch import load_file, save_file
from tiny_models import IDS, VOCABULARY, assert_close, base_of, logits_of, tiny_llama
from torch import Tensor
from toy_training import trial
from transformers import AutoModelForCausalLM, JambaConfig, LlamaForCausalLM

from rankscope.config.study import ModelConfig, TrainConfig
from rankscope.data.encode import EncodedRow
from rankscope.errors import IntegrityError, UserError
from rankscope.hashing import sha256_tensors, weights_sha256
from rankscope.models.base import Base, Row, RowBatch
from rankscope.models.init_context import new_adapter
from rankscope.models.load import check_stored_weights, load_base
from rankscope.train.loop import train_group

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def load(folder: Path, dtype: torch.dtype = torch.float32, prompt_format: str = "auto") -> Base:
    config = ModelConfig(path=str(folder), prompt_format=prompt_format)  # type: ignore[arg-type]
    return load_base(config, CPU, dtype)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- what is whole ---


def test_a_whole_folder_loads_frozen_with_its_own_logits(whole: Path) -> None:
    check_stored_weights(whole)
    base = load(whole)
    assert_close(logits_of(base), alone(tiny_llama(), IDS))
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    record = base.record
    assert record.sha256 == weights_sha256(whole)
    assert record.num_parameters == sum(p.numel() for p in tiny_llama().parameters())
    assert (record.num_layers, record.hidden_size, record.vocab_size) == (2, 64, VOCABULARY)
    assert (record.dtype, record.device, record.prompt_format) == ("float32", "cpu", "plain")
    assert record.architecture == "LlamaForCausalLM"
    half = load(whole, torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.record.dtype == "bfloat16"


def test_lora_training_leaves_every_weight_as_it_was(whole: Path) -> None:
    base = load(whole)
    before = sha256_tensors(dict(base.model.named_parameters()))
    spec = trial(lr=1e-2, targets=("q_proj", "down_proj", "lm_head"), dropout=0.1)
    row = EncodedRow(tuple(IDS), (False,) + (True,) * (len(IDS) - 1), False)
    result = train_group(base, [spec], [row], TrainConfig(max_steps=5, warmup_fraction=0))
    assert result.states[0].losses[-1].loss < result.states[0].losses[0].loss
    base.multi_lora.clear()
    after = {
        name.replace(".linear.weight", ".weight"): p for name, p in base.model.named_parameters()
    }
    assert sha256_tensors(after) == before


# --- what is not ---


V = "model.layers.1.self_attn.v_proj.weight"


@pytest.mark.pitfall(34)
@pytest.mark.parametrize(
    ("change", "message", "by_values"),
    [
        (lambda t: t.pop(V), f"1 weights missing, such as '{V}'", False),
        (lambda t: t[V][3, 4].fill_(torch.nan), f"'{V}' that is not finite", True),
        (
            lambda t: t.update({V: torch.zeros(32, 63)}),
            "v_proj.weight' of shape (32, 63), expected (32, 64) as config",
            False,
        ),
    ],
    ids=["absent", "NaN", "shape"],
)
def test_faulty_weights_are_integrity_errors(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str, by_values: bool
) -> None:
    edit(folder, change)
    for check in (load,) if by_values else (load, check_stored_weights):
        with pytest.raises(IntegrityError, match=re.escape(message)) as caught:
            check(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"junk" * 9, None], ids=["junk", "cut"])
def test_files_that_are_no_safetensors_are_refused(folder: Path, content: bytes | None) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(content or file.read_bytes()[:-100])
    with pytest.raises((UserError, IntegrityError), match=str(folder)):
        load(folder)


def test_one_of_several_files_that_is_absent_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="200KB")
    tokenizer().save_pretrained(tmp_path)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    load(tmp_path)
    files[0].unlink()
    with pytest.raises((UserError, IntegrityError), match=str(tmp_path)):
        load(tmp_path)


def test_stored_rotary_frequencies_are_no_stray_weights(folder: Path) -> None:
    edit(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"no config\.json"),
        ("model.safetensors", r"no weights, expected \*\.safetensors"),
        ("tokenizer.json", "expected a folder with a usable tokenizer"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        load(folder)
    with pytest.raises(UserError, match="no such folder"):
        load(folder / "absent")


def test_a_pickle_alone_is_refused_and_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "nothing-known"}'])
def test_a_configuration_that_cannot_be_used_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("hidden_size", "x", UserError), ("hidden_act", "nope", UserError),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, UserError),
        ("num_hidden_layers", 3, IntegrityError), ("num_hidden_layers", 1, IntegrityError),
        ("vocab_size", VOCABULARY + 1, IntegrityError),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    folder: Path, key: str, value: object, error: type[Exception]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(error, match=str(folder)):
        load(folder)


@pytest.mark.filterwarnings("ignore")  # transformers misses the fast kernels of state spaces
def test_an_adapter_that_a_state_space_would_skip_is_refused() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_layer_offset": 1}
    model = AutoModelForCausalLM.from_config(JambaConfig(**shape, **heads, num_experts=1))
    base = base_of(model)
    base.multi_lora.attach(new_adapter(model, trial("a", targets=("dt_proj",))))
    with pytest.raises(UserError, match=r"dt_proj': found a model that multiplies by its weight"):
        base.logits(RowBatch.of([Row([3, 4], [1], "a")], base.device))


def test_chat_is_refused_without_a_template_and_found_where_there_is_one(
    whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="'chat': found a tokenizer without chat template"):
        load(whole, prompt_format="chat")
    LlamaForCausalLM.from_pretrained(whole).save_pretrained(tmp_path)
    byte_tokenizer(CHATML).save_pretrained(tmp_path)
    assert load(tmp_path).record.prompt_format == "chat"
    assert load(tmp_path, prompt_format="plain").record.prompt_format == "plain"
