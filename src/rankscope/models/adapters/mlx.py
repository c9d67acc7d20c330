"""Adapters of mlx-lm, read as if PEFT had written them.

A folder of mlx-lm holds ``adapters.safetensors`` and an ``adapter_config.json`` whose fields differ
from PEFT's. All modules have the same rank and the same ``scale``, alpha / r. Source:
``tuner/utils.py``, ``lora.py`` and ``dora.py`` of mlx-lm 0.32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rankscope.errors import IntegrityError, UserError, reading

MLX_WEIGHTS = "adapters.safetensors"
MLX_PARTS = {
    "lora_a": "lora_A.weight",  # (in, r), which PEFT stores as (r, in)
    "lora_b": "lora_B.weight",  # (r, out), which PEFT stores as (out, r)
    "m": "lora_magnitude_vector",  # (out,) in both
}
"""Maps the end of a tensor's name in mlx-lm to its end in PEFT."""


def is_mlx_config(config: Mapping[str, Any]) -> bool:
    return "lora_parameters" in config and "peft_type" not in config


def config_as_peft(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Make PEFT's ``adapter_config.json`` from mlx-lm's, which was read from ``path``.

    It names no target modules: mlx-lm counts layers from the last one, and only the caller knows
    the model. Raises UserError: the model was fully fine-tuned, or the config has no rank.
    """
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        do = "merge it by mlx_lm.fuse and give that folder"
        raise UserError(path, f"fine_tune_type {kind!r}", "'lora' or 'dora'", do)
    with reading(path, "'rank' and 'scale' in mlx-lm's 'lora_parameters'"):
        rank, scale = int(config["lora_parameters"]["rank"]), config["lora_parameters"]["scale"]
        alpha = float(scale) * rank
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": config.get("model"),
        "r": rank,
        "lora_alpha": alpha,
        "use_dora": kind == "dora",
        "target_modules": None,
    }


def tensors_as_peft(path: Path, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Put mlx-lm's tensors under PEFT's names, which begin with ``prefix``, and in PEFT's
    layout."""
    renamed = {}
    for key, tensor in tensors.items():
        module, _, part = key.rpartition(".")
        if part not in MLX_PARTS or tensor.ndim != (1 if part == "m" else 2):
            found = f"a tensor {key!r} of shape {tuple(tensor.shape)}"
            raise IntegrityError(path, found, "matrices lora_a and lora_b of linear layers")
        renamed[f"{prefix}{module}.{MLX_PARTS[part]}"] = tensor.T if part != "m" else tensor
    return renamed
