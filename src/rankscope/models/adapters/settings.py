"""What ``adapter_config.json`` says of a LoRA adapter's A and B, and which of it can be read."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankscope.errors import UserError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Initializations that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change it."""
READ_STARTS = (*PLAIN_STARTS, "pissa")
"""Those from which W - W0 is known: PiSSA's start is a function of the base."""


class AdapterSettings(BaseModel):
    """The part of ``adapter_config.json`` that says what the stored A and B mean."""

    model_config = ConfigDict(extra="ignore")

    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Ranks of modules other than ``r``; keys are matched as PEFT matches them."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}

    @property
    def scaling(self) -> float:
        """s in W0 + s B A."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    def rank_of(self, name: str) -> int:
        """A module's own rank."""
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), name), self.r)

    def alpha_of(self, name: str) -> float:
        """A module's own alpha."""
        key = get_pattern_key(list(self.alpha_pattern), name)
        return self.alpha_pattern.get(key, self.lora_alpha)

    def scaling_of(self, name: str) -> float:
        """A module's own s."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (rank**0.5 if self.use_rslora else rank)


HARMLESS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
"""Settings that are read, or that say nothing about what A and B mean."""


def read_config(folder: Path, starts: Collection[object] = PLAIN_STARTS) -> AdapterSettings:
    """``adapter_config.json`` of a plain LoRA adapter.

    Raises:
        UserError: it is missing, unreadable, or sets something that gives A and B another meaning.
    """
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise UserError(
                f"adapter {folder}: adapter_model.bin is a pickle, which can run code when loaded "
                "and is refused; load it once with PEFT where you trust it and save_pretrained it"
            )
        raise UserError(f"adapter {folder}: no {WEIGHTS}; expected a PEFT adapter folder")
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"adapter {folder}: {CONFIG} cannot be used: {error}") from error
    if found.get("peft_type") != "LORA":
        raise UserError(f"adapter {folder}: peft_type {found.get('peft_type')!r}; expected 'LORA'")
    try:
        settings = AdapterSettings.model_validate(found)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"adapter {folder}: {CONFIG} cannot be used: {faults}") from error
    start = found.get("init_lora_weights", True)
    if start not in starts:
        raise UserError(
            f"adapter {folder}: init_lora_weights {start!r} changes the base weights, so these A "
            "and B do not fit the plain base; convert it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    defaults = vars(LoraConfig())
    for name, value in found.items():
        if name in HARMLESS or name == "init_lora_weights" or not value:
            continue
        if name not in defaults or value != defaults[name]:
            raise UserError(f"adapter {folder}: {name} = {value!r} is not supported")
    return settings
