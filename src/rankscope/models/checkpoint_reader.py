"""Read the matrices of a model folder one at a time, so that no checkpoint is in memory whole.

Names come from the architecture of ``config.json``, values from the safetensors shards. Tied
weights are read under their stored name, GPT-2's ``Conv1D`` layers are transposed to (out, in), and
bitsandbytes' 4 or 8 bits become numbers again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankscope.errors import IntegrityError, UserError
from rankscope.filesystem import read_json_object
from rankscope.models.adapters.folder import opened_weights
from rankscope.models.model_folder import checked_folder
from rankscope.models.parameters import model_on_meta, read_model_config
from rankscope.models.quantize import require_bitsandbytes

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Layer:
    name: str  # Module path, such as ``model.layers.3.self_attn.q_proj``
    shape: tuple[int, int]  # (out, in)
    keys: tuple[str, ...]  # Possible stored names of its weight, likeliest first
    is_transposed: bool  # Stored as (in, out): ``Conv1D``


@dataclass(slots=True)
class CheckpointReader:
    folder: Path
    architecture: str
    layers: dict[str, Layer]  # Every linear layer but the output head, in model order
    head: Layer | None  # The output head if it is a linear layer; an adapter may name it
    shards: dict[str, Path]  # Name of a stored tensor -> its file
    quantized: str | None  # ``bitsandbytes``, or None for plain weights
    num_layers: int
    shapes: Any = field(repr=False)  # The model on the meta device, without values

    @classmethod
    def open(cls, folder: Path) -> "CheckpointReader":
        """Read a folder's configuration and the names in its files, not the values."""
        checked_folder(folder)
        config = read_model_config(folder)
        settings = getattr(config, "quantization_config", None)
        quantized = _quantization_of(folder, settings)
        if settings is not None:
            delattr(config, "quantization_config")  # a model on the meta device packs no weights
        try:
            model: Any = model_on_meta(config)
        except UserError as error:
            raise UserError(
                f"model folder {folder}: {error.where}", error.found, error.expected, error.do
            ) from error
        layers = _layers_of(model)
        head = model.get_output_embeddings()
        name = next((n for n, m in model.named_modules() if m is head), None)
        return cls(
            folder=folder,
            architecture=type(model).__name__,
            head=layers.pop(name, None) if name is not None else None,
            layers=layers,
            shards=shards_of(folder),
            quantized=quantized,
            num_layers=int(config.get_text_config().num_hidden_layers),
            shapes=model,
        )

    def layer(self, name: str) -> Layer:
        if self.head is not None and name == self.head.name:
            return self.head
        if name not in self.layers:
            raise UserError(
                f"model folder {self.folder}",
                f"no linear layer {name!r} in {self.architecture}",
                f"{', '.join(list(self.layers)[:2])} and others",
                "give the adapter's own base",
            )
        return self.layers[name]

    def weight(self, name: str, device: torch.device | None = None) -> Tensor:
        """The weight of a linear layer, (out, in), in its stored dtype. Raises UserError for an
        unknown layer, IntegrityError for missing, misshapen or NaN values."""
        layer = self.layer(name)
        stored = next((key for key in layer.keys if key in self.shards), None)
        if stored is None:
            raise IntegrityError(
                f"model folder {self.folder}",
                f"no weight {layer.keys[0]!r} in its safetensors files",
                do="copy the model again",
            )
        weight = self.tensor(stored)
        if weight.dtype in (torch.uint8, torch.int8):
            weight = self.dequantized(stored, weight)
        if layer.is_transposed:
            weight = weight.mT
        if tuple(weight.shape) != layer.shape:
            raise IntegrityError(
                f"model folder {self.folder}",
                f"{stored!r} of shape {tuple(weight.shape)}",
                f"{layer.shape} as config.json says",
                "copy the model again",
            )
        if not bool(torch.isfinite(weight).all()):
            bad = int((~torch.isfinite(weight)).sum())
            raise IntegrityError(
                f"model folder {self.folder}: {stored!r}",
                f"{bad} of {weight.numel()} numbers that are NaN or infinite",
                "finite ones",
                "copy the model again",
            )
        return weight.to(device) if device is not None else weight

    def tensor(self, key: str) -> Tensor:
        path = self.shards[key]
        with opened_weights(path) as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    def dequantized(self, key: str, packed: Tensor) -> Tensor:
        """The numbers that bitsandbytes packed, in the dtype they were quantized from.

        8 bits: row by row, value * SCB / 127 (Dettmers et al., 2208.07339). 4 bits: blocks of NF4
        or FP4 (2305.14314).
        """
        if self.quantized is None:
            raise IntegrityError(
                f"model folder {self.folder}",
                f"{key!r} of {packed.dtype}",
                "numbers, as config.json names no quantization",
                "copy the model again",
            )
        if packed.dtype == torch.int8:
            scale = self.tensor(key.removesuffix("weight") + "SCB")
            return packed.float() * (scale.float()[:, None] / 127)
        require_bitsandbytes(f"model folder {self.folder}: a base in 4 bits")
        from bitsandbytes.functional import QuantState, dequantize_4bit

        parts = {name: self.tensor(name) for name in self.shards if name.startswith(key + ".")}
        state = QuantState.from_dict(
            {name.removeprefix(key + "."): part for name, part in parts.items()},
            device=packed.device,
        )
        dense: Tensor = dequantize_4bit(packed, state)
        return dense


def _layers_of(model: nn.Module) -> dict[str, Layer]:
    """Every linear layer of a model on the meta device, by module path, in model order."""
    tied = getattr(model, "_tied_weights_keys", None)
    same = dict(tied) if isinstance(tied, Mapping) else {}
    prefix = str(getattr(model, "base_model_prefix", "")) + "."
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        rows, columns = (int(size) for size in module.weight.shape)
        is_transposed = isinstance(module, Conv1D)
        key = f"{name}.weight"
        keys = [key, *([same[key]] if key in same else [])]
        # Some checkpoints hold only the inner model, without its prefix.
        keys += [k.removeprefix(prefix) for k in keys if k.startswith(prefix)]
        shape = (columns, rows) if is_transposed else (rows, columns)
        layers[name] = Layer(name, shape, tuple(keys), is_transposed)
    return layers


def shards_of(folder: Path) -> dict[str, Path]:
    """Name of every stored tensor -> its safetensors file, which exists."""
    index = folder / INDEX
    if index.is_file():
        names = read_json_object(index, IntegrityError).get("weight_map")
        if not isinstance(names, dict):
            raise IntegrityError(index, "no 'weight_map'", "an index of shards")
        wanted = {key: folder / Path(str(shard)).name for key, shard in names.items()}
        absent = sorted({path.name for path in wanted.values() if not path.is_file()})
        if absent:
            raise IntegrityError(
                f"model folder {folder}",
                f"{len(absent)} of {len(set(wanted.values()))} shards that {INDEX} names missing, "
                f"such as {absent[0]}",
                do="copy the whole model",
            )
        return wanted
    shards = {}
    for path in sorted(folder.glob("*.safetensors")):
        with opened_weights(path) as file:
            shards.update(dict.fromkeys(file.keys(), path))
    return shards


def _quantization_of(folder: Path, settings: object) -> str | None:
    if settings is None:
        return None
    values = settings if isinstance(settings, Mapping) else vars(settings)
    method = str(values.get("quant_method", "unknown")).removeprefix("QuantizationMethod.").lower()
    if method in ("bitsandbytes", "bits_and_bytes"):
        return "bitsandbytes"
    raise UserError(
        f"model folder {folder}",
        f"weights quantized by {method!r}",
        "plain weights, or bitsandbytes' 4 or 8 bits",
        "de-quantize the model first",
    )
