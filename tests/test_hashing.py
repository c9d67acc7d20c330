"""Hashes: known digests, invariances, and sensitivity to every bit that matters."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rankscope.errors import UserError
from rankscope.hashing import sha256_json, sha256_tensors, tokenizer_sha256, weights_sha256


def test_json_digest_ignores_order_and_nothing_else() -> None:
    assert sha256_json({"a": 1, "b": [2.5, None]}) == sha256_json({"b": [2.5, None], "a": 1})
    expected = hashlib.sha256(b'{"a":1,"b":[2.5,null]}').hexdigest()
    assert sha256_json({"b": [2.5, None], "a": 1}) == expected
    assert sha256_json({"a": 1}) != sha256_json({"a": 1.0})
    assert sha256_json([1, 2]) != sha256_json([2, 1])
    with pytest.raises(ValueError, match="JSON compliant"):
        sha256_json([1.0, float("nan")])


def make_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_tokenizer_digest_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    files = {"merges.txt": "one", "additional_chat_templates/b": "two"}
    first = tokenizer_sha256(make_folder(tmp_path / "x", files))
    again = tokenizer_sha256(make_folder(tmp_path / "y", dict(reversed(files.items()))))
    assert first == again
    others = [
        {"merges.txt": "two", "additional_chat_templates/b": "one"},
        {"merges.txt": "one", "additional_chat_templates/c": "two"},
        {"merges.txt": "one", "vocab.txt": "two"},
        {"merges.txt": "one"},
        {"merges.txt": "one", "additional_chat_templates/b": "two", "vocab.json": ""},
    ]
    digests = {
        tokenizer_sha256(make_folder(tmp_path / str(i), other)) for i, other in enumerate(others)
    }
    assert len(digests) == len(others)
    assert first not in digests


def test_tensor_digest_sees_every_bit_name_shape_and_dtype() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator)
    bits = weight.view(torch.int32).clone()
    bits[2, 3] ^= 1
    digests = {
        sha256_tensors({"w": weight}),
        sha256_tensors({"w": bits.view(torch.float32)}),
        sha256_tensors({"v": weight}),
        sha256_tensors({"w": weight.reshape(4, 3)}),
        sha256_tensors({"w": weight.view(torch.int32)}),
        sha256_tensors({"w": weight, "empty": torch.empty(0)}),
    }
    assert len(digests) == 6
    transposed = weight.t().contiguous().t()  # same values, other strides
    assert sha256_tensors({"w": transposed}) == sha256_tensors({"w": weight})
    both = {"a": weight, "b": weight.bfloat16()}
    assert sha256_tensors(both) == sha256_tensors(dict(reversed(both.items())))


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 4, "transformers_version": "5.0.0"}
    (folder / "config.json").write_text(json.dumps(config))
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))
    save_file({"weight": weight}, folder / "model.safetensors")
    return folder


def test_weights_digest_ignores_what_saving_changes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    digest = weights_sha256(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"transformers_version": "5.9.0", "_name_or_path": "elsewhere"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "README.md").write_text("a card")
    assert weights_sha256(folder) == digest
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert weights_sha256(moved) == digest


def test_weights_digest_sees_architecture_and_one_flipped_bit(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    digest = weights_sha256(folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_sha256(folder) != digest
    data[-1] ^= 1
    path.write_bytes(data)
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    assert weights_sha256(folder) != digest


def test_weights_digest_refuses_what_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config\.json: found a JSON list, expected a JSON object"):
        weights_sha256(tmp_path)
    (tmp_path / "config.json").write_text('{"rope_theta": 1e999}')
    with pytest.raises(
        UserError, match=r"config\.json: found a fault .*, expected a configuration with finite"
    ):
        weights_sha256(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("chat_template.jinja", "additional_chat_templates/tools.jinja"),
        *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"),
    ],
)
def test_tokenizer_digest_sees_its_files_and_no_others(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path, {name: "one", "config.json": "{}"})
    before = tokenizer_sha256(folder)
    make_folder(folder, {"config.json": "{ }", "README.md": "a card"})
    assert tokenizer_sha256(folder) == before
    make_folder(folder, {name: "two"})
    assert tokenizer_sha256(folder) != before
