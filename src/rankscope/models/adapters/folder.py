"""Adapters on disk in PEFT's format: PEFT loads what training writes, and the reverse.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. The safetensors metadata
holds the hash of the base, which PEFT ignores and :func:`load_adapter` checks.
"""

import json
import math
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rankscope.errors import IntegrityError, UserError, reading
from rankscope.filesystem import check_taken, folder_in_one_step
from rankscope.formatting import count
from rankscope.hashing import sha256_file, sha256_json
from rankscope.models.adapters.mlx import MLX_WEIGHTS, tensors_as_peft
from rankscope.models.adapters.settings import (
    CONFIG,
    WEIGHTS,
    AdapterSettings,
    read_adapter_config,
    read_config,
    weights_file,
)
from rankscope.models.lora import Adapter
from rankscope.models.low_rank_update import StoredFactors
from rankscope.models.methods import get_method
from rankscope.records import ModelRecord

if TYPE_CHECKING:
    from peft import LoraConfig

BASE_HASH = "rankscope_base_sha256"
MODULE_PREFIX = "base_model.model."
RECOPY = "copy the adapter again from where it was trained"
ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")  # Of names of A, B and m
COPY = ".base_layer.weight"  # Ends the name of a base weight that PEFT wrote into the adapter


# --- writing


def save_adapter(adapter: Adapter, base: ModelRecord, folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name in adapter.a:
        tensors |= _tensors_of(name, (*adapter.factors(name), adapter.magnitude.get(name)))
    _lora_config(adapter, base).save_pretrained(str(folder))
    write_adapter_files(folder, tensors, base)


def write_adapter_files(folder: Path, tensors: Mapping[str, Tensor], base: ModelRecord) -> None:
    """Write an adapter's tensors, and sort its configuration: equal adapters give equal bytes."""
    _write_tensors(folder, tensors, base.sha256)
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key in ("target_modules", "feedforward_modules", "exclude_modules"):
        if isinstance(settings.get(key), list):  # PEFT writes a set in the order of its hashes
            settings[key] = sorted(settings[key])
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], base_sha256: str | None) -> None:
    """Write tensors with one metadata entry, because safetensors writes several in a random
    order."""
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    metadata = {"format": "pt"} if base_sha256 is None else {BASE_HASH: base_sha256}
    (folder / WEIGHTS).write_bytes(save(stored, metadata=metadata))


def _tensors_of(module: str, factors: StoredFactors) -> dict[str, Tensor]:
    named = zip(ENDINGS, factors, strict=True)
    return {f"{MODULE_PREFIX}{module}{end}": part for end, part in named if part is not None}


def _lora_config(adapter: Adapter, base: ModelRecord) -> "LoraConfig":
    """Make PEFT's configuration of an adapter; it gives every module the adapter's scaling.

    Ranks differ between modules with EVA, and in a continued adapter that had different ones. An
    adapter that subtracts its initialization (PiSSA) is stored as B A - B0 A0: plain LoRA of twice
    the rank on the whole base.
    """
    from peft import LoraConfig, TaskType

    method = get_method(adapter.method)
    marks: Any = next(k for k in type(method).__mro__ if "peft_fields" in vars(k))
    double = 2 if adapter.initial_factors else 1
    ranks = {name: len(a) for name, a in adapter.a.items() if len(a) != adapter.rank}
    own_scale = method.rank_scale(adapter.rank)
    scale_of = partial(marks.rank_scale, method)  # as PEFT has it, by the mark
    alphas = {name: adapter.alpha / own_scale * scale_of(r) for name, r in ranks.items()}
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base.label,
        r=double * adapter.rank,
        lora_alpha=_as_whole(double * adapter.alpha * (scale_of(adapter.rank) / own_scale)),
        rank_pattern=ranks,
        alpha_pattern={name: _as_whole(alpha) for name, alpha in alphas.items()},
        lora_dropout=adapter.dropout,
        # PEFT would give an adapter to a target that has none.
        target_modules=list(adapter.targets) if method.fills_targets else sorted(adapter.a),
        bias="none",
        inference_mode=True,
        **method.peft_fields,
    )


def _as_whole(alpha: float) -> Any:
    """Turn a whole alpha into an integer, PEFT's type; PEFT accepts any number."""
    return int(alpha) if alpha == int(alpha) else alpha


# --- reading


def load_adapter(
    folder: Path,
    name: str,
    base: ModelRecord | None = None,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    *,
    readable: bool = False,
) -> Adapter:
    """Read a LoRA or DoRA adapter that PEFT or Rankscope wrote, and check it.

    If PEFT's ``alpha_pattern`` gives a module another scaling, its B absorbs the difference. An
    adapter is refused if its recorded base is not ``base``, or if it does not fit ``shapes``, (out,
    in) of a model's linear layers. ``readable`` accepts an adapter that cannot be continued: its
    start was a part of the base, or it holds PEFT's copy of an output head, which the caller
    compares with the base's.

    Raises UserError for an adapter that cannot be used, IntegrityError for a damaged one. A module
    without both A and B is noticed only if ``shapes`` are given.
    """
    settings = read_adapter_config(folder, readable=readable)
    path = weights_file(folder)
    tensors, metadata = read_weights(path)
    if base is not None:
        check_same_base(folder, metadata.get(BASE_HASH), base.sha256)
    # A copy of the head also lacks the start that the adapter subtracts.
    subtracts = get_method(settings.method_name).init_is_part_of_base
    a, b, magnitude = _parts_of(tensors, path, readable and not subtracts).values()
    _check_parts(a, b, magnitude, settings, path)
    for module, factor in b.items():
        ratio = settings.scaling_of(module) / settings.scaling
        if not math.isclose(ratio, 1, rel_tol=1e-9):  # beyond the rounding of alpha itself
            factor.mul_(ratio)
    adapter = Adapter(
        name=name,
        rank=settings.r,
        alpha=settings.lora_alpha,
        scaling=settings.scaling,
        targets=tuple(sorted(a)),
        method=settings.method_name,
        a=a,
        b=b,
        magnitude=magnitude,
        settings=settings,
        base_sha256=metadata.get(BASE_HASH),
        copies=tuple(key for key in tensors if _is_copy(key, tensors)),
    )
    if shapes is not None:
        check_fits(folder, adapter, shapes)
    return adapter


def check_fits(folder: Path, adapter: Adapter, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check that an adapter changes linear layers of a model in its shapes, and all that it names.

    Raises UserError for an adapter of another model. Raises IntegrityError for an incomplete one:
    PEFT would leave a missing layer as in the base, and leave out another one.
    """
    place, do = f"adapter {folder}", "give an adapter of this model"
    for name, a in adapter.a.items():
        shape, expected = (len(adapter.b[name]), a.shape[1]), shapes.get(name)
        if expected is None:
            leaves = sorted({other.rsplit(".", 1)[-1] for other in shapes})
            found = f"factors for {name!r}, which this model does not have"
            raise UserError(place, found, f"some of: {', '.join(leaves)}", do)
        if shape != expected:
            found = f"{name!r} with (out, in) = {shape}"
            raise UserError(place, found, f"{expected} as in this model", do)
    settings = adapter.settings
    assert settings is not None
    if settings.target_modules in (None, "all-linear"):
        return
    named = {name for name in shapes if settings.is_target(name)}
    if odd := sorted(named ^ adapter.a.keys()):
        odd_one = f"{odd[0]!r} is {'missing' if odd[0] in named else 'not among them'}"
        found = f"lora_A and lora_B for {count(len(adapter.a), 'module')}"
        expects = f"them for the {len(named)} that {CONFIG} names: {odd_one}"
        raise IntegrityError(place, found, expects, RECOPY)


@contextmanager
def opened_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise IntegrityError for anything that safetensors cannot read."""
    with (
        reading(path, "a readable safetensors file", IntegrityError, RECOPY),
        safe_open(path, "pt") as file,
    ):
        yield file


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file, all finite, and its metadata.

    Tensors of mlx-lm get PEFT's names and layout.
    """
    with opened_weights(path) as file:
        metadata = dict(file.metadata() or {})
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if path.name == MLX_WEIGHTS:
        tensors = tensors_as_peft(path, tensors, MODULE_PREFIX)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise IntegrityError(path, f"values that are not finite in {key!r}", "numbers", RECOPY)
    return tensors, metadata


def _parts_of(
    tensors: Mapping[str, Tensor], path: Path, has_copies: bool
) -> dict[str, dict[str, nn.Parameter]]:
    """Return A, B and m by module path, float32: ``base_model.model.x.lora_A.weight`` is A of
    ``x``."""
    parts: dict[str, dict[str, nn.Parameter]] = {ending: {} for ending in ENDINGS}
    for key, tensor in tensors.items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        if ending is not None and key.startswith(MODULE_PREFIX):
            module = key.removeprefix(MODULE_PREFIX).removesuffix(ending)
            parts[ending][module] = nn.Parameter(tensor.float(), requires_grad=False)
        elif _is_copy(key, tensors) and not has_copies:
            found, expected = (
                f"a copy of the output head, {key!r}",
                "A and B: only the base may hold it",
            )
            way = "save_pretrained(FOLDER, save_embedding_layers=False)"
            do = f"load the adapter with PEFT and write it by {way}"
            raise UserError(path, found, expected, do)
        elif not _is_copy(key, tensors):
            if ".lora_embedding_" in key or key.endswith(COPY):
                raise UserError(path, f"{key!r}, which adapts an embedding", "linear layers")
            found, expected = f"an unexpected tensor {key!r}", "lora_A and lora_B weights"
            raise IntegrityError(path, found, expected, RECOPY)
    return parts


def check_same_base(folder: Path, recorded: str | None, base_sha256: str) -> None:
    if recorded is not None and recorded != base_sha256:
        hashes = f"weights {recorded[:12]}..., this one is {base_sha256[:12]}..."
        found, do = f"one that was made for another base ({hashes})", "give its own base"
        raise UserError(f"adapter {folder}", found, "an adapter of this base", do)


def recorded_base(folder: Path) -> str | None:
    """Return the recorded hash of an adapter's base; PEFT itself records none."""
    with opened_weights(weights_file(folder)) as file:
        recorded: str | None = (file.metadata() or {}).get(BASE_HASH)
    return recorded


def adapter_sha256(folder: Path) -> str:
    with reading(f"adapter {folder}", "its files"):
        return sha256_json([sha256_file(path) for path in (folder / CONFIG, weights_file(folder))])


def _is_copy(key: str, keys: Collection[str]) -> bool:
    """Whether a tensor is a copy of an output head's own weight.

    PEFT writes it beside the head's A and B, and loads it in place of the base's. The two are equal
    unless somebody trained the copy.
    """
    return key.endswith(COPY) and f"{key.removesuffix(COPY)}.lora_A.weight" in keys


def _check_parts(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    settings: AdapterSettings,
    path: Path,
) -> None:
    """Check that every module has an A (r, in) and a B (out, r) of its rank.

    Each module must also have an m (out,) if the settings say so.
    """
    wanted = b.keys() if settings.has_magnitude else set[str]()
    odd = (a.keys() ^ b.keys()) | (magnitude.keys() ^ wanted)
    names = {"lora_A": a, "lora_B": b, "magnitude": magnitude}
    if odd or not a:
        present = [part for part, tensors in names.items() if min(odd, default="") in tensors]
        needed = list(names)[: 3 if settings.has_magnitude else 2]
        what = f"{' and '.join(present)} of {min(odd)!r}" if odd else "none"
        expected = f"{' and '.join(needed)} of every module, as {CONFIG} says"
        raise IntegrityError(path, what, expected, RECOPY)
    for name in a:
        parts = [a[name], b[name], *([magnitude[name]] if name in magnitude else [])]
        rank, shapes = settings.rank_of(name), [tuple(part.shape) for part in parts]
        inputs, outputs = shapes[0][1:], shapes[1][:1]
        if len(inputs) != 1 or shapes != [(rank, *inputs), (*outputs, rank), outputs][: len(parts)]:
            found = (
                f"{', '.join(list(names)[: len(parts)])} of shapes {', '.join(map(str, shapes))}"
            )
            expected = f"those of rank {rank}, as in {CONFIG}"
            raise IntegrityError(f"{path}: {name!r}", found, expected, RECOPY)


# --- rewriting


def rewrite(source: Path, out: Path, changed: Mapping[str, StoredFactors], card: str) -> None:
    """Write the adapter of ``source`` to ``out`` in one step, with some modules replaced.

    Everything else keeps its bytes: tensors their dtype, alphas their spelling. Ranks and alphas
    that differ from the adapter's own go into PEFT's ``rank_pattern`` and ``alpha_pattern``.
    """
    check_taken(out)
    with folder_in_one_step(out) as folder:
        (folder / "README.md").write_text(card, encoding="utf-8")
        if not changed and (source / WEIGHTS).is_file():
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(source / name, folder / name)
            return
        tensors, metadata = read_weights(weights_file(source))
        for name, factors in changed.items():
            tensors |= {key: part.float() for key, part in _tensors_of(name, factors).items()}
        settings = read_config(source / CONFIG)
        text = json.dumps(_changed_settings(settings, tensors), indent=2, sort_keys=True)
        _write_tensors(folder, tensors, metadata.get(BASE_HASH))
        (folder / CONFIG).write_text(text, encoding="utf-8")


def _changed_settings(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Make ``adapter_config.json`` for the ranks of ``tensors``; every scaling stays."""
    before = AdapterSettings.model_validate(settings)
    ranks = {
        key.removeprefix(MODULE_PREFIX).removesuffix(ENDINGS[0]): len(tensor)
        for key, tensor in tensors.items()
        if key.endswith(ENDINGS[0])
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]

    def alpha_at(name: str, rank: int) -> float:
        if rank == before.rank_of(name):  # keeps the written number
            return before.alpha_of(name)
        return before.scaling_of(name) * before.rank_scale(rank)

    alphas = {name: alpha_at(name, module_rank) for name, module_rank in ranks.items()}
    alpha = Counter(alphas[name] for name, r in ranks.items() if r == rank).most_common(1)[0][0]
    return settings | {
        "target_modules": settings.get("target_modules") or sorted(ranks),
        "r": rank,
        "lora_alpha": _as_whole(alpha),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {n: _as_whole(other) for n, other in alphas.items() if other != alpha},
        "init_lora_weights": True,
    }
