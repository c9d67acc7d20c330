"""The base of a study before its weights are loaded, and the study's given models.

Files, shapes, and the arms and models that fit them are all checked before anything runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rankscope.config.study import GivenConfig, StudyConfig
from rankscope.errors import UserError
from rankscope.filesystem import read_json_object, user_path
from rankscope.hashing import canonical_json, sha256_json, weights_sha256
from rankscope.models.adapters.folder import (
    COPY,
    MODULE_PREFIX,
    adapter_sha256,
    check_same_base,
    load_adapter,
    opened_weights,
    recorded_base,
)
from rankscope.models.adapters.settings import CONFIG, read_config, weights_file
from rankscope.models.adapters.warm_start import resolve_adapters, shortest_targets
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.grouped_lora import choose_lora_implementation
from rankscope.models.load import check_stored_weights, load_tokenizer
from rankscope.models.lora import Adapter
from rankscope.models.methods import FULL, all_methods
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import (
    Architecture,
    architecture,
    rank_notes,
    read_model_config,
    with_matched_ranks,
)
from rankscope.models.quantize import check_bitsandbytes
from rankscope.models.sharding import check_devices
from rankscope.records import BASE, GivenModel, TrialSpec

_NOT_TRAINED_HERE = {"task": "", "rank": None, "alpha": None, "lr": 0.0, "dropout": 0.0, "seed": 0}
"""Settings of a trial that was trained elsewhere, unless its adapter gives them."""


@dataclass(frozen=True, slots=True)
class StudyBase:
    folder: Path
    config: PretrainedConfig
    shapes: Architecture
    tokenizer: PreTrainedTokenizerBase
    sha256: str  # Of its weights, if they were read
    warm_starts: Mapping[str, str]  # Hashes of continued adapters, by folder as the study names it
    given: tuple[TrialSpec, ...]  # The models that the study does not train
    notes: tuple[str, ...]


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
    sha256 = "not read"
    if weights or (warm_starts and has_weights):
        sha256 = weights_sha256(folder)
        for name, (_, base_sha256) in warm_starts.items():
            check_same_base(Path(name), base_sha256, sha256)
    given = _given_trials(
        config.given or (), folder, model_config, shapes, sha256 if weights else None
    )
    notes += [
        f"adapter {model.name}: records another base ({model.other_base[:12]}...) and is scored on "
        "this model because of --force"
        for trial in given
        if (model := trial.given) is not None and model.other_base is not None
    ]
    hashes = {name: adapter_sha256 for name, (adapter_sha256, _) in warm_starts.items()}
    return config.model_copy(update={"arms": arms}), StudyBase(
        folder=folder,
        config=model_config,
        shapes=shapes,
        tokenizer=load_tokenizer(folder),
        sha256=sha256,
        warm_starts=hashes,
        given=tuple(given),
        notes=tuple(notes),
    )


def check_machine(
    config: StudyConfig, trials: Sequence[TrialSpec], device: torch.device, dtype: torch.dtype
) -> None:
    """Raise UserError if this machine cannot train the trials."""
    check_bitsandbytes(config.quantize, config.train.optimizer, trials, device)
    check_devices(config, trials, device)
    choose_lora_implementation(config.train.lora_implementation, device, dtype)


def _given_trials(
    given: Sequence[GivenConfig],
    base: Path,
    config: PretrainedConfig,
    shapes: Architecture,
    base_sha256: str | None,
) -> list[TrialSpec]:
    """Check every given model against the base, without loading the base; make one trial for each.

    Args:
        base: folder of the base.
        base_sha256: None if the base's weights were not read.

    Raises UserError: a model is missing, or of another base, architecture or tokenizer. Raises
    IntegrityError: it is damaged.
    """
    given = [model for model in given if model.path is not None]
    names = given_names(given)
    trials, fields = list[TrialSpec](), dict[str, object]()
    for model, name in zip(given, names, strict=True):
        folder = user_path(model.folder)
        if not (folder / CONFIG).is_file() and (folder / "config.json").is_file():
            _check_checkpoint(folder, base)
            fields, adapter = {"method": FULL, "targets": ()}, None
        else:
            fields, adapter = _read_adapter(folder, config, shapes)
        trials.append(given_trial(model, name, base, base_sha256, fields, adapter))
    check_distinct(trials)
    return trials


def given_trial(
    given: GivenConfig,
    name: str,
    base: Path,
    base_sha256: str | None,
    settings: Mapping[str, object],
    adapter: Adapter | None,
) -> TrialSpec:
    """The trial of a model in a folder; ``settings`` are what its files say of its training. A
    checkpoint has no ``adapter``, nor has another method of PEFT."""
    folder, other_base = user_path(given.folder), None
    if settings["method"] == FULL:
        sha256 = weights_sha256(folder)
    else:
        other_base = recorded_other_base(folder, adapter, base, base_sha256, force=given.force)
        sha256 = adapter_sha256(folder)
    model = GivenModel(name=name, folder=str(folder), sha256=sha256, other_base=other_base)
    return trial_of_given(model, base_sha256, settings)


def trial_of_given(
    model: GivenModel, base_sha256: str | None, settings: Mapping[str, object]
) -> TrialSpec:
    trial_id = sha256_json({"base": base_sha256, "given": model.sha256})[:16]
    values = {**_NOT_TRAINED_HERE, **settings, "trial_id": trial_id, "given": model}
    return TrialSpec.model_validate(values)


def check_distinct(given: Sequence[TrialSpec]) -> None:
    """Raise UserError for two models with the same weights: they would be one trial."""
    folders: dict[str, str] = {}
    for trial in given:
        assert trial.given is not None
        folder = trial.given.folder
        if trial.trial_id in folders:
            found = f"the same weights as {folders[trial.trial_id]}"
            raise UserError(f"model {folder}", found, "each model once", "remove one")
        folders[trial.trial_id] = folder


def given_names(given: Sequence[GivenConfig]) -> list[str]:
    """Name given models: by their own names, or their folders with as many parents as needed."""
    folders = [user_path(model.folder).resolve() for model in given]
    names: list[str] = []
    for depth in range(1, 1 + max((len(folder.parts) for folder in folders), default=0)):
        named = zip(given, folders, strict=True)
        names = [model.name or "/".join(folder.parts[-depth:]) for model, folder in named]
        if len(set(names)) == len(names) and BASE not in names:
            return names
    if names:
        expected = f"each model's own, and none called {BASE!r}"
        raise UserError("given", f"the names {', '.join(names)}", expected, "rename one")
    return names


def _check_checkpoint(folder: Path, base: Path) -> None:
    """Raise UserError unless a folder holds a model of the base's architecture and tokenizer."""
    place, readers = f"model folder {folder}", map(CheckpointReader, (folder, base))
    found, wanted = ((r.architecture, r.model.num_parameters(), r.shapes) for r in readers)
    if found != wanted:
        sizes = [f"{name} of {count:,} parameters" for name, count, _ in (found, wanted)]
        expected = f"the base's architecture, {sizes[1]}"
        raise UserError(place, sizes[0], expected, "give a checkpoint of this base")
    tokenizers = [path / "tokenizer.json" for path in (folder, base)]
    if all(path.is_file() for path in tokenizers):
        own, its = (read_json_object(path).get("model") for path in tokenizers)
        if own != its:
            expected = "the same vocabulary, as items are encoded once for all models"
            do = "give a checkpoint with the base's tokenizer"
            raise UserError(place, "another tokenizer than the base's", expected, do)
    check_stored_weights(folder)


def _read_adapter(
    folder: Path, base: PretrainedConfig, shapes: Architecture
) -> tuple[dict[str, object], Adapter | None]:
    """Method, rank, alpha and targets of an adapter, as a trial that trained it would have them.
    The adapter comes with them unless another method of PEFT made it."""
    kind = peft_type(folder)
    if kind not in ("LORA", None) and any(m.takes_settings for m in all_methods()):
        from rankscope.models.peft_backend.tuner import check_fits  # PEFT takes a second to import

        check_fits(base, folder)
        method = next(m.name for m in all_methods() if m.takes_settings)
        peft = canonical_json({"peft_type": kind})
        return {"method": method, "peft": peft, "targets": ()}, None
    adapter = load_adapter(folder, folder.name, shapes=shapes.linear_shapes, readable=True)
    fields = {"method": adapter.method, "rank": adapter.rank, "alpha": adapter.alpha}
    return fields | {"targets": shortest_targets(adapter, shapes)}, adapter


def peft_type(folder: Path) -> str | None:
    """Return an adapter's PEFT type; None without it, or without weights, which its reader
    reports."""
    is_whole = weights_file(folder).is_file()
    kind: str | None = read_config(folder / CONFIG).get("peft_type") if is_whole else None
    return kind


def recorded_other_base(
    folder: Path, adapter: Adapter | None, base: Path, base_sha256: str | None, *, force: bool
) -> str | None:
    """Return the recorded hash of an adapter's base if it is another base.

    Raises UserError: it is, and ``force`` is not set.
    """
    recorded = adapter.base_sha256 if adapter else recorded_base(folder)
    if base_sha256 is None:
        return None
    try:
        check_same_base(folder, recorded, base_sha256)
        for key in adapter.copies if adapter else ():
            name = key.removeprefix(MODULE_PREFIX).removesuffix(COPY)
            with opened_weights(weights_file(folder)) as file:
                copy = file.get_tensor(key)
            if not torch.equal(copy, CheckpointReader(base).weight(name).to(copy.dtype)):
                found = f"a copy of {name} of another base, or one that was trained"
                do = "give the base that it was made for"
                raise UserError(f"adapter {folder}", found, "this base's", do)
    except UserError as error:
        if force:
            return recorded or "unknown"
        force_it = "--force (in a study file, force: true) to use it with this one and record that"
        do = f"{error.do}, or {force_it}"
        raise UserError(error.where, error.found, error.expected, do) from error
    return None


def num_trained_parameters(trial: TrialSpec, num_of_base: int) -> int:
    """Count the numbers in an adapter's file, or all parameters of a checkpoint."""
    assert trial.given is not None
    if trial.is_full:
        return num_of_base
    with opened_weights(weights_file(Path(trial.given.folder))) as file:
        names = [n for n in file.keys() if not n.endswith(".base_layer.weight")]  # noqa: SIM118
        return sum(int(torch.Size(file.get_slice(n).get_shape()).numel()) for n in names)
