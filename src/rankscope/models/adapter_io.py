"""Adapters on disk, in PEFT's format: what training writes any PEFT user can load, and back.

A folder holds ``adapter_config.json``, ``adapter_model.safetensors`` and ``README.md``. The hash of
the base stands in the safetensors metadata, where PEFT ignores it and :func:`load_adapter` checks
it.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from rankscope.errors import BadInput, IntegrityError
from rankscope.models.lora import Adapter
from rankscope.records import ModelRecord, TrialSpec

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
BASE_HASH = "rankscope_base_sha256"
PREFIX = "base_model.model."


def save_adapter(adapter: Adapter, trial: TrialSpec, base: ModelRecord, folder: Path) -> None:
    """Write one trained adapter into an existing, empty folder."""
    tensors = {}
    for name in adapter.a:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = adapter.a[name].detach().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = adapter.b[name].detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", BASE_HASH: base.sha256})
    LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base.label,
        r=adapter.rank,
        # PEFT knows alpha as an integer, though it divides like a number.
        lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        use_rslora=trial.method == "rslora",
        target_modules=list(adapter.targets),
        bias="none",
        inference_mode=True,
    ).save_pretrained(str(folder))
    (folder / "README.md").write_text(model_card(trial, base), encoding="utf-8")


def model_card(trial: TrialSpec, base: ModelRecord) -> str:
    """A plain model card: how to load the adapter and how it was trained."""
    return f"""---
base_model: {json.dumps(base.label)}
library_name: peft
tags: [lora, rankscope]
---

# {trial.task}, {trial.arm_label}, seed {trial.seed}

A LoRA adapter trained by Rankscope.

| setting | value |
|---|---|
| base | {base.label} ({base.architecture}) |
| base weights, sha256 | {base.sha256} |
| training task | {trial.task} |
| method | {trial.method} |
| rank | {trial.rank} |
| alpha | {trial.alpha} |
| learning rate | {trial.lr} |
| dropout | {trial.dropout} |
| target modules | {", ".join(trial.targets)} |
| seed | {trial.seed} |
| trial | {trial.trial_id} |

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("BASE")
model = PeftModel.from_pretrained(model, "THIS FOLDER")
```
"""


def load_adapter(folder: Path, slot: str, base: ModelRecord | None = None) -> Adapter:
    """Read a LoRA adapter that PEFT or Rankscope wrote, strictly.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        slot: the name it gets in a pack.
        base: refuse an adapter whose recorded base hash differs; one without a hash is accepted.

    Raises:
        BadInput: no such files, a pickle, a PEFT type other than LoRA, or another base.
        IntegrityError: missing, extra, misshapen or non-finite tensors.
    """
    settings = read_config(folder)
    a: dict[str, nn.Parameter] = {}
    b: dict[str, nn.Parameter] = {}
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                name, side = module_and_side(key, path)
                tensor = file.get_tensor(key).float()
                if not torch.isfinite(tensor).all():
                    raise IntegrityError(f"{path}: tensor {key!r} holds values that are not finite")
                (a if side == "A" else b)[name] = nn.Parameter(tensor, requires_grad=False)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not a readable safetensors file: {error}") from error
    found = metadata.get(BASE_HASH)
    if base is not None and found is not None and found != base.sha256:
        raise BadInput(
            f"adapter {folder}: made for another base (weights {found[:12]}..., "
            f"this one is {base.sha256[:12]}...)"
        )
    rank = int(settings["r"])
    check_pairs(a, b, rank, path)
    alpha = float(settings["lora_alpha"])
    scaling = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    return Adapter(
        slot=slot,
        rank=rank,
        alpha=alpha,
        scaling=scaling,
        targets=tuple(sorted({name.rsplit(".", 1)[-1] for name in a})),
        a=a,
        b=b,
    )


def read_config(folder: Path) -> dict[str, object]:
    """``adapter_config.json`` of a plain LoRA adapter.

    Raises:
        BadInput: it is missing, unreadable, or asks for something this reader does not do.
    """
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise BadInput(
                f"adapter {folder}: adapter_model.bin is a pickle, which can run code when loaded "
                "and is refused; load it once with PEFT where you trust it and save_pretrained it"
            )
        raise BadInput(f"adapter {folder}: no {WEIGHTS}; expected a PEFT adapter folder")
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"adapter {folder}: {CONFIG} cannot be read: {error}") from error
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise BadInput(f"adapter {folder}: peft_type {kind!r}; expected 'LORA'")
    for option in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "use_qalora"):
        if settings.get(option):
            raise BadInput(f"adapter {folder}: {option} is set, which is not supported")
    if settings.get("bias", "none") != "none":
        raise BadInput(f"adapter {folder}: bias {settings['bias']!r}; expected 'none'")
    return dict(settings)


def module_and_side(key: str, path: Path) -> tuple[str, str]:
    """``base_model.model.x.lora_A.weight`` -> (``x``, ``A``)."""
    for side in ("A", "B"):
        ending = f".lora_{side}.weight"
        if key.startswith(PREFIX) and key.endswith(ending):
            return key[len(PREFIX) : -len(ending)], side
    raise IntegrityError(f"{path}: unexpected tensor {key!r}; expected lora_A and lora_B weights")


def check_pairs(
    a: dict[str, nn.Parameter], b: dict[str, nn.Parameter], rank: int, path: Path
) -> None:
    """Every module has both halves, of the configured rank."""
    if not a or set(a) != set(b):
        lonely = sorted(set(a) ^ set(b))
        raise IntegrityError(f"{path}: modules without both lora_A and lora_B: {lonely[:3]}")
    for name in a:
        found = (a[name].shape[0], b[name].shape[1])
        if found != (rank, rank):
            raise IntegrityError(
                f"{path}: {name!r} has rank {found}, adapter_config.json says {rank}"
            )
