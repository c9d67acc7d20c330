"""An arm of the study file: one method, or several alike, with lists that span a grid."""

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from rankscope.config.section import (
    ConfigSection,
    Name,
    OneOrMore,
    PathText,
    ZeroOrMore,
    short_repr,
)
from rankscope.models.methods import all_methods, get_method
from rankscope.models.methods.lora import LoraMethod
from rankscope.models.methods.method import Method
from rankscope.models.methods.peft import STATEFUL_TYPES

ScheduleName = Literal["linear", "cosine", "constant"]
PeftSettings = dict[str, JsonValue]
PeftMethod = dict[Literal["peft"], PeftSettings]
"""``{peft: {peft_type: ADALORA, ...}}``: another PEFT method, with PEFT's own settings."""

ADAPTER_FIELDS = frozenset(name for method in all_methods() for name in method.arm_fields)
"""Fields of an arm that only some methods have."""
TRAIN_OVERRIDES = (
    "batch_size",
    "gradient_accumulation",
    "schedule",
    "warmup_fraction",
    "weight_decay",
)
"""Fields of ``train`` that an arm may override."""
MITIGATIONS = ("replay", "kl_to_base", "early_stop")
"""Fields of an arm that are axes of its grid but not fields of ``train``."""

AlphaMultiple = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?)?r$")]
Rank = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Rows = Annotated[int, Field(ge=1)]
WarmupFraction = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0)]
DivergenceWeight = Annotated[float, Field(ge=0)]


def named_methods() -> tuple[str, ...]:
    """Methods that an arm gives by name alone."""
    return tuple(method.name for method in all_methods() if not method.takes_settings)


class _NamedMethod:
    """Lists the registered methods in the JSON schema."""

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": list(named_methods()), "type": "string"}


NamedMethod = Annotated[str, _NamedMethod()]


def checked_method(value: Any) -> Any:
    """A method by name, or ``{peft: {...}}`` with JSON values, empty ones left out."""
    if isinstance(value, dict):
        return checked_peft(value)
    names = named_methods()
    if value not in names:
        close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.55)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"method {short_repr(value)}: expected one of {', '.join(names)}, or another PEFT method as "
            f"{{peft: {{peft_type: ADALORA, ...}}}}{hint}"
        )
    return value


def checked_peft(value: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """Another PEFT method: one key ``peft`` with a mapping that names its ``peft_type``."""
    settings = value.get("peft")
    if set(value) != {"peft"} or not isinstance(settings, dict):
        raise ValueError(
            f"method {short_repr(value)}: expected {{peft: {{peft_type: ADALORA, ...}}}}, one key with "
            "the settings of a PEFT method"
        )
    settings = {key: entry for key, entry in settings.items() if entry is not None}
    if not isinstance(settings.get("peft_type"), str):
        raise ValueError("method peft: 'peft_type' is missing: name one, such as ADALORA or VERA")
    if "target_modules" in settings:
        raise ValueError("method peft: remove 'target_modules': the arm's 'targets' names them")
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method peft: expected values that JSON can hold: {error}") from error
    return {"peft": settings}


def checked_alpha(value: Any) -> Any:
    """Alpha is a positive number or a multiple of the rank, such as ``2r``."""
    expected = "expected a positive number or a multiple of the rank such as '2r'"
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)?r", value.strip())
        if match is None or (match[1] is not None and not 0 < float(match[1]) < math.inf):
            raise ValueError(f"alpha {short_repr(value)}: {expected}")
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"alpha {short_repr(value)}: {expected}")
    if not 0 < value < math.inf:  # NaN compares false
        raise ValueError(f"alpha {short_repr(value)}: {expected}")
    return float(value)


Alpha = Annotated[
    float | str, BeforeValidator(checked_alpha, json_schema_input_type=float | AlphaMultiple)
]
AnyMethod = Annotated[
    str | PeftMethod,
    BeforeValidator(checked_method, json_schema_input_type=NamedMethod | PeftMethod),
]


TARGET_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("k_proj", "o_proj", "q_proj", "v_proj"),
    "mlp": ("down_proj", "gate_proj", "up_proj"),
    "all-linear": (
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ),
}
TargetGroup = Literal["attention", "mlp", "all-linear"]
TargetSet = TargetGroup | list[str]
MODULE_PATTERN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"


def parse_target_sets(value: Any) -> Any:
    """Targets as a list of sets: ``attention``, a list of groups, of module names, or of sets.

    ``[q_proj, v_proj]`` is one set of two modules; ``[attention, all-linear]`` and
    ``[[q_proj, v_proj], attention]`` are two points of the grid.
    """
    groups = ", ".join(TARGET_GROUPS)
    if isinstance(value, str) and value in TARGET_GROUPS:
        value = [value]
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"targets {short_repr(value)}: expected one of {groups}, or a list of names"
        )
    is_set = [isinstance(entry, list) or entry in TARGET_GROUPS for entry in value]
    if not any(is_set):
        value = [value]
    elif not all(is_set):
        name = value[is_set.index(False)]
        raise ValueError(
            f"targets mix groups and the module name {short_repr(name)}: put a set of module names "
            "into a list of its own, as in [attention, [q_proj, v_proj]]"
        )
    for names in value:
        if isinstance(names, list):
            check_module_names(names)
    return value


def check_module_names(names: list[Any]) -> None:
    if not names:
        raise ValueError("targets is empty: name at least one module")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(MODULE_PATTERN, name):
            raise ValueError(
                f"target {short_repr(name)}: expected {', '.join(TARGET_GROUPS)}, or a module name "
                "such as 'q_proj'"
            )


class ReplayConfig(ConfigSection):
    """General rows mixed into every optimizer step, in addition to the task's own."""

    task: Name
    """Task whose training rows are replayed: described in the study, or a named one."""
    share: float = Field(ge=0, lt=1)
    """Share of the replayed rows in all rows seen, and in the loss; 0 is no replay."""


class EarlyStopConfig(ConfigSection):
    """Stop a trial that no longer improves, and keep the weights of its best score."""

    patience: int = Field(ge=1)
    """Evaluations (``train.evaluate_every``) without a better in-domain validation score."""


class ArmConfig(ConfigSection):
    """One method with its hyper-parameter lists; the grid is their product."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["method"]}, {"required": ["init_from"]}]}
    )

    method: OneOrMore[AnyMethod] = []
    """By name, or ``{peft: {peft_type: ADALORA, ...}}`` for any other PEFT method."""
    rank: ZeroOrMore[Rank] = []
    """LoRA rank r, one or more."""
    alpha: OneOrMore[Alpha] = ["2r"]
    """LoRA alpha: a number, or a multiple of the rank such as ``2r``."""
    lr: OneOrMore[LearningRate]
    """Peak learning rate; always explicit, since a rank sweep at one rate measures the rate."""
    lr_ratio: OneOrMore[LearningRate] | None = None
    """``lora+`` alone: the learning rate of B over that of A, whose rate is ``lr``; 16."""
    targets: Annotated[
        list[TargetSet],
        BeforeValidator(
            parse_target_sets, json_schema_input_type=TargetGroup | list[str] | list[TargetSet]
        ),
    ] = ["attention"]
    """``attention``, ``mlp``, ``all-linear`` or a list of module names; several sets in a list."""
    dropout: OneOrMore[Dropout] = [0.0]
    """Dropout on the adapter's input, probability."""
    init_from: PathText = None
    """Folder of a LoRA or DoRA adapter in PEFT's format that training goes on from."""
    batch_size: OneOrMore[Rows] | None = None
    """This arm's own ``train.batch_size``."""
    gradient_accumulation: OneOrMore[Rows] | None = None
    """This arm's own ``train.gradient_accumulation``."""
    schedule: OneOrMore[ScheduleName] | None = None
    """This arm's own ``train.schedule``."""
    warmup_fraction: OneOrMore[WarmupFraction] | None = None
    """This arm's own ``train.warmup_fraction``."""
    weight_decay: OneOrMore[WeightDecay] | None = None
    """This arm's own ``train.weight_decay``."""
    replay: OneOrMore[ReplayConfig] | None = None
    """General rows mixed in: ``{task: NAME, share: 0.1}``."""
    kl_to_base: OneOrMore[DivergenceWeight] | None = None
    """Weight of KL(base || tuned), nats per label token, in the loss; of the replayed rows where
    the arm has ``replay``, of the task's own where it has not."""
    early_stop: OneOrMore[EarlyStopConfig] | None = None
    """``{patience: N}``: stop after N points of ``train.evaluate_every`` without a better in-domain
    score on the validation split, and keep the best weights."""

    @model_validator(mode="after")
    def fits_method(self) -> Self:
        """Check that the arm's methods go together and take the arm's settings."""
        methods = self.methods
        if not methods and self.init_from is None:
            raise ValueError(f"'method' is missing: name one of {', '.join(named_methods())}")
        for method in methods:
            if self.init_from is not None and not method.accepts_warm_start:
                continued = [m.name for m in all_methods() if m.accepts_warm_start]
                raise ValueError(
                    f"'init_from' continues a LoRA or DoRA adapter: expected a method among "
                    f"{', '.join(continued)}, found {method.name!r}"
                )
            if method.trains_alone and any(other.name != method.name for other in methods):
                raise ValueError(
                    f"method {method.name!r} {method.arm_note}: give it an arm of its own"
                )
        self._check_fields(methods)
        if any(self.kl_to_base or ()) and any(m.occupies_base for m in methods):
            raise ValueError(
                "'kl_to_base' needs the bare base beside the trained model, which method 'peft' "
                f"changes in place: remove it, or use one of {', '.join(named_methods())}"
            )
        if self.early_stop and (stateful := STATEFUL_TYPES & self.peft_types()):
            raise ValueError(
                f"'early_stop' restores the best parameters, but {min(stateful)} has more state "
                "than its parameters (its ranks keep falling): remove it"
            )
        return self

    def _check_fields(self, methods: Sequence[Method]) -> None:
        fields = {name for m in methods or [LoraMethod()] for name in m.arm_fields}
        if misplaced := ", ".join(sorted((ADAPTER_FIELDS & self.model_fields_set) - fields)):
            name = repr(methods[0].name) if methods else "of the adapter"
            note = methods[0].arm_note if methods else ""
            owners = [m.name for m in all_methods() if fields < set(m.arm_fields)]
            raise ValueError(
                f"method {name} {note}: remove {misplaced}"
                if note
                else f"method {name} has no {misplaced}: remove it, or use {' or '.join(owners)}"
            )
        if not self.rank and self.init_from is None and "rank" in fields:
            raise ValueError(f"method {methods[0].name!r} needs 'rank'")

    @property
    def methods(self) -> list[Method]:
        """The registered methods; none if the arm leaves the choice to ``init_from``."""
        return [get_method("peft" if isinstance(m, dict) else m) for m in self.method]

    @property
    def is_full(self) -> bool:
        """Full fine-tuning: no rank, alpha, targets or dropout."""
        return any(method.trains_base for method in self.methods)

    def unused_fields(self) -> frozenset[str]:
        """Settings of adapters that the arm's methods do not have."""
        used = {name for method in self.methods or [LoraMethod()] for name in method.arm_fields}
        return ADAPTER_FIELDS - used

    def peft_types(self) -> set[str]:
        """The PEFT types of the arm's ``peft`` methods, in capitals."""
        return {str(m["peft"]["peft_type"]).upper() for m in self.method if isinstance(m, dict)}

    def target_sets(self) -> list[tuple[str, ...]]:
        """The sets of module names that receive adapters, each sorted, names once."""
        return [
            tuple(sorted(set(TARGET_GROUPS[s] if isinstance(s, str) else s))) for s in self.targets
        ]

    def grids(self) -> Iterator[dict[str, list[Any]]]:
        """One grid per method: the field of a trial -> its values, in the order of the product."""
        # What is left out beside 'init_from' is its adapter's, which is not read here.
        names: list[AnyMethod | None] = [*self.method] or [None]
        methods = self.methods or [LoraMethod()]
        for name, method in zip(names, methods, strict=True):
            axes: dict[str, list[Any]] = {"method": [name]}
            if "targets" in method.arm_fields:
                axes["targets"] = self.target_sets()
            if method.has_rank:
                axes["rank"] = self.rank or [None]  # taken from the adapter of 'init_from'
                axes["alpha"] = self.alpha
            axes["lr"] = self.lr
            for setting, default in method.field_defaults.items():
                axes[setting] = getattr(self, setting) or [default]
            if method.has_rank:
                axes["dropout"] = self.dropout
            if self.init_from is not None:
                axes["init_from"] = [self.init_from]
            own = {name: getattr(self, name) for name in (*TRAIN_OVERRIDES, *MITIGATIONS)}
            yield axes | {name: values for name, values in own.items() if values is not None}

    def num_points(self) -> int:
        """Points of this arm's grid as written, repeated values counted."""
        return sum(math.prod(len(axis) for axis in grid.values()) for grid in self.grids())


def resolved_alpha(alpha: float | str, rank: int) -> float:
    """Alpha as a number: ``2r`` at rank 8 is 16."""
    if isinstance(alpha, str):
        return float(alpha.removesuffix("r") or 1) * rank
    return float(alpha)
