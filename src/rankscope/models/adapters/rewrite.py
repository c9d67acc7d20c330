"""An adapter's folder taken apart and written again, with some of its modules changed.

What does not change keeps its bytes: tensors in their own dtype, alphas as they were written.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from rankscope.errors import DiskFull
from rankscope.filesystem import check_taken, is_disk_full
from rankscope.models.adapters.folder import MAGNITUDE, PREFIX, as_whole, with_sorted_metadata
from rankscope.models.adapters.settings import CONFIG, WEIGHTS, AdapterSettings
from rankscope.models.low_rank_update import StoredFactors


def rewrite(source: Path, out: Path, changed: Mapping[str, StoredFactors], card: str) -> None:
    """Write the adapter of ``source`` to ``out`` with the modules of ``changed`` replaced.

    Ranks and alphas that differ from the adapter's own stand in PEFT's ``rank_pattern`` and
    ``alpha_pattern``. With nothing changed, both files are copies, byte for byte.

    Args:
        source: a readable adapter's folder.
        out: comes to be in one step; an empty folder may be there.
        changed: by module path.
        card: text of the model card.

    Raises:
        UserError: ``out`` holds something already.
        DiskFull: ``out`` is left as it was.
    """
    out = out.resolve()  # "x/.." has no name to put a copy beside
    check_taken(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True)
        if changed:
            write_changed(source, aside, changed)
        else:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(source / name, aside / name)
        (aside / "README.md").write_text(card, encoding="utf-8")
        os.replace(aside, out)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"{out}: the disk is full; nothing was left there. Make room.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_changed(source: Path, folder: Path, changed: Mapping[str, StoredFactors]) -> None:
    """Both files of an adapter, the modules of ``changed`` replaced."""
    with safe_open(source / WEIGHTS, framework="pt") as file:
        metadata = {"format": "pt", **(file.metadata() or {})}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for name, module in changed.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = module.A
        tensors[f"{PREFIX}{name}.lora_B.weight"] = module.B
        if module.magnitude is not None:
            tensors[f"{PREFIX}{name}{MAGNITUDE}"] = module.magnitude
    settings = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    settings = changed_settings(settings, tensors)
    single = {key: as_single(t) if named(key) in changed else t for key, t in tensors.items()}
    data = save({k: t.contiguous() for k, t in single.items()}, metadata=metadata)
    (folder / WEIGHTS).write_bytes(with_sorted_metadata(data))
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def named(key: str) -> str:
    """Module path of a stored tensor's key."""
    return key.removeprefix(PREFIX).rpartition(".lora_")[0]


def as_single(tensor: Tensor) -> Tensor:
    """On the CPU in float32."""
    return tensor.detach().to("cpu", torch.float32)


def changed_settings(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """``adapter_config.json`` for the ranks that ``tensors`` now have, every scaling as it was."""
    before = AdapterSettings.model_validate(settings)
    ranks = {named(k): len(t) for k, t in tensors.items() if k.endswith(".lora_A.weight")}
    rank = Counter(ranks.values()).most_common(1)[0][0]

    def alpha_of(name: str, own: int) -> float:
        if own == before.rank_of(name):  # nothing is computed that was written before
            return before.alpha_of(name)
        return before.scaling_of(name) * (own**0.5 if before.use_rslora else own)

    alphas = {name: alpha_of(name, own) for name, own in ranks.items()}
    usual = Counter(alphas[n] for n, own in ranks.items() if own == rank).most_common(1)[0][0]
    return settings | {
        "r": rank,
        "lora_alpha": as_whole(usual),
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {n: as_whole(alpha) for n, alpha in alphas.items() if alpha != usual},
        "init_lora_weights": True,
    }
