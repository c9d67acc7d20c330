"""Adapters on disk, in PEFT's format: what training writes any PEFT user can load, and back.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. The hash of
the base stands in the safetensors metadata, where PEFT ignores it and :func:`load_adapter` checks
it.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rankscope.errors import IntegrityError, UserError
from rankscope.models.adapters.settings import (
    CONFIG,
    PLAIN_STARTS,
    WEIGHTS,
    AdapterSettings,
    read_adapter_config,
)
from rankscope.models.lora import Adapter
from rankscope.models.methods import get_lora_method
from rankscope.provenance import sha256_file, sha256_json
from rankscope.records import ModelRecord, TrialSpec

BASE_HASH = "rankscope_base_sha256"
PREFIX = "base_model.model."
MAGNITUDE = ".lora_magnitude_vector"
"""Ends the name of DoRA's m."""


COPY = ".base_layer.weight"
"""Ends the name of a base weight that PEFT wrote along."""


def save_adapter(adapter: Adapter, trial: TrialSpec, base: ModelRecord, folder: Path) -> None:
    """Write one trained adapter into an existing, empty folder.

    Raises:
        ValueError: the trial says another scaling than the adapter was trained with.
    """
    if trial.scaling != adapter.scaling:
        raise ValueError(
            f"{trial.label}: scaling {trial.scaling} is not the adapter's, {adapter.scaling}"
        )
    tensors = {}
    for name in adapter.a:
        factors = dict(zip("AB", adapter.factors(name), strict=True))
        for side, tensor in factors.items():
            tensors[f"{PREFIX}{name}.lora_{side}.weight"] = tensor.cpu().contiguous()
        if name in adapter.magnitude:
            magnitude = adapter.magnitude[name].detach()
            tensors[f"{PREFIX}{name}{MAGNITUDE}"] = magnitude.cpu().contiguous()
    data = save(tensors, metadata={"format": "pt", BASE_HASH: base.sha256})
    (folder / WEIGHTS).write_bytes(with_sorted_metadata(data))
    peft_settings(adapter, trial, base).save_pretrained(str(folder))
    # PEFT writes a set, whose order changes from process to process; the bytes must not.
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def peft_settings(adapter: Adapter, trial: TrialSpec, base: ModelRecord) -> LoraConfig:
    """What PEFT needs to know of an adapter, so that it finds the same scaling in every module.

    Ranks differ between modules for EVA, and where an adapter whose ranks do is trained further;
    every module keeps the adapter's scaling. An adapter that started as a part of the base (PiSSA)
    is stored as B A - B0 A0: plain LoRA of twice the rank, which fits the whole base.
    """
    double = 2 if adapter.initial_factors else 1
    ranks = {name: len(a) for name, a in adapter.a.items() if len(a) != adapter.rank}
    method = get_lora_method(adapter.method)
    per_rank = adapter.alpha / method.rank_scale(adapter.rank)
    alphas = {name: per_rank * method.rank_scale(rank) for name, rank in ranks.items()}
    # A module that got no rank at all must not be a target: PEFT would give it one.
    targets = list(adapter.targets) if method.fills_targets else sorted(adapter.a)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base.label,
        r=double * adapter.rank,
        lora_alpha=as_whole(double * adapter.alpha),
        rank_pattern=ranks,
        alpha_pattern={name: as_whole(alpha) for name, alpha in alphas.items()},
        lora_dropout=adapter.dropout,
        target_modules=targets,
        bias="none",
        inference_mode=True,
        **method.peft_fields,
    )


def as_whole(alpha: float) -> Any:
    """Alpha as PEFT knows it, an integer, where it is one; PEFT divides by it like a number."""
    return int(alpha) if alpha == int(alpha) else alpha


def with_sorted_metadata(data: bytes) -> bytes:
    """A safetensors file's bytes with its metadata in the order of keys.

    safetensors writes them in an order that changes from call to call; equal adapters must have
    equal bytes. The file is the header's length (8 bytes, little-endian), the header and the data.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padding = -len(text) % 8  # the data starts at a multiple of 8
    size = (len(text) + padding).to_bytes(8, "little")
    return size + text + b" " * padding + data[8 + length :]


def load_adapter(
    folder: Path,
    adapter_name: str,
    base: ModelRecord | None = None,
    starts: Collection[object] = PLAIN_STARTS,
    *,
    has_copies: bool = False,
) -> Adapter:
    """Read a LoRA or DoRA adapter that PEFT or Rankscope wrote, strictly.

    Where PEFT's ``alpha_pattern`` gives a module another scaling than the rest, its B takes the
    difference, so that one scaling holds for the adapter.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        adapter_name: the name it gets in a multi_lora.
        base: refuse an adapter whose recorded base hash differs; one without a hash is accepted.
        starts: values of PEFT's ``init_lora_weights`` that the caller knows how to read.
        has_copies: leave out PEFT's copy of an output head, which the caller compares with the
            base's; refused otherwise.

    Raises:
        UserError: no such files, a pickle, a PEFT type other than LoRA, or another base.
        IntegrityError: an A without its B or the reverse, extra, misshapen or non-finite tensors. A
            module that lacks both is not noticed here: the ledger's hash of the file does that.
    """
    settings = read_adapter_config(folder, starts)
    parts: dict[str, dict[str, nn.Parameter]] = {"A": {}, "B": {}, "m": {}}
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
            for key in keys:
                if is_copy(key, keys):
                    if has_copies:
                        continue
                    raise UserError(
                        f"{path}: {key!r} is a copy of the output head, which is read from the "
                        "base alone; expected A and B: load the adapter with PEFT and write it by "
                        "save_pretrained(FOLDER, save_embedding_layers=False)"
                    )
                name, part = module_and_part(key, path)
                tensor = file.get_tensor(key).float()
                if not torch.isfinite(tensor).all():
                    raise IntegrityError(f"{path}: tensor {key!r} holds values that are not finite")
                parts[part][name] = nn.Parameter(tensor, requires_grad=False)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not a readable safetensors file: {error}") from error
    if base is not None:
        check_other_base(folder, metadata.get(BASE_HASH), base.sha256)
    a, b, magnitude = parts["A"], parts["B"], parts["m"]
    check_pairs(a, b, settings, path)
    check_magnitudes(magnitude, b, settings, path)
    for name, own in b.items():
        ratio = settings.scaling_of(name) / settings.scaling
        if not math.isclose(ratio, 1, rel_tol=1e-9):  # beyond the rounding of alpha itself
            own.mul_(ratio)
    return Adapter(
        name=adapter_name,
        rank=settings.r,
        alpha=settings.lora_alpha,
        scaling=settings.scaling,
        targets=tuple(sorted(a)),
        method=settings.method_name,
        a=a,
        b=b,
        magnitude=magnitude,
    )


def check_other_base(folder: Path, recorded: str | None, base_sha256: str) -> None:
    """Raise UserError where an adapter says that it was made for other weights."""
    if recorded is not None and recorded != base_sha256:
        raise UserError(
            f"adapter {folder}: made for another base (weights {recorded[:12]}..., "
            f"this one is {base_sha256[:12]}...)"
        )


def recorded_base(folder: Path) -> str | None:
    """Hash of the base that a readable adapter was made for; None where PEFT alone wrote it."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        found: str | None = (file.metadata() or {}).get(BASE_HASH)
    return found


def adapter_sha256(folder: Path) -> str:
    """Hex sha256 over an adapter's configuration and weights.

    Raises:
        UserError: they are not there.
    """
    try:
        return sha256_json([sha256_file(folder / name) for name in (CONFIG, WEIGHTS)])
    except OSError as error:
        raise UserError(f"adapter {folder}: cannot be read: {error}") from error


def is_copy(key: str, keys: Collection[str]) -> bool:
    """Whether a tensor is an output head's own weight, which PEFT writes beside its A and B.

    PEFT loads it in place of the base's. They are equal unless somebody trained it.
    """
    return key.endswith(COPY) and f"{key.removesuffix(COPY)}.lora_A.weight" in keys


def copies(folder: Path) -> dict[str, Tensor]:
    """PEFT's copies of base weights in a readable adapter, by module path."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        keys = list(file.keys())
        return {
            key.removeprefix(PREFIX).removesuffix(COPY): file.get_tensor(key)
            for key in keys
            if is_copy(key, keys)
        }


def module_and_part(key: str, path: Path) -> tuple[str, str]:
    """``base_model.model.x.lora_A.weight`` -> (``x``, ``A``); m is the magnitude."""
    endings = {"A": ".lora_A.weight", "B": ".lora_B.weight", "m": MAGNITUDE}
    for part, ending in endings.items():
        if key.startswith(PREFIX) and key.endswith(ending):
            return key[len(PREFIX) : -len(ending)], part
    if ".lora_embedding_" in key or key.endswith(".base_layer.weight"):
        raise UserError(f"{path}: {key!r} is of an adapted embedding; expected linear layers")
    raise IntegrityError(f"{path}: unexpected tensor {key!r}; expected lora_A and lora_B weights")


def check_pairs(
    a: dict[str, nn.Parameter], b: dict[str, nn.Parameter], settings: AdapterSettings, path: Path
) -> None:
    """Every module has both halves, matrices of the configured rank."""
    if not a or set(a) != set(b):
        lonely = sorted(set(a) ^ set(b))
        raise IntegrityError(f"{path}: modules without both lora_A and lora_B: {lonely[:3]}")
    for name in a:
        if a[name].ndim != 2 or b[name].ndim != 2:
            raise IntegrityError(
                f"{path}: {name!r} has lora_A of shape {tuple(a[name].shape)} and lora_B of shape "
                f"{tuple(b[name].shape)}; expected matrices"
            )
        found, rank = (a[name].shape[0], b[name].shape[1]), settings.rank_of(name)
        if found != (rank, rank):
            raise IntegrityError(
                f"{path}: {name!r} has rank {found}, adapter_config.json says {rank}"
            )


def check_magnitudes(
    magnitude: dict[str, nn.Parameter],
    b: dict[str, nn.Parameter],
    settings: AdapterSettings,
    path: Path,
) -> None:
    """With ``use_dora`` every module has its m, (out,), and without it none."""
    expected = set(b) if settings.use_dora else set()
    if set(magnitude) != expected:
        odd = sorted(set(magnitude) ^ expected)
        says = str(settings.use_dora).lower()
        raise IntegrityError(
            f"{path}: use_dora is {says}, which does not fit the magnitudes of {odd[:3]}"
        )
    for name, m in magnitude.items():
        if m.shape != b[name].shape[:1]:
            raise IntegrityError(
                f"{path}: the magnitude of {name!r} has shape {tuple(m.shape)}, expected "
                f"{tuple(b[name].shape[:1])}"
            )
