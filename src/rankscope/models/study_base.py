"""The base of a study before its weights are loaded: files, shapes, and the arms that fit it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from rankscope.config.study import StudyConfig
from rankscope.errors import UserError
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.folder import check_same_base
from rankscope.models.adapters.warm_start import WarmStart, resolve_warm_starts, warm_start_notes
from rankscope.models.given import given_notes, given_trials
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import (
    Architecture,
    architecture,
    check_targets,
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
    warm_starts: Mapping[str, WarmStart]  # By folder as the study names it
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
        raise UserError(
            f"model folder {folder}",
            f"model type {model_config.model_type!r}, which has no attention",
            "a transformer such as Llama, Qwen, Mistral or Gemma",
            "choose another model",
        )
    shapes = architecture(model_config)
    config, warm_starts = resolve_warm_starts(config, shapes)
    check_targets(config, shapes)  # before rows are read, which can take long
    notes = [*rank_notes(config, shapes), *warm_start_notes(warm_starts.values())]
    has_weights = any(folder.glob("*.safetensors"))
    if not has_weights:
        lacks = "holds no weights: planned from config.json; a run needs *.safetensors there"
        notes.insert(0, f"{folder} {lacks}")
    sha256 = "not read"
    if weights or (warm_starts and has_weights):
        sha256 = weights_sha256(folder)
        for start in warm_starts.values():
            check_same_base(start.folder, start.base_sha256, sha256)
    given = given_trials(config.given or (), folder, shapes, sha256 if weights else None)
    notes += given_notes(given)
    base = StudyBase(folder, model_config, shapes, sha256, warm_starts, tuple(given), tuple(notes))
    return config, base
