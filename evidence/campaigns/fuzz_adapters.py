"""Adapters that somebody made: their configuration and weights, and everything that reads them."""

import json
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz_mutations import altered, as_bytes, damaged, json_text

ADAPTER = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "init_lora_weights": True,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "modules_to_save": None,
    "exclude_modules": None,
    "rank_pattern": {},
    "alpha_pattern": {"q_proj": 4},
    "target_modules": ["q_proj", "v_proj"],
}
MODULES = [f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qv"]
PATTERNS = (
    "(",
    "[",
    "(a+)+$",
    "(.*.*.*)*x",
    "(?:.?){40}.{40}",
    ".*",
    "",
    "q_proj",
    "\\",
    "(?i)Q_PROJ",
    "^",
)
OTHER_TYPES = ("LOHA", "LOKR", "ADALORA", "VERA", "IA3", "OFT", "PROMPT_TUNING", "lora", "")


@cache
def tiny_base() -> Any:
    """A Llama of two layers, 32 numbers wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@cache
def tiny_shapes() -> Any:
    from rankscope.models.parameters import architecture

    return architecture(tiny_base().config)


@cache
def adapter_weights() -> bytes:
    import torch
    from safetensors.torch import save

    tensors = {}
    for name in MODULES:
        rows = 32 if "q_proj" in name else 16
        for part, shape in (("A", (2, 32)), ("B", (rows, 2))):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = torch.ones(shape)
    return save(tensors, metadata={"format": "pt"})


@st.composite
def adapter_inputs(draw: st.DrawFn) -> bytes:
    config: dict[str, Any] = dict(ADAPTER)
    patterns, sizes = st.sampled_from(PATTERNS), [2, 0, -1, 1e308, 1e-320, 10**30]
    by_module = st.dictionaries(patterns, st.sampled_from(sizes), min_size=1, max_size=1)
    unusual = {
        "rank_pattern": by_module,
        "alpha_pattern": by_module,
        "target_modules": patterns,
        "exclude_modules": patterns,
        "layers_pattern": patterns,
        "peft_type": st.sampled_from(OTHER_TYPES),
        "r": st.sampled_from([2**40, 10**400, 1, 3]),
    }
    for key in draw(st.lists(st.sampled_from(list(unusual)), max_size=2)):
        config[key] = draw(unusual[key])
    text = json_text(draw(st.just(config) | altered(config)))
    return draw(damaged(as_bytes(text)))


def read_adapter(content: bytes, folder: Path) -> None:
    read_adapter_folder(content, adapter_weights(), folder)


def read_adapter_folder(config: bytes, weights: bytes, folder: Path) -> None:
    """Everything that reads an adapter's folder; the last error is raised."""
    from rankscope.config.arm import ArmConfig
    from rankscope.errors import RankscopeError
    from rankscope.models.adapters.folder import check_same_base, load_adapter, recorded_base
    from rankscope.models.adapters.settings import CONFIG, WEIGHTS
    from rankscope.models.adapters.warm_start import _filled_arm as filled_arm
    from rankscope.models.given import peft_type

    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    with suppress(RankscopeError):
        adapter = load_adapter(folder, "start", shapes=tiny_shapes().linear_shapes)
        filled_arm(ArmConfig(lr=1e-3, init_from=str(folder)), folder, adapter, tiny_shapes())
    if (kind := peft_type(folder)) in ("LORA", None):
        load_adapter(folder, "start", shapes=tiny_shapes().linear_shapes)
    check_same_base(folder, recorded_base(folder), "0" * 64)
    if kind not in ("LORA", None):
        attach_other(folder)


def attach_other(folder: Path) -> None:
    """Put another PEFT method on the base, and take it off."""
    from rankscope.models.base import Base
    from rankscope.models.multi_lora import MultiLora
    from rankscope.models.peft_backend.tuner import load_tuner
    from rankscope.records import ModelRecord

    record, model = ModelRecord.model_construct(label="tiny", sha256="0" * 64), tiny_base()
    base = Base(model, None, record, folder, MultiLora(model))
    load_tuner(base, folder)
    base.multi_lora.clear()


@st.composite
def weight_inputs(draw: st.DrawFn) -> bytes:
    content = adapter_weights()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    types = st.sampled_from(["F16", "BF16", "F64", "I8", "BOOL", "U64", "F8_E4M3", "F4", "C64"])
    shapes = st.sampled_from([[], [0, 2**40], [64], [2**62, 4], [2, 32, 1], [16, 4]])
    for key in draw(st.lists(st.sampled_from(list(header)), max_size=1)):
        header[key] = header[key] | {"dtype": draw(types), "shape": draw(shapes)}
    text = as_bytes(json_text(draw(st.just(header) | altered(header))))
    sizes = [len(text)] * 5 + [0, 2**63, 2**32, 100_000_000, len(text) - 1]
    whole = struct.pack("<Q", draw(st.sampled_from(sizes))) + text + data
    return draw(damaged(whole))


def read_safetensors(content: bytes, folder: Path) -> None:
    from rankscope.models.checkpoint_reader import _shards_of as shards_of, opened_weights

    (folder / "adapter").mkdir()
    (folder / "model.safetensors").write_bytes(content)
    for name, path in shards_of(folder).items():
        with opened_weights(path) as file:
            file.get_tensor(name)
    read_adapter_folder(json.dumps(ADAPTER).encode(), content, folder / "adapter")


ADAPTERS, WEIGHTS = adapter_inputs(), weight_inputs()
