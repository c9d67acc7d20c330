"""Models that a study does not train: their trials, checked against its base."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rankscope.config.study import GivenConfig
from rankscope.errors import UserError
from rankscope.filesystem import user_path
from rankscope.hashing import sha256_json, weights_sha256
from rankscope.models.adapters.folder import (
    COPY,
    MODULE_PREFIX,
    adapter_sha256,
    check_same_base,
    opened_weights,
    recorded_base,
)
from rankscope.models.adapters.settings import CONFIG, read_config, weights_file
from rankscope.models.checkpoint_reader import CheckpointReader
from rankscope.models.lora import Adapter
from rankscope.models.methods import FULL
from rankscope.records import BASE, GivenModel, TrialSpec

NOT_READ = "not read"  # The hash of a base whose weights a plan does not need
_NOT_TRAINED_HERE = {"task": "", "rank": None, "alpha": None, "lr": 0.0, "dropout": 0.0, "seed": 0}
"""Settings of a trial that was trained elsewhere, unless its adapter gives them."""


def given_trial(
    given: GivenConfig,
    name: str,
    base: Path,
    base_sha256: str,
    settings: Mapping[str, object],
    adapter: Adapter | None = None,
) -> TrialSpec:
    """Make the trial of a model in a folder; ``settings`` are those that its files give.

    A checkpoint has no ``adapter``, and neither has another method of PEFT.
    """
    folder, other_base = user_path(given.folder), None
    if settings["method"] == FULL:
        sha256 = weights_sha256(folder)
    else:
        other_base = recorded_other_base(folder, adapter, base, base_sha256, force=given.force)
        sha256 = adapter_sha256(folder)
    model = GivenModel(name=name, folder=str(folder), sha256=sha256, other_base=other_base)
    return trial_of_given(model, base_sha256, settings)


def trial_of_given(
    model: GivenModel, base_sha256: str, settings: Mapping[str, object]
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


def peft_type(folder: Path) -> str | None:
    """Return an adapter's PEFT type; None without it, or without weights, which its reader
    reports."""
    is_whole = weights_file(folder).is_file()
    kind: str | None = read_config(folder / CONFIG).get("peft_type") if is_whole else None
    return kind


def recorded_other_base(
    folder: Path, adapter: Adapter | None, base: Path, base_sha256: str, *, force: bool
) -> str | None:
    """Return the recorded hash of an adapter's base if it is another base.

    Raises UserError: it is, and ``force`` is not set.
    """
    recorded = adapter.base_sha256 if adapter else recorded_base(folder)
    if base_sha256 == NOT_READ:
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
