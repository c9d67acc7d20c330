"""Adapters for mlx-lm: ``adapters.safetensors`` and its own ``adapter_config.json``.

Its layout is described in ``models/adapters/mlx.py``, which reads it.
"""

import json
import re
from pathlib import Path

from safetensors.torch import save_file
from torch.nn.functional import pad
from transformers import PretrainedConfig

from rankscope.errors import UserError
from rankscope.models.adapters.folder import BASE_HASH
from rankscope.models.adapters.mlx import MLX_WEIGHTS
from rankscope.models.adapters.settings import CONFIG
from rankscope.models.lora import Adapter
from rankscope.records import StudyRecords
from rankscope.report.use_it import BaseSource, UseStep

MLX_MODULE = re.compile(r"model\.layers\.\d+\.(.+)|(lm_head)")


def write_mlx(
    adapter: Adapter,
    out: Path,
    config: PretrainedConfig,
    study: StudyRecords,
    base: BaseSource,
) -> list[UseStep]:
    """Write an adapter of LoRA or DoRA.

    mlx-lm gives all modules one rank and one scale. Smaller ranks are filled with zeros, which
    change no product. Raises UserError: it changes a module that mlx-lm would not find.
    """
    rank = max(map(len, adapter.a.values()))
    tensors, keys = {}, set[str]()
    for module, a in adapter.a.items():
        if (named := MLX_MODULE.fullmatch(module)) is None:
            expected = "modules of model.layers, or lm_head"
            raise UserError("--format mlx", f"an adapter of {module!r}", expected)
        keys.add(named[1] or named[2])
        b, missing = adapter.b[module].detach(), rank - len(a)
        tensors[f"{module}.lora_a"] = pad(a.detach(), (0, 0, 0, missing)).T.contiguous()
        tensors[f"{module}.lora_b"] = pad(b, (0, missing)).T.contiguous()
    tensors |= {f"{module}.m": m.detach() for module, m in adapter.magnitude.items()}
    save_file(tensors, out / MLX_WEIGHTS, {BASE_HASH: study.model.sha256})
    scale = {"rank": rank, "scale": adapter.scaling, "dropout": 0.0, "keys": sorted(keys)}
    settings = {
        "fine_tune_type": "dora" if adapter.magnitude else "lora",
        "num_layers": config.num_hidden_layers,
        "lora_parameters": scale,
    }
    (out / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    model = base.hub_name or base.shell
    command = f'mlx_lm.generate --model {model} --adapter-path . --prompt "Your question"'
    return [UseStep("Generate with mlx-lm", command, note=base.note * bool(base.python))]
