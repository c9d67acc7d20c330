"""An arm of the study file: one method, or several alike, with lists that span a grid."""

import difflib
import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from rankscope.config.section import (
    ConfigSection,
    Name,
    OneOrMore,
    PathText,
    ZeroOrMore,
    short_repr,
)

Method = Literal["lora", "rslora", "lora+", "dora", "pissa", "eva", "full"]
ScheduleName = Literal["linear", "cosine", "constant"]
PeftSettings = dict[str, JsonValue]
PeftMethod = dict[Literal["peft"], PeftSettings]
"""``{peft: {peft_type: ADALORA, ...}}``: a method of PEFT's with fields of its configuration."""

METHODS: tuple[str, ...] = get_args(Method)
LORA_ONLY = frozenset({"rank", "alpha", "targets", "dropout", "lr_ratio"})
"""Fields of an arm that full fine-tuning does not have."""
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
STATEFUL_PEFT = frozenset({"ADALORA"})
"""Methods of PEFT's that are more than their parameters: these alone do not bring them back."""
CONTINUED = ("lora", "rslora", "lora+", "dora")
"""Methods that can go on from an adapter on disk; the others have a start that makes them."""
DEFAULT_LR_RATIO = 16.0
"""LoRA+ (Hayou et al., 2402.12354): the rate of B over that of A."""

AlphaMultiple = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?)?r$")]
Rank = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Rows = Annotated[int, Field(ge=1)]
WarmupFraction = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0)]
DivergenceWeight = Annotated[float, Field(ge=0)]


def checked_method(value: Any) -> Any:
    """A method by name, or ``{peft: {...}}`` with values that JSON knows, empty ones left out."""
    if isinstance(value, dict):
        return checked_peft(value)
    if value not in METHODS:
        close = difflib.get_close_matches(str(value), METHODS, n=1, cutoff=0.55)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"method {short_repr(value)}: expected one of {', '.join(METHODS)}, or a method of "
            f"PEFT's as {{peft: {{peft_type: ADALORA, ...}}}}{meant}"
        )
    return value


def checked_peft(value: dict[Any, Any]) -> dict[str, dict[str, Any]]:
    """A method of PEFT's: one key ``peft`` with a mapping that names its ``peft_type``."""
    settings = value.get("peft")
    if set(value) != {"peft"} or not isinstance(settings, dict):
        raise ValueError(
            f"method {short_repr(value)}: expected {{peft: {{peft_type: ADALORA, ...}}}}, one key "
            "with the settings of PEFT's method"
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
    Method | PeftMethod,
    BeforeValidator(checked_method, json_schema_input_type=Method | PeftMethod),
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
    """By name, or ``{peft: {peft_type: ADALORA, ...}}`` for any other method of PEFT's."""
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
        """LoRA needs a rank; full fine-tuning and PEFT's methods have none here."""
        given = sorted(LORA_ONLY & self.model_fields_set)
        unfit = [method for method in self.method if method not in CONTINUED]
        if not self.method and self.init_from is None:
            raise ValueError(f"'method' is missing: name one of {', '.join(METHODS)}")
        if self.init_from is not None and unfit:
            raise ValueError(
                f"'init_from' goes on from a LoRA or DoRA adapter: expected a method among "
                f"{', '.join(CONTINUED)}, found {short_repr(unfit[0])}"
            )
        if self.is_full:
            if len(set(map(str, self.method))) > 1:
                raise ValueError("method 'full' has no rank: give it an arm of its own")
            if given:
                raise ValueError(f"method 'full' trains every weight: remove {', '.join(given)}")
            return self
        if self.is_peft:
            if any(isinstance(method, str) for method in self.method):
                raise ValueError("a method of PEFT's has settings of its own: give it its own arm")
            if given := [name for name in given if name != "targets"]:
                raise ValueError(
                    f"a method of PEFT's takes {', '.join(given)} from its own settings: put them "
                    "there, under the names PEFT has for them"
                )
            if any(self.kl_to_base or ()):
                raise ValueError(
                    "'kl_to_base' needs the bare base beside the trained model, and a method of "
                    "PEFT's is on the base itself: remove it, or use one of "
                    f"{', '.join(METHODS)}"
                )
            if self.early_stop and (kept := STATEFUL_PEFT & self.peft_types()):
                raise ValueError(
                    f"'early_stop' keeps the best parameters, and {min(kept)} is more than its "
                    "parameters (a pattern of ranks that goes on falling): remove it"
                )
            return self
        if not self.rank and self.init_from is None:
            raise ValueError(f"method {self.method[0]!r} needs 'rank'")
        if "lr_ratio" in given and "lora+" not in self.method:
            found = f"method {self.method[0]!r}" if self.method else "no method"
            raise ValueError(
                f"'lr_ratio' is the rate of B over that of A in 'lora+', found {found}: "
                "remove it, or change the method"
            )
        return self

    @property
    def is_full(self) -> bool:
        """Full fine-tuning: no rank, alpha, targets or dropout."""
        return "full" in self.method

    @property
    def is_peft(self) -> bool:
        """A method that PEFT trains, with settings of its own."""
        return any(isinstance(method, dict) for method in self.method)

    def peft_types(self) -> set[str]:
        """The types of the methods that PEFT trains, in capitals."""
        return {str(m["peft"]["peft_type"]).upper() for m in self.method if isinstance(m, dict)}

    def target_sets(self) -> list[tuple[str, ...]]:
        """The sets of module names that receive adapters, each sorted, names once."""
        return [
            tuple(sorted(set(TARGET_GROUPS[s] if isinstance(s, str) else s))) for s in self.targets
        ]

    def grids(self) -> Iterator[dict[str, list[Any]]]:
        """One grid per method: the field of a trial -> its values, in the order of the product."""
        # What is left out beside 'init_from' is its adapter's, which is not read here.
        methods: list[AnyMethod | None] = [*self.method] or [None]
        ranks: list[int | None] = [*self.rank] or [None]
        for method in methods:
            axes: dict[str, list[Any]] = {"method": [method]}
            if not self.is_full:
                axes["targets"] = self.target_sets()
            if not (self.is_full or self.is_peft):
                axes |= {"rank": ranks, "alpha": self.alpha}
            axes["lr"] = self.lr
            if method == "lora+":
                axes["lr_ratio"] = self.lr_ratio or [DEFAULT_LR_RATIO]
            if not (self.is_full or self.is_peft):
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
