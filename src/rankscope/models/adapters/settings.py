"""What ``adapter_config.json`` says about A and B, and which adapters are readable."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankscope.errors import UserError
from rankscope.models.methods import all_methods, get_lora_method
from rankscope.models.methods.dora import DoraMethod
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.pissa import PissaMethod
from rankscope.models.methods.rslora import RsLoraMethod

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Initializations that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change it."""
READABLE_INITS = (*PLAIN_INITS, "pissa")  # PiSSA's W - W0 is a function of the base


class AdapterSettings(BaseModel):
    """The part of ``adapter_config.json`` that gives the stored A and B their meaning."""

    model_config = ConfigDict(extra="allow")

    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}  # Keys match as in PEFT
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}

    def rank_scale(self, rank: int) -> float:
        return get_lora_method(
            RsLoraMethod.name if self.use_rslora else LoraMethod.name
        ).rank_scale(rank)

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.rank_scale(self.r)

    @property
    def methods(self) -> tuple[LoraMethod, ...]:
        """The registered methods that write such a configuration."""
        flags = {name: True for name in method_fields() if getattr(self, name, False)}
        return tuple(m for m in lora_methods() if dict(m.peft_fields) == flags)

    @property
    def method_name(self) -> str:
        """The method whose forward pass the adapter needs."""
        if self.init_lora_weights == PissaMethod.name:
            return PissaMethod.name
        if self.methods:
            return self.methods[0].name
        return DoraMethod.name if self.use_dora else LoraMethod.name

    def rank_of(self, name: str) -> int:
        return self.rank_pattern.get(pattern_key(self.rank_pattern, name), self.r)

    def alpha_of(self, name: str) -> float:
        return self.alpha_pattern.get(pattern_key(self.alpha_pattern, name), self.lora_alpha)

    def scaling_of(self, name: str) -> float:
        return self.alpha_of(name) / self.rank_scale(self.rank_of(name))


def pattern_key(pattern: Collection[str], name: str) -> str:
    """The key that PEFT matches a module with; importing PEFT takes seconds."""
    if not pattern:
        return name
    from peft.utils.other import get_pattern_key

    return str(get_pattern_key(list(pattern), name))


HARMLESS = frozenset(
    {
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config"),
        *("ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
        *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
        *("loftq_config", "lora_alpha", "lora_dropout", "peft_type", "peft_version", "r"),
        *("rank_pattern", "revision", "target_modules", "task_type"),
    }
)
"""Settings that are read, or that do not change the meaning of A and B."""


def lora_methods() -> list[LoraMethod]:
    return [method for method in all_methods() if isinstance(method, LoraMethod)]


def method_fields() -> set[str]:
    return {name for method in lora_methods() for name in method.peft_fields}


def read_adapter_config(folder: Path, inits: Collection[object] = PLAIN_INITS) -> AdapterSettings:
    """``adapter_config.json`` of a LoRA adapter with an accepted ``init_lora_weights``."""
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise UserError(
                f"adapter {folder}: adapter_model.bin is a pickle, which can run code when loaded; "
                "load it once with PEFT on a machine that you trust and save it again with "
                "save_pretrained"
            )
        raise UserError(f"adapter {folder}: no {WEIGHTS}; expected a PEFT adapter folder")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("expected a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"adapter {folder}: {CONFIG} cannot be used: {error}") from error
    if config.get("peft_type") != "LORA":
        raise UserError(f"adapter {folder}: peft_type {config.get('peft_type')!r}; expected 'LORA'")
    try:
        settings = AdapterSettings.model_validate(config)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"adapter {folder}: {CONFIG} cannot be used: {faults}") from error
    init = config.get("init_lora_weights", True)
    if init not in inits:
        raise UserError(
            f"adapter {folder}: init_lora_weights {init!r} changes the base weights, so these A "
            "and B do not fit the plain base; convert it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    from peft import LoraConfig

    defaults, known = vars(LoraConfig()), HARMLESS | method_fields()
    for name, value in config.items():
        if value and name not in known and (name not in defaults or value != defaults[name]):
            raise UserError(f"adapter {folder}: {name} = {value!r} is not supported")
    return settings
