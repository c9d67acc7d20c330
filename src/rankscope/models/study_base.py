"""The base of a study before its weights are loaded: files, shapes, and the arms that fit it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import check_same_base
from rankscope.models.adapters.warm_start import resolve_warm_starts
from rankscope.models.given import given_trials
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import (
    Architecture,
    architecture,
    rank_notes,
    read_model_config,
)
from rankscope.records import TrialSpec


@dataclass(frozen=True, slots=True)
class StudyBase:
    folder: Path
    config: PretrainedConfig
    shapes: Architecture
    sha256: str  # Of its weights, if they were read
    warm_starts: Mapping[str, str]  # Hashes of continued adapters, by folder as the study names it
    given: tuple[TrialSpec, ...]  # The models that the study does not train
    notes: tuple[str, ...]


def resolve_base(config: StudyConfig, weights: bool) -> tuple[StudyConfig, StudyBase]:
    """The study with the arms of ``init_from`` filled in, and its base, fetched and checked.

    ``weights``: they must be there and are hashed. If False, they are hashed only
    if an arm has ``init_from`` and the files exist.
    """
    folder = model_folder(config.model, weights)
    model_config = read_model_config(folder)
    if not hasattr(model_config.get_text_config(), "num_attention_heads"):
        found = f"model type {model_config.model_type!r}, which has no attention"
        expected = "a transformer such as Llama, Qwen, Mistral or Gemma"
        raise UserError(f"model folder {folder}", found, expected, "choose another model")
    shapes = architecture(model_config)
    config, warm_starts = resolve_warm_starts(config, shapes)
    notes = rank_notes(config, shapes)  # checks targets before rows are read, which can take long
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
    sha256 = "not read"
    if weights or (warm_starts and has_weights):
        sha256 = weights_sha256(folder)
        for name, (_, base_sha256) in warm_starts.items():
            check_same_base(Path(name), base_sha256, sha256)
    given = given_trials(config.given or (), folder, shapes, sha256 if weights else None)
    notes += [
        f"adapter {model.name}: records another base ({model.other_base[:12]}...) and is scored on "
        "this model because of --force"
        for trial in given
        if (model := trial.given) is not None and model.other_base is not None
    ]
    hashes = {name: adapter_sha256 for name, (adapter_sha256, _) in warm_starts.items()}
    base = StudyBase(folder, model_config, shapes, sha256, hashes, tuple(given), tuple(notes))
    return config, base
