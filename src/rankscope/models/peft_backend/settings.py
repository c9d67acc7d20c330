"""PEFT's methods from their settings: which are usable, their fields, and their parameters.

``tuner.py`` puts a method on the base and trains it.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PretrainedConfig

from rankscope.errors import UserError, did_you_mean, reading
from rankscope.models.parameters import model_on_meta, read_model_config

SET_BY_RANKSCOPE = {
    "base_model_name_or_path": "it is the study's model",
    "inference_mode": "a trial trains",
    "peft_version": "it is the installed PEFT's",
    "revision": "it is that of the study's model",
    "target_modules": "the arm's 'targets' names them",
    "task_type": "it is CAUSAL_LM",
    "total_step": "it is the trial's number of optimizer steps",
}
"""Maps each field that PEFT's configurations have and study files do not set to the reason."""

PROMPT_LEARNING = (
    "puts virtual tokens before every row, but rows are concatenated into one sequence, so only "
    "the first would get them"
)
UNUSABLE_TYPES = {
    "ADAPTION_PROMPT": "replaces the attention, which keeps concatenated rows separate",
    "POLY": "needs a task id with every row",
    "SHADOW": "runs a second model beside the base",
    "XLORA": "mixes adapters that were trained before",
}
"""Reason, by type, why a PEFT method that injects no layer into the base is unusable."""

UNUSABLE_FIELDS = {
    "alora_invocation_tokens": "searches the whole sequence for tokens, and a sequence holds many "
    "rows",
    "layer_replication": "changes the base's layers",
    "megatron_config": "needs Megatron's layers",
    "use_asa": "moves its budget by a callback of another trainer",
}
"""Reason, by field, why it fails with concatenated rows on a shared base."""

FIXED_TARGETS = ("LN_TUNING", "TRAINABLE_TOKENS")  # They change norms or the embedding

INIT_FROM_DATA = ("corda", "eva", "lora_ga")  # ``init_lora_weights`` that need a pass over data


def peft_config(
    settings: Mapping[str, Any], targets: Sequence[str], num_steps: int | None = None
) -> PeftConfig:
    """Make PEFT's configuration from an arm's settings; AdaLoRA's budget needs the number of
    steps."""
    name = str(settings.get("peft_type")).upper()
    config_type = _config_class(name)
    fields = {field.name for field in dataclasses.fields(config_type) if field.init}
    given = {key: value for key, value in settings.items() if key != "peft_type"}
    for key, value in given.items():
        _check_field(name, key, value, fields)
    fixed: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM}
    if "target_modules" in fields and name not in FIXED_TARGETS:
        fixed["target_modules"] = list(targets)
    if name == "ADALORA":
        first, last = given.get("init_r", 12), given.get("target_r", 8)
        if isinstance(first, int) and isinstance(last, int) and first <= last:
            found = f"init_r {first} not above target_r {last}: nothing to prune"
            rule = "a larger init_r, or a smaller target_r"
            raise UserError("method peft, ADALORA", found, rule)
        # Without a number the configuration is built only to be looked at.
        fixed["total_step"] = 10**9 if num_steps is None else num_steps
    with reading(f"method peft, {name}", "settings that PEFT can use"):
        config: PeftConfig = config_type(**given, **fixed)
    return config


def _config_class(name: str) -> Any:
    classes = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    reasons = dict(UNUSABLE_TYPES)
    learn_prompts = [k for k, config in classes.items() if issubclass(config, PromptLearningConfig)]
    reasons |= dict.fromkeys(learn_prompts, PROMPT_LEARNING)
    kinds = sorted(classes.keys() - reasons.keys())
    usable = ", ".join(kinds)
    if name not in classes:
        hint = did_you_mean(name, kinds)
        raise UserError("method peft", f"peft_type {name!r}", f"one of {usable}", hint)
    if name in reasons:
        raise UserError("method peft", f"{name}, which {reasons[name]}", f"one of {usable}")
    return classes[name]


def _check_field(name: str, key: str, value: Any, fields: set[str]) -> None:
    found, expected, do = f"{key!r}", "", "remove it"
    if key in SET_BY_RANKSCOPE:
        expected = f"none: {SET_BY_RANKSCOPE[key]}"
    elif key not in fields:
        known = sorted(fields - set(SET_BY_RANKSCOPE) - set(UNUSABLE_FIELDS))
        found, expected = f"an unknown field {key!r}", f"some of {', '.join(known)}"
        do = did_you_mean(key, known)
    elif key in UNUSABLE_FIELDS and value:
        found = f"{key!r}, which {UNUSABLE_FIELDS[key]}"
    elif key == "init_lora_weights" and value in INIT_FROM_DATA:
        found = f"init_lora_weights {value!r}, which needs a pass over data before training"
        expected, do = "another value", ""
    else:
        return
    raise UserError(f"method peft, {name}", found, expected, do)


def inject_peft(model: Any, config: PeftConfig) -> PeftModel:
    with reading(f"method peft, {type_name(config)}", "a method that fits this model"):
        return get_peft_model(model, config)


def type_name(config: PeftConfig) -> str:
    return str(PeftType(config.peft_type).value)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _count_parameters(model: PretrainedConfig, config: PeftConfig) -> int | None:
    """Count a method's parameters in a model without storage; None if it needs the weights."""
    shapes = model_on_meta(model)
    shapes.requires_grad_(False)
    try:
        tuned = inject_peft(shapes, config)
    except UserError as error:
        if isinstance(error.__cause__, RuntimeError):  # an operation that needs values
            return None
        raise
    # AdaLoRA's count of ranks is a parameter that PEFT freezes only where it has storage.
    trained = trainable_parameters(tuned).items()
    return sum(p.numel() for name, p in trained if ".ranknum." not in name)


@functools.cache
def count_in_folder(
    folder: Path, settings: str, targets: tuple[str, ...], num_steps: int | None = None
) -> int:
    """Count the parameters that a method trains in the model of a folder; 0 if unknown."""
    config = peft_config(json.loads(settings), targets, num_steps)
    return _count_parameters(read_model_config(folder), config) or 0
