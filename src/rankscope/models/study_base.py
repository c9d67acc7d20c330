"""The base of a study before its weights are loaded, and the study's given models.

Files, shapes, and the arms and models that fit them are all checked before anything runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rankscope.config.study import GivenConfig, StudyConfig
from rankscope.filesystem import user_path
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import check_same_base
from rankscope.models.adapters.settings import CONFIG
from rankscope.models.adapters.warm_start import resolve_adapters
from rankscope.models.given import NOT_READ, check_distinct, given_names, peft_type
from rankscope.models.grouped_lora import choose_lora_implementation
from rankscope.models.load import load_tokenizer
from rankscope.models.methods import FULL, LORA, all_methods
from rankscope.models.methods.method import Method
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import (
    Architecture,
    architecture,
    rank_notes,
    read_model_config,
    with_matched_ranks,
)
from rankscope.models.quantize import check_bitsandbytes
from rankscope.models.sharding import sharding
from rankscope.records import TrialSpec


@dataclass(frozen=True, slots=True)
class StudyBase:
    folder: Path
    config: PretrainedConfig
    shapes: Architecture
    tokenizer: PreTrainedTokenizerBase
    sha256: str  # Hash of its weights, if they were read
    warm_starts: Mapping[str, str]  # Hashes of continued adapters, by folder as the study names it
    given: tuple[TrialSpec, ...] = ()  # The models that the study does not train
    notes: tuple[str, ...] = ()


def resolve_base(config: StudyConfig, weights: bool) -> tuple[StudyConfig, StudyBase]:
    """Resolve the base of a study, fetched and checked, and fill in what arms take from adapters.

    Args:
        weights: the weights must exist and are hashed. Otherwise they are hashed only if an arm has
            ``init_from`` and the files exist.
    """
    folder = model_folder(config.model, weights)
    model_config = read_model_config(folder)
    shapes = architecture(model_config)
    arms, warm_starts = resolve_adapters(with_matched_ranks(config.arms, shapes), shapes)
    notes = rank_notes(arms, shapes)  # checks targets before rows are read, which can take long
    notes += [
        f"adapter {name}: it does not record the weights it was made for; its modules fit this "
        "model, so this model is taken to be its base"
        for name, (_, base_sha256) in warm_starts.items()
        if base_sha256 is None
    ]
    has_weights = any(folder.glob("*.safetensors"))
    if not has_weights:
        lacks = "holds no weights: planned from config.json; a run needs *.safetensors there"
        notes.insert(0, f"{folder} {lacks}")
    sha256 = NOT_READ
    if weights or (warm_starts and has_weights):
        sha256 = weights_sha256(folder)
        for name, (_, base_sha256) in warm_starts.items():
            check_same_base(Path(name), base_sha256, sha256)
    hashes = {name: own for name, (own, _) in warm_starts.items()}
    base = StudyBase(folder, model_config, shapes, load_tokenizer(folder), sha256, hashes)
    given = _given_trials(config.given or (), base)
    notes += [
        f"adapter {model.name}: records another base ({model.other_base[:12]}...) and is scored on "
        "this model because of --force"
        for trial in given
        if (model := trial.given) is not None and model.other_base is not None
    ]
    base = replace(base, given=given, notes=tuple(notes))
    return config.model_copy(update={"arms": arms}), base


def check_machine(
    config: StudyConfig, trials: Sequence[TrialSpec], device: torch.device, dtype: torch.dtype
) -> None:
    """Raise UserError if this machine cannot train the trials."""
    check_bitsandbytes(config.quantize, config.train.optimizer, trials, device)
    if config.train.devices > 1:
        sharding().check(config, trials, device)
    choose_lora_implementation(config.train.lora_implementation, device, dtype)


def _given_trials(given: Sequence[GivenConfig], base: StudyBase) -> tuple[TrialSpec, ...]:
    """Check every given model against the base, without loading the base; make one trial for each.

    Raises UserError: a model is missing, or of another base, architecture or tokenizer. Raises
    IntegrityError: it is damaged.
    """
    given = [model for model in given if model.path is not None]
    named = zip(given, given_names(given), strict=True)
    trials = [_method_of(user_path(of.folder)).read_given(of, name, base) for of, name in named]
    check_distinct(trials)
    return tuple(trials)


def _method_of(folder: Path) -> Method:
    """Return the method that made the model in a folder: LoRA itself for one of its variants."""
    if not (folder / CONFIG).is_file() and (folder / "config.json").is_file():
        return Method.of(FULL)
    others = (method.name for method in all_methods() if method.takes_settings)
    is_other = peft_type(folder) not in ("LORA", None)
    return Method.of(next(others, LORA) if is_other else LORA)
