"""The settings in ``adapter_config.json`` that give A and B their meaning, and their check."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from rankscope.config.patterns import compile_pattern
from rankscope.errors import UserError, reading
from rankscope.filesystem import read_json_object
from rankscope.models.adapters.mlx import MLX_WEIGHTS, config_as_peft, is_mlx_config
from rankscope.models.methods import LORA, MethodKind, all_methods, get_method

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_INITS = {method.peft_init: method for method in all_methods() if method.peft_init}
PLAIN_INITS = (
    *(True, False, "gaussian", "orthogonal"),
    *(name for name, method in _INITS.items() if not method.init_is_part_of_base),
)
"""Initializations that leave the base unchanged; OLoRA, CorDA and LoftQ change it."""
READABLE_INITS = (*PLAIN_INITS, *(_INITS.keys() - set(PLAIN_INITS)))
"""Adds initializations that change the base by a function of its weights, so that W - W0 can be
computed again."""
PATH_SECONDS = 0.1
"""Processor time for one match of a regular expression. A match takes microseconds unless the
expression is slow by construction."""

CONVERSION = "PEFT's path_initial_model_for_weight_conversion"

Rank = Annotated[int, Field(ge=1, lt=2**31)]
StoredAlpha = Annotated[float, Field(ge=1e-9, le=1e9)]  # Over a rank neither 0 nor infinite


class AdapterSettings(BaseModel):
    """The fields of ``adapter_config.json`` that give the stored A and B their meaning."""

    model_config = ConfigDict(extra="allow")

    r: Rank
    lora_alpha: StoredAlpha
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_lora_weights: bool | str = True
    rank_pattern: dict[str, Rank] = {}  # Keys match as in PEFT
    alpha_pattern: dict[str, StoredAlpha] = {}
    _folder: Path = PrivateAttr(default=Path())

    @property
    def flags(self) -> list[str]:
        """Set fields with which PEFT marks a method, such as ``use_rslora``."""
        return [name for name in _method_fields() if getattr(self, name, False)]

    def _marked(self, function: str) -> MethodKind:
        """Return the method that the flags mark and that overrides ``function``; else LoRA."""
        plain = get_method(LORA)
        own = (m for m in all_methods() if "peft_fields" in vars(type(m)))  # not a mark inherited
        marked = (m for m in own if not m.peft_fields.keys().isdisjoint(self.flags))
        usual = getattr(type(plain), function)
        return next((m for m in marked if getattr(type(m), function) is not usual), plain)

    def rank_scale(self, rank: int) -> float:
        return self._marked("rank_scale").rank_scale(rank)

    @property
    def has_magnitude(self) -> bool:
        """Whether every module stores m besides A and B."""
        return self._marked("forward").has_magnitude

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.rank_scale(self.r)

    @property
    def methods(self) -> tuple[MethodKind, ...]:
        """The registered methods that write such a configuration."""
        return tuple(m for m in all_methods() if m.has_rank and [*m.peft_fields] == self.flags)

    @property
    def method_name(self) -> str:
        """The method whose forward pass the adapter needs."""
        by_init = _INITS.get(str(self.init_lora_weights))
        if by_init is not None and by_init.init_is_part_of_base:
            return by_init.name
        return self.methods[0].name if self.methods else self._marked("forward").name

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(self.pattern_key(self.rank_pattern, module), self.r)

    def alpha_of(self, module: str) -> float:
        key = self.pattern_key(self.alpha_pattern, module)
        return self.alpha_pattern.get(key, self.lora_alpha)

    def scaling_of(self, module: str) -> float:
        return self.alpha_of(module) / self.rank_scale(self.rank_of(module))

    def pattern_key(self, patterns: Collection[str], module: str) -> str:
        """Return the first key that matches a module's path or its last parts, as in PEFT.

        The module itself stands for its pattern if no key matches.
        """
        return next((key for key in patterns if self.match(rf"(.*\.)?({key})", module)), module)

    def is_target(self, module: str) -> bool:
        """Whether PEFT gives the linear layer with this path an A and a B."""
        if self.names(self.exclude_modules, module) or not self.names(self.target_modules, module):
            return False
        layers, targets = self.layers_to_transform, self.target_modules
        if layers is None or layers == [] or isinstance(targets, str) or module in (targets or ()):
            return True
        patterns = _as_list(self.layers_pattern or r"[^.]*")
        found = (self.match(rf"(?:.*?\.)?{p}\.(?P<layer>\d+)\..*", module) for p in patterns)
        match = next(filter(None, found), None)
        return match is not None and int(match["layer"]) in _as_list(layers)

    def names(self, modules: list[str] | str | None, module: str) -> bool:
        """Whether a regular expression, or a list of paths and last parts of paths, names a
        module."""
        if isinstance(modules, str):
            return self.match(modules, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in modules or ())

    def match(self, pattern: str, module: str) -> Any:
        return match_pattern(self._folder, pattern, module)


def match_pattern(folder: Path, pattern: str, module: str) -> Any:
    """Match a regular expression of an adapter's configuration with a module's whole path.

    Raises UserError: the expression is invalid, or slow by construction; the file may come from
    anybody.
    """
    expected = f"a regular expression that takes {PATH_SECONDS} s at most on {module!r}"
    with reading(f"adapter {folder}: {CONFIG}: {pattern!r}", expected, do="write the names out"):
        return compile_pattern(pattern).fullmatch(module, timeout=PATH_SECONDS)


def _as_list(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


HARMLESS = frozenset(
    {
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config"),
        *("ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
        *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
        *("loftq_config", "lora_alpha", "lora_dropout", "peft_type", "peft_version", "r"),
        *("rank_pattern", "revision", "target_modules", "task_type"),
    }
)
"""Settings that are read, or that leave the meaning of A and B unchanged."""


def _method_fields() -> list[str]:
    return sorted({name for method in all_methods() for name in method.peft_fields})


def weights_file(folder: Path) -> Path:
    """Return PEFT's file of an adapter's weights, or mlx-lm's if only that exists."""
    files = [folder / WEIGHTS, folder / MLX_WEIGHTS]
    return next((file for file in files if file.is_file()), files[0])


def read_config(path: Path) -> dict[str, Any]:
    """Read an ``adapter_config.json`` in PEFT's terms, whether PEFT or mlx-lm wrote it."""
    config = read_json_object(path)
    return config_as_peft(path, config) if is_mlx_config(config) else config


def read_settings(path: Path) -> AdapterSettings:
    """Read the settings in an ``adapter_config.json``, whatever its initialization."""
    config = read_config(path)
    folder = path.parent
    if config.get("peft_type") != "LORA":
        raise UserError(f"adapter {folder}", f"peft_type {config.get('peft_type')!r}", "'LORA'")
    with reading(f"adapter {folder}: {path.name}", "PEFT's own settings"):
        settings = AdapterSettings.model_validate(config)
    settings._folder = folder
    return settings


def read_adapter_config(folder: Path, *, readable: bool = False) -> AdapterSettings:
    """Read ``adapter_config.json`` of a LoRA adapter that leaves the base unchanged.

    With ``readable``, an adapter whose start is computed from the base's weights is accepted, too.
    """
    if not weights_file(folder).is_file():
        if (folder / "adapter_model.bin").is_file():
            found = "adapter_model.bin, a pickle, which can run code when loaded"
            do = "save it again with PEFT's save_pretrained on a machine that you trust"
            raise UserError(f"adapter {folder}", found, WEIGHTS, do)
        found = f"no {WEIGHTS}" if folder.is_dir() else "no such folder"
        raise UserError(f"adapter {folder}", found, "a PEFT adapter folder")
    settings, config = read_settings(folder / CONFIG), read_config(folder / CONFIG)
    init, inits = config.get("init_lora_weights", True), PLAIN_INITS
    if readable:
        inits = READABLE_INITS
    if init not in inits:
        found = f"init_lora_weights {init!r}, which changes the base's weights"
        expected = f"one of {', '.join(map(str, inits))}, whose A and B fit the plain base"
        raise UserError(f"adapter {folder}", found, expected, f"convert it with {CONVERSION}")
    if settings.has_magnitude and get_method(settings.method_name).init_is_part_of_base:
        found = f"{settings.flags[0]} with init_lora_weights {init!r}"
        expected = "one or the other, as its norms are those of a base without that start"
        raise UserError(f"adapter {folder}", found, expected, f"convert it with {CONVERSION}")
    from peft import LoraConfig

    defaults, known = vars(LoraConfig()), HARMLESS.union(_method_fields())
    for name, value in config.items():
        if value and name not in known and (name not in defaults or value != defaults[name]):
            expected = "PEFT's default, the only supported value"
            raise UserError(f"adapter {folder}", f"{name} = {value!r}", expected)
    return settings
