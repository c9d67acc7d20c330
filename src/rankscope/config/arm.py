"""One arm of the study file: methods and hyper-parameters, each a single value or a list.

A list makes the value an axis of the arm's grid.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from rankscope.config.section import (
    ConfigSection,
    Described,
    LocalPath,
    Name,
    OneOrMore,
    PathText,
    RegisteredName,
    Unfit,
    ZeroOrMore,
    short_repr,
)
from rankscope.errors import did_you_mean
from rankscope.models.methods import LORA, MethodKind, all_methods, get_method
from rankscope.train.objectives import objectives, parse_objective

ScheduleName = Literal["linear", "cosine", "constant"]

TRAIN_OVERRIDES = {
    "batch_size": "batch",
    "gradient_accumulation": "accumulation",
    "schedule": "schedule",
    "warmup_fraction": "warmup",
    "weight_decay": "decay",
    "objective": "objective",
}
"""Fields of ``train`` that an arm may override, each with its name in labels."""
MITIGATIONS = ("replay", "kl_to_base", "early_stop")
"""Fields of an arm that are axes of its grid but not fields of ``train``."""
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
MLP = ("down_proj", "gate_proj", "up_proj")
TARGET_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "mlp": MLP,
    "all-linear": tuple(sorted(ATTENTION + MLP)),
}
TargetSet = Literal["attention", "mlp", "all-linear"] | list[str]
MODULE_PATTERN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"

TrainedBy = Annotated[
    str,
    BeforeValidator(
        parse_objective,
        json_schema_input_type=Annotated[str, RegisteredName(objectives)]
        | dict[Annotated[str, RegisteredName(objectives)], dict[str, JsonValue]],
    ),
]
"""An objective by name, or with its settings."""
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


# --- values of an arm ---------------------------------------------------------------------------


def _named_methods() -> tuple[str, ...]:
    return tuple(method.name for method in all_methods() if not method.takes_settings)


def _methods_with_settings() -> tuple[str, ...]:
    return tuple(method.name for method in all_methods() if method.takes_settings)


def adapter_fields() -> frozenset[str]:
    """Return the names of the arm fields that only some methods have, such as ``alpha``."""
    return frozenset(name for method in all_methods() for name in method.arm_fields)


def _parse_method(value: Any) -> Any:
    """Check a method's name, or ``{name: settings}``, and drop settings without a value."""
    with_settings = {m.name: m for m in all_methods() if m.takes_settings}
    if isinstance(value, dict) and len(value) == 1:
        (name, settings), *_ = value.items()
        if name in with_settings and isinstance(settings, dict):
            given = {key: entry for key, entry in settings.items() if entry is not None}
            with_settings[name].check_settings(given)
            return {name: given}
    names = _named_methods()
    if isinstance(value, str) and value in names:
        return value
    rule = ", ".join([*names, *(m.settings_example for m in with_settings.values())])
    hint = did_you_mean(value, names)
    raise Unfit(f"method {short_repr(value)}", f"one of {rule}", hint)


def resolved_alpha(alpha: float | str, rank: int) -> float:
    """Alpha as a number: ``2r`` at rank 8 is 16, and ``2sqrt(r)`` at rank 9 is 6."""
    if isinstance(alpha, str):
        factor, root, _ = alpha.removesuffix("r").partition("sqrt(r)")
        return float(factor or 1) * (rank**0.5 if root else rank)
    return float(alpha)


def _parse_target_sets(value: Any) -> Any:
    """Parse targets: ``attention``, or a list of groups, of module names, or of sets.

    ``[q_proj, v_proj]`` is one set of two modules; ``[attention, all-linear]`` and
    ``[[q_proj, v_proj], attention]`` are two points of the grid.
    """
    groups = ", ".join(TARGET_GROUPS)
    if isinstance(value, str) and value in TARGET_GROUPS:
        value = [value]
    if not isinstance(value, list) or not value:
        raise Unfit(short_repr(value), f"one of {groups}, or a list of names")
    is_set = [isinstance(e, list) or (isinstance(e, str) and e in TARGET_GROUPS) for e in value]
    if not any(is_set):
        value = [value]
    elif not all(is_set):
        name = value[is_set.index(False)]
        found = f"the module name {short_repr(name)} beside groups"
        rule = "a set of names in a list of its own, as in [attention, [q_proj, v_proj]]"
        raise Unfit(found, rule)
    for names in value:
        if names == []:
            raise Unfit("an empty list", "at least one module")
        for name in names if isinstance(names, list) else []:
            if not isinstance(name, str) or not re.fullmatch(MODULE_PATTERN, name):
                rule = f"{groups}, or a module name such as 'q_proj'"
                raise Unfit(f"target {short_repr(name)}", rule)
    return value


ALPHA_MULTIPLE = (  # Without 0r
    r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)?(r|sqrt\(r\))$"
)
Alpha = Annotated[
    PositiveFloat | Annotated[str, Field(pattern=ALPHA_MULTIPLE)],
    Described("a positive number, or a multiple of the rank such as '2r' or '16sqrt(r)'"),
]
MethodSettings = dict[Annotated[str, RegisteredName(_methods_with_settings)], dict[str, JsonValue]]
"""A method with its settings: ``{peft: {peft_type: ADALORA, ...}}``."""
MethodChoice = Annotated[
    str | MethodSettings,
    BeforeValidator(
        _parse_method,
        json_schema_input_type=Annotated[str, RegisteredName(_named_methods)] | MethodSettings,
    ),
]


# --- sections -----------------------------------------------------------------------------------


class _ReplayConfig(ConfigSection):
    """General rows mixed into every optimizer step, in addition to the task's own."""

    task: Name
    """Task whose training rows are replayed: described in the study, or a named one."""
    share: float = Field(ge=0, lt=1)
    """Share of the replayed rows in all rows seen, and in the loss; 0 is no replay."""


class _EarlyStopConfig(ConfigSection):
    """Stop a trial that no longer improves, and keep the weights of its best score."""

    patience: int = Field(ge=1)
    """Evaluations (``train.evaluate_every``) without a better in-domain validation score."""


class ArmConfig(ConfigSection):
    """One method with its hyper-parameter lists; the grid is their product."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["method"]}, {"required": ["init_from"]}]}
    )

    method: OneOrMore[MethodChoice] = []
    """Method name, or ``{peft: {peft_type: ADALORA, ...}}`` for any other PEFT method.
    ``init_from`` makes it optional."""
    rank: ZeroOrMore[PositiveInt] = []
    """LoRA rank r, one or more. Methods with a rank need it, except beside ``init_from``."""
    rank_pattern: Annotated[PathText | dict[str, PositiveInt], LocalPath()] = None
    """Ranks by module in place of ``rank``: the ``adapter_config.json`` of an adapter,
    such as ``shrink --parameters`` writes; or every target's rank by module path. The file's
    ``targets`` are the default. All modules have one scaling; tables name the rank with as many
    parameters."""
    alpha: OneOrMore[Alpha] = ["2r"]
    """LoRA alpha: a number, a multiple of the rank (``2r``) or of its root (``16sqrt(r)``)."""
    lr: OneOrMore[PositiveFloat] | None = None
    """Peak learning rate, which all methods but ``prompt`` need. It has no default, because a rank
    sweep at one rate measures the rate."""
    lr_ratio: OneOrMore[PositiveFloat] | None = None
    """``lora+`` only: learning rate of B over that of A, which is ``lr``; by default 16."""
    targets: Annotated[
        list[TargetSet],
        BeforeValidator(_parse_target_sets, json_schema_input_type=TargetSet | list[TargetSet]),
    ] = ["attention"]
    """``attention`` (q, k, v, o), ``mlp`` (gate, up, down), ``all-linear`` or a list of module
    names. Several sets are a list of these: ``[attention, [q_proj, v_proj]]``."""
    match: Literal["parameters"] | None = None
    """``parameters`` keeps the ranks for the first set of targets. Every other set gets the rank
    that trains as many parameters, within 5 %."""
    dropout: OneOrMore[Fraction] = [0.0]
    """Dropout on the adapter's input, probability."""
    rows: OneOrMore[PositiveInt | Literal["all"]] | None = None
    """Number of training rows of each task, or ``all``: the first of one shuffled order, so a
    smaller set is part of a larger one. The steps follow from the epochs."""
    num_fewshot: OneOrMore[Annotated[int, Field(ge=0)]] | None = None
    """``prompt`` only: solved examples before each item of the training task, from its training
    rows. The default is the number that the task shows anyway."""
    system: OneOrMore[str] | None = None
    """``prompt`` only: text before every item of every task, as the system turn if there is a chat
    template. An empty text adds nothing."""
    init_from: PathText = None
    """Folder of a LoRA or DoRA adapter in PEFT's format to continue training from."""
    batch_size: OneOrMore[PositiveInt] | None = None
    """Overrides ``train.batch_size``."""
    gradient_accumulation: OneOrMore[PositiveInt] | None = None
    """Overrides ``train.gradient_accumulation``."""
    schedule: OneOrMore[ScheduleName] | None = None
    """Overrides ``train.schedule``."""
    warmup_fraction: OneOrMore[Fraction] | None = None
    """Overrides ``train.warmup_fraction``."""
    weight_decay: OneOrMore[NonNegativeFloat] | None = None
    """Overrides ``train.weight_decay``."""
    objective: OneOrMore[TrainedBy] | None = None
    """Overrides ``train.objective``."""
    replay: OneOrMore[_ReplayConfig] | None = None
    """General rows mixed in: ``{task: NAME, share: 0.1}``."""
    kl_to_base: OneOrMore[NonNegativeFloat] | None = None
    """Weight of KL(base || tuned) in the loss, in nats per label token. It is taken over the
    replayed rows if the arm replays any, otherwise over the task's own."""
    early_stop: OneOrMore[_EarlyStopConfig] | None = None
    """``{patience: N}``: stop after N evaluations (``train.evaluate_every``) without a better
    in-domain validation score, and keep the best weights."""

    @model_validator(mode="after")
    def check_methods(self) -> Self:
        """Check that the arm's methods can share an arm and that its settings apply to them."""
        methods = self.methods
        if not methods and self.init_from is None:
            raise Unfit("no 'method'", f"one of {', '.join(_named_methods())}", "name it")
        for method in methods:
            if self.init_from is not None and not method.accepts_warm_start:
                continued = [m.name for m in all_methods() if m.accepts_warm_start]
                rule = f"one that continues an adapter: {', '.join(continued)}"
                raise Unfit(f"'init_from' with method {method.name!r}", rule)
            if method.trains_alone and any(other.name != method.name for other in methods):
                found = f"method {method.name!r} among others, which {method.arm_note}"
                raise Unfit(found, "it alone", "give it an arm of its own")
        self._check_fields(methods)
        if self.match and (len(self.targets) < 2 or not self.rank or self.rank_pattern):
            rule = "several sets of targets and a rank without 'rank_pattern'"
            raise Unfit("'match: parameters'", rule, "remove it")
        pairs = zip(self.method, methods, strict=True) if self.early_stop else ()
        hidden = [m.hidden_state(c[m.name]) for c, m in pairs if isinstance(c, dict)]
        if any(hidden):
            rule = "a method whose state is its parameters, which it restores"
            raise Unfit(f"'early_stop' with {max(hidden)}", rule, "remove it")
        return self

    def _check_fields(self, methods: Sequence[MethodKind]) -> None:
        fields, of_some = self.own_fields(), adapter_fields()
        if not self.trains:
            of_some = frozenset(type(self).model_fields) - {"method"}
        elif self.lr is None:
            raise Unfit("no 'lr'", "a peak learning rate, or several", "add this key")
        wrong = (of_some & self.model_fields_set) - fields
        if misplaced := ", ".join(sorted(wrong)):
            name = repr(methods[0].name) if methods else "of the adapter"
            note = methods[0].arm_note if methods else ""
            owners = [m.name for m in all_methods() if wrong <= set(m.arm_fields)]
            rule = f"none: method {name} {note}" if note else f"none with method {name}"
            do = f"remove {misplaced}"
            do += f", or use {' or '.join(owners)}" if owners and not note else ""
            raise Unfit(misplaced, rule, do)
        if isinstance(self.rank_pattern, str) and (self.rank or self.init_from is not None):
            beside = "rank" if self.rank else "init_from"
            raise Unfit(f"'rank_pattern' and {beside!r}", "one of them", "remove one")
        has_rank = self.rank or self.rank_pattern is not None or self.init_from is not None
        if not has_rank and "rank" in fields:
            raise Unfit(f"no rank for method {methods[0].name!r}", "one or more", "add 'rank'")

    @property
    def methods(self) -> list[MethodKind]:
        """The registered methods; none if the arm leaves the choice to ``init_from``."""
        return [get_method(next(iter(m)) if isinstance(m, dict) else m) for m in self.method]

    @property
    def is_full(self) -> bool:
        return any(method.trains_base for method in self.methods)

    @property
    def trains(self) -> bool:
        return all(method.trains for method in self.methods)

    def own_fields(self) -> set[str]:
        """Return the names of the adapter settings that the arm's methods use."""
        return {name for method in self.methods or [get_method(LORA)] for name in method.arm_fields}

    def target_sets(self) -> list[tuple[str, ...]]:
        """Return the sets of module names that receive adapters, sorted, without duplicates."""
        return [
            tuple(sorted(set(TARGET_GROUPS[s] if isinstance(s, str) else s))) for s in self.targets
        ]

    def grids(self) -> Iterator[dict[str, list[Any]]]:
        """Yield one grid per method: fields of a trial -> values, in the order of the product."""
        # With 'init_from', settings that the arm leaves out are the adapter's, not read here.
        names: list[MethodChoice | None] = [*self.method] or [None]
        methods = self.methods or [get_method(LORA)]
        for name, method in zip(names, methods, strict=True):
            axes: dict[str, list[Any]] = {"method": [name]}
            if "targets" in method.arm_fields:
                axes["targets"] = self.target_sets()
            if method.has_rank:
                axes["rank"] = self.rank or [None]  # the rank of the adapter in 'init_from'
                axes["alpha"] = self.alpha
            if isinstance(self.rank_pattern, dict):
                axes["rank_pattern"] = [tuple(sorted(self.rank_pattern.items()))]
            axes["lr"] = self.lr or [0.0]
            for setting, default in method.field_defaults.items():
                axes[setting] = getattr(self, setting) or [default]
            if method.has_rank:
                axes["dropout"] = self.dropout
            if self.init_from is not None:
                axes["init_from"] = [self.init_from]
            for optional in ("rows", *TRAIN_OVERRIDES, *MITIGATIONS):
                if (values := getattr(self, optional)) is not None:
                    axes[optional] = values
            yield axes

    def num_points(self) -> int:
        """Count the points of the grid as written; repeated values count each time."""
        return sum(math.prod(len(axis) for axis in grid.values()) for grid in self.grids())
