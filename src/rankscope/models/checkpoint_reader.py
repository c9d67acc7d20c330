"""Reader of a model folder's matrices, one at a time: no checkpoint is in memory whole.

Names come from the architecture of ``config.json``, values from the safetensors shards. Tied
weights are read under their stored name, GPT-2's ``Conv1D`` layers are transposed to (out, in), and
bitsandbytes' 4 or 8 bits become numbers again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankscope.errors import UserError
from rankscope.models.adapters.folder import opened_weights
from rankscope.models.model_folder import checked_folder, damaged
from rankscope.models.parameters import model_on_meta, read_model_config
from rankscope.models.quantize import require_bitsandbytes


class CheckpointReader:
    def __init__(self, folder: Path) -> None:
        """Read a folder's configuration and the names in its files, not the values."""
        self.folder = checked_folder(folder)
        config = read_model_config(folder)
        settings = getattr(config, "quantization_config", None)
        self.is_quantized = settings is not None  # Only by bitsandbytes
        if self.is_quantized:
            _check_quantization(folder, settings)
            delattr(config, "quantization_config")  # a model on the meta device packs no weights
        self.model: Any = model_on_meta(config)
        self.architecture = type(self.model).__name__
        self.rounds_to_bfloat16 = False  # On reading the weight of a layer
        self.num_layers = int(config.get_text_config().num_hidden_layers)
        self.shards = _shards_of(folder)  # Name of a stored tensor -> its file
        modules = self.model.named_modules()
        self._linears = {name: m for name, m in modules if isinstance(m, nn.Linear | Conv1D)}
        self.shapes = {name: self._shape(m) for name, m in self._linears.items()}  # (out, in)
        head = self.model.get_output_embeddings()
        # Every linear layer but the output head, in model order; an adapter may name the head, too.
        self.layers = [name for name, module in self._linears.items() if module is not head]

    def shape(self, name: str) -> tuple[int, int]:
        """Return (out, in) of a linear layer. Raises UserError: the model has none of that name."""
        if name not in self.shapes:
            place = f"model folder {self.folder}"
            found = f"no linear layer {name!r} in {self.architecture}"
            expected = f"{', '.join(self.layers[:2])} and others"
            raise UserError(place, found, expected, "give the adapter's own base")
        return self.shapes[name]

    def _shape(self, linear: nn.Linear | Conv1D) -> tuple[int, int]:
        rows, columns = (int(size) for size in linear.weight.shape)
        return (columns, rows) if isinstance(linear, Conv1D) else (rows, columns)

    def _is_transposed(self, name: str) -> bool:
        return isinstance(self._linears[name], Conv1D)

    def stored_name(self, key: str) -> str | None:
        """Return the name under which a parameter is stored; None if it is not stored."""
        tied = getattr(self.model, "_tied_weights_keys", None)
        keys = [key, *([tied[key]] if isinstance(tied, Mapping) and key in tied else [])]
        # Some checkpoints hold only the inner model, without its prefix.
        prefix = str(getattr(self.model, "base_model_prefix", "")) + "."
        keys += [k.removeprefix(prefix) for k in keys if k.startswith(prefix)]
        return next((k for k in keys if k in self.shards), None)

    def weight(self, name: str, device: torch.device | None = None) -> Tensor:
        """Read the weight of a linear layer, (out, in), in its stored dtype.

        Raises UserError for an unknown layer, IntegrityError for missing, misshapen or NaN values.
        """
        shape, stored = self.shape(name), self.stored_name(f"{name}.weight")
        if stored is None:
            raise damaged(self.folder, f"no weight '{name}.weight' in its safetensors files")
        weight = self.tensor(stored)
        if weight.dtype in (torch.uint8, torch.int8):
            weight = self.dequantized(stored, weight)
        if self._is_transposed(name):
            weight = weight.mT
        if tuple(weight.shape) != shape:
            found = f"{stored!r} of shape {tuple(weight.shape)}"
            raise damaged(self.folder, found, f"{shape} as config.json says")
        if not bool(torch.isfinite(weight).all()):
            bad = int((~torch.isfinite(weight)).sum())
            found = f"{bad} of {weight.numel()} numbers that are NaN or infinite in {stored!r}"
            raise damaged(self.folder, found, "finite ones")
        weight = weight.bfloat16() if self.rounds_to_bfloat16 else weight
        return weight.to(device) if device is not None else weight

    @property
    def adapter_targets(self) -> tuple[str, ...]:
        """Names that match the layers and nothing else: last parts of paths, or whole paths."""
        leaves = {name.rpartition(".")[2] for name in self.layers}
        modules = (name for name, _ in self.model.named_modules())
        named = {name for name in modules if name.rpartition(".")[2] in leaves}
        return tuple(sorted(leaves if named == set(self.layers) else self.layers))

    def parameter(self, key: str) -> Tensor:
        """Read a stored parameter by its path; a linear layer's weight is (out, in)."""
        name = key.removesuffix(".weight")
        if key != name and name in self._linears:
            return self.weight(name)
        return self.tensor(self.stored_name(key) or key)

    def tensor(self, key: str) -> Tensor:
        path = self.shards[key]
        with opened_weights(path) as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    def dequantized(self, key: str, packed: Tensor) -> Tensor:
        """Unpack the numbers that bitsandbytes packed, in the dtype that it quantized."""
        if not self.is_quantized:
            expected = "numbers, as config.json names no quantization"
            raise damaged(self.folder, f"{key!r} of {packed.dtype}", expected)
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


def _shards_of(folder: Path) -> dict[str, Path]:
    """Map the name of every stored tensor to its safetensors file."""
    shards = {}
    for path in sorted(folder.glob("*.safetensors")):
        with opened_weights(path) as file:
            shards.update(dict.fromkeys(file.keys(), path))
    return shards


def _check_quantization(folder: Path, settings: object) -> None:
    values = settings if isinstance(settings, Mapping) else vars(settings)
    method = str(values.get("quant_method", "unknown")).removeprefix("QuantizationMethod.").lower()
    if method not in ("bitsandbytes", "bits_and_bytes"):
        found = f"weights quantized by {method!r}"
        expected = "plain weights, or bitsandbytes' 4 or 8 bits"
        raise UserError(f"model folder {folder}", found, expected, "de-quantize the model first")
