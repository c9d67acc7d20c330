"""Write a copy of an adapter's folder with some of its modules changed.

Everything else keeps its bytes: tensors their dtype, alphas their spelling.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rankscope.filesystem import check_taken, folder_in_one_step
from rankscope.models.adapters.folder import (
    MAGNITUDE,
    MODULE_PREFIX,
    as_whole,
    read_weights,
    with_sorted_metadata,
)
from rankscope.models.adapters.settings import CONFIG, WEIGHTS, AdapterSettings
from rankscope.models.low_rank_update import StoredFactors


def rewrite(source: Path, out: Path, changed: Mapping[str, StoredFactors], card: str) -> None:
    """Write the adapter of ``source`` to ``out``, in one step, with the modules of ``changed``
    replaced.

    Ranks and alphas that differ from the adapter's own go into PEFT's ``rank_pattern`` and
    ``alpha_pattern``. With nothing changed, both files are copies, byte for byte.
    """
    check_taken(out)
    with folder_in_one_step(out) as folder:
        if changed:
            write_changed(source, folder, changed)
        else:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(source / name, folder / name)
        (folder / "README.md").write_text(card, encoding="utf-8")


def write_changed(source: Path, folder: Path, changed: Mapping[str, StoredFactors]) -> None:
    tensors, metadata = read_weights(source / WEIGHTS)
    for name, factors in changed.items():
        key = f"{MODULE_PREFIX}{name}"
        tensors[f"{key}.lora_A.weight"] = factors.A.detach().to("cpu", torch.float32)
        tensors[f"{key}.lora_B.weight"] = factors.B.detach().to("cpu", torch.float32)
        if factors.magnitude is not None:
            tensors[f"{key}{MAGNITUDE}"] = factors.magnitude.detach().to("cpu", torch.float32)
    settings = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    text = json.dumps(changed_settings(settings, tensors), indent=2, sort_keys=True)
    data = save(
        {key: t.contiguous() for key, t in tensors.items()}, metadata={"format": "pt", **metadata}
    )
    (folder / WEIGHTS).write_bytes(with_sorted_metadata(data))
    (folder / CONFIG).write_text(text, encoding="utf-8")


def changed_settings(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """``adapter_config.json`` for the ranks of ``tensors``; every scaling stays."""
    before = AdapterSettings.model_validate(settings)
    ranks = {
        key.removeprefix(MODULE_PREFIX).removesuffix(".lora_A.weight"): len(tensor)
        for key, tensor in tensors.items()
        if key.endswith(".lora_A.weight")
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]

    def alpha_at(name: str, rank: int) -> float:
        if rank == before.rank_of(name):  # keeps the written number
            return before.alpha_of(name)
        return before.scaling_of(name) * before.rank_scale(rank)

    alphas = {name: alpha_at(name, module_rank) for name, module_rank in ranks.items()}
    alpha = Counter(alphas[name] for name, r in ranks.items() if r == rank).most_common(1)[0][0]
    return settings | {
        "r": rank,
        "lora_alpha": as_whole(alpha),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {n: as_whole(other) for n, other in alphas.items() if other != alpha},
        "init_lora_weights": True,
    }
