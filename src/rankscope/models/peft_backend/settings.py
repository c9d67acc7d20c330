"""Any method of PEFT's from its settings: which there are, what they may say, how much they train.

``peft_tuner.py`` puts one on the base and trains it.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM, PretrainedConfig

from rankscope.errors import UserError

OURS = {
    "base_model_name_or_path": "the study's model stands there",
    "inference_mode": "a trial trains",
    "peft_version": "it is the installed PEFT's",
    "revision": "the study's model stands there",
    "target_modules": "the arm's 'targets' names them",
    "task_type": "it is CAUSAL_LM",
    "total_step": "it is the trial's number of optimizer steps",
}
"""Fields of PEFT's configurations that a study file does not set, and why."""

PROMPTS = (
    "puts virtual tokens before every row, and rows are concatenated into one sequence here, where "
    "only the first would get them"
)
UNUSABLE_TYPES = {
    "ADAPTION_PROMPT": "replaces the attention, which keeps concatenated rows apart here",
    "POLY": "needs a task id with every row",
    "SHADOW": "runs a second model beside the base",
    "XLORA": "mixes adapters that were trained before",
}
"""Types that inject no layer of their own into the base, and why that does not fit."""

UNUSABLE_FIELDS = {
    "alora_invocation_tokens": "looks for tokens in the whole sequence, and here that is many rows",
    "layer_replication": "changes the base's layers",
    "megatron_config": "needs Megatron's layers",
    "use_asa": "moves its budget by a callback of its own trainer",
}
"""Fields that do not fit concatenated rows on a shared base, and why."""

OWN_TARGETS = ("LN_TUNING", "TRAINABLE_TOKENS")
"""Types that change no linear layer: the norms and the embedding, whatever an arm's targets."""

STARTS_FROM_DATA = ("corda", "eva", "lora_ga")
"""Values of ``init_lora_weights`` for which PEFT wants a pass over data first."""

WRITES_IN_PLACE = ("olora",)
"""Values of ``init_lora_weights`` for which PEFT subtracts the start from the weights in place."""

PEFT_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What PEFT raises for settings that it cannot use."""


def peft_config(
    settings: Mapping[str, Any], targets: Sequence[str], num_steps: int | None = None
) -> PeftConfig:
    """PEFT's configuration from an arm's settings.

    Args:
        settings: ``peft_type`` and fields of that type's configuration.
        targets: module names that the method changes, for types that have targets.
        num_steps: optimizer steps of the trial, which AdaLoRA's budget follows.

    Raises:
        UserError: a type or field PEFT does not have or that cannot be used here, or a value that
            the type refuses.
    """
    kind = config_class(settings.get("peft_type"))
    name = type_name(kind)
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    given = {key: value for key, value in settings.items() if key != "peft_type"}
    for key, value in given.items():
        check_field(name, key, value, fields)
    own: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM}
    if "target_modules" in fields and name not in OWN_TARGETS:
        own["target_modules"] = list(targets)
    if name == "ADALORA":
        own["total_step"] = checked_budget(given, num_steps)
    try:
        config: PeftConfig = kind(**given, **own)
    except PEFT_FAILURES as error:
        raise UserError(f"method peft, {name}: {described(error)}") from error
    return config


def config_class(peft_type: object) -> Any:
    """The configuration class of a ``peft_type``.

    Raises:
        UserError: no such type, or one that cannot be used here.
    """
    classes = {kind.value: found for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(peft_type).upper()
    usable = sorted(
        kind
        for kind, found in classes.items()
        if kind not in UNUSABLE_TYPES and not is_prompt_learning(found)
    )
    if name not in classes:
        close = difflib.get_close_matches(name, usable, n=1, cutoff=0.55)
        meant = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(usable)}"
        raise UserError(f"method peft: peft_type {peft_type!r} is none of PEFT's; {meant}")
    reason = PROMPTS if is_prompt_learning(classes[name]) else UNUSABLE_TYPES.get(name)
    if reason is not None:
        raise UserError(
            f"method peft: {name} {reason}: it cannot be used; expected one of {', '.join(usable)}"
        )
    return classes[name]


def is_prompt_learning(kind: Any) -> bool:
    """Whether a configuration class is of prompt tuning or its kin."""
    return any(field.name == "num_virtual_tokens" for field in dataclasses.fields(kind)) or (
        getattr(kind, "is_prompt_learning", False) is True
    )


def type_name(kind: Any) -> str:
    """``VERA`` of ``VeraConfig``."""
    return next(str(k.value) for k, found in PEFT_TYPE_TO_CONFIG_MAPPING.items() if found is kind)


def check_field(name: str, key: str, value: Any, fields: set[str]) -> None:
    """Raise UserError for a field that the type does not have or that cannot be used here."""
    if key in OURS:
        raise UserError(f"method peft, {name}: remove {key!r}: {OURS[key]}")
    if key not in fields:
        known = sorted(fields - set(OURS) - set(UNUSABLE_FIELDS))
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.55)
        meant = f"did you mean {close[0]!r}?" if close else f"expected some of {', '.join(known)}"
        raise UserError(f"method peft, {name}: unknown field {key!r}; {meant}")
    if key in UNUSABLE_FIELDS and value:
        raise UserError(f"method peft, {name}: {key!r} {UNUSABLE_FIELDS[key]}: remove it")
    if key == "init_lora_weights" and value in STARTS_FROM_DATA:
        raise UserError(
            f"method peft, {name}: init_lora_weights {value!r} needs a pass over data before "
            "training, which is not made here; expected another start, or 'method: eva'"
        )


def checked_budget(given: Mapping[str, Any], num_steps: int | None) -> int:
    """AdaLoRA's number of steps, in which its rank budget has room to fall (2303.10512, eq. 12).

    Raises:
        UserError: the settings give no falling budget, or no step to fall in.
    """
    first, last = given.get("init_r", 12), given.get("target_r", 8)
    if isinstance(first, int) and isinstance(last, int) and first <= last:
        raise UserError(
            f"method peft, ADALORA: init_r {first} is not above target_r {last}: there is nothing "
            "to prune; expected a larger init_r, or a smaller target_r"
        )
    if num_steps is None:
        return 10**9  # only to build the configuration: no step is taken with it
    still = sum(v for k in ("tinit", "tfinal") if isinstance(v := given.get(k, 0), int))
    if num_steps - still < 2:
        raise UserError(
            f"method peft, ADALORA: tinit + tfinal = {still} of {num_steps} optimizer steps leave "
            "fewer than 2 for the budget to fall in; expected smaller ones, or a longer training"
        )
    return num_steps


def injected(model: Any, config: PeftConfig) -> PeftModel:
    """PEFT's model around ``model``, whose layers are replaced in place.

    Raises:
        UserError: the method does not fit this model.
    """
    try:
        return get_peft_model(model, config)
    except PEFT_FAILURES as error:
        name = type_name(type(config))
        raise UserError(f"method peft, {name}: does not fit this model: {described(error)}") from (
            error
        )


def writes_in_place(config: PeftConfig) -> bool:
    """Whether putting the method on a model writes into the model's own values."""
    return str(getattr(config, "init_lora_weights", None)).lower() in WRITES_IN_PLACE


def draws_in_training(config: PeftConfig) -> bool:
    """Whether forward passes of training draw random numbers: dropout, or PVeRA's samples."""
    rates = [value for name, value in vars(config).items() if name.endswith("dropout")]
    return type_name(type(config)) == "PVERA" or any(rates)


def described(error: BaseException) -> str:
    """An error of PEFT's in one line: its first, with the next where a colon ends it."""
    first, *others = str(error).strip().splitlines() or ["no details"]
    if first.endswith(":") and others:
        first = f"{first} {others[0].strip()}"
    return f"{type(error).__name__}: {first}"


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What the method trains, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count_parameters(model: PretrainedConfig, config: PeftConfig) -> int | None:
    """Parameters that a method trains, counted on a model without storage.

    None for a method whose start is computed from the weights, which are not there.

    Raises:
        UserError: the method does not fit this model.
    """
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(model, trust_remote_code=False)
    shapes.requires_grad_(False)
    try:
        tuned = get_peft_model(shapes, config)
    except RuntimeError:  # an operation that needs values
        return None
    except PEFT_FAILURES as error:
        name = type_name(type(config))
        raise UserError(f"method peft, {name}: does not fit this model: {described(error)}") from (
            error
        )
    found = trainable_parameters(tuned)
    # AdaLoRA's count of ranks is a parameter that PEFT freezes where it has storage.
    return sum(p.numel() for name, p in found.items() if ".ranknum." not in name)
